"""How the instances of a configuration reach each other: in Python within a process, over HTTP to another server."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import orjson
import yaml

from gymlet.rollout.metrics import MetricsSpec
from gymlet.serve.environment import SESSION_COOKIE, Environment, Session
from gymlet.serve.failures import FAILURE_CLASS_HEADER
from gymlet.wire.deltas import Json
from gymlet.wire.errors import AgentError, EnvironmentFault, FailureClass, GymletError, ProviderError, cut
from gymlet.wire.provider_errors import error_message


class ModelPeer(Protocol):
    """A model, as an agent sees it."""

    async def respond(self, request: Json) -> Json:
        """A Responses request to a Responses object."""
        ...


class SessionPeer(Protocol):
    """One seeded session of an environment, as an agent sees it."""

    async def call_tool(self, name: str, arguments: Json) -> str:
        """A tool's output as text; an error's text is for the model."""
        ...

    async def verify(self, row: Json) -> Json:
        """The verified row."""
        ...


class EnvironmentPeer(Protocol):
    """An environment, as an agent sees it."""

    async def open_session(self, row: Json) -> SessionPeer:
        """A session seeded with the task's row."""
        ...

    async def metrics_spec(self) -> MetricsSpec:
        """Which fields of a verified row are scores."""
        ...


@dataclass(frozen=True, slots=True)
class _LocalSession:
    environment: Environment
    session: Session

    def call_tool(self, name: str, arguments: Json) -> Coroutine[Any, Any, str]:
        return self.environment.call_tool(self.session, name, arguments)

    def verify(self, row: Json) -> Coroutine[Any, Any, Json]:
        return self.environment.judge(self.session, row)


@dataclass(frozen=True, slots=True)
class LocalEnvironment:
    """An environment of this process."""

    environment: Environment

    async def open_session(self, row: Json) -> SessionPeer:
        """A session seeded with the task's row."""
        return _LocalSession(self.environment, await self.environment.open_session(row))

    async def metrics_spec(self) -> MetricsSpec:
        """Which fields of a verified row are scores."""
        return self.environment.metrics


class RemoteServer:
    """An instance of another server. Owns its HTTP session. Raises GymletError as the other side named it.

    ``fault``: what it is when the other side cannot be reached, or does not answer as it should.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, *, fault: type[GymletError] = EnvironmentFault
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._fault = fault
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Give the connections back."""
        await self._session.close()

    async def get(self, path: str) -> Json:
        """The JSON behind ``path``."""
        return self._parse(path, (await self.send("GET", path)).body)

    async def post(self, path: str, payload: Json, *, cookie: str = "") -> Json:
        """The JSON that answers ``payload``."""
        return self._parse(path, (await self.send("POST", path, payload, cookie=cookie)).body)

    async def send(self, method: str, path: str, payload: Json | None = None, *, cookie: str = "") -> RemoteReply:
        """One request."""
        headers = {"Content-Type": "application/json"} | ({"Cookie": f"{SESSION_COOKIE}={cookie}"} if cookie else {})
        body = None if payload is None else orjson.dumps(payload)
        try:
            async with self._session.request(method, self.base_url + path, data=body, headers=headers) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._fault(f"{self.base_url}{path} cannot be reached: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise _remote_error(response, content)
        morsel = response.cookies.get(SESSION_COOKIE)
        return RemoteReply(content, morsel.value if morsel else "")

    def _parse(self, path: str, body: bytes) -> Json:
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError:
            payload = None
        if not isinstance(payload, dict):
            raise self._fault(f"{self.base_url}{path} did not answer with a JSON object: {body[:100]!r}")
        return payload


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """A good answer of another server: its body, and the session cookie if it set one."""

    body: bytes
    cookie: str


@dataclass(frozen=True, slots=True)
class _RemoteSession:
    server: RemoteServer
    cookie: str

    async def call_tool(self, name: str, arguments: Json) -> str:
        try:
            reply = await self.server.send("POST", f"/{name}", arguments, cookie=self.cookie)
        except GymletError as error:
            return orjson.dumps({"error": error.message}).decode()
        return reply.body.decode("utf-8", "replace")

    async def verify(self, row: Json) -> Json:
        return await self.server.post("/verify", row, cookie=self.cookie)


@dataclass(frozen=True, slots=True)
class RemoteEnvironment:
    """An environment of another server, named by ``base_url`` in the configuration."""

    server: RemoteServer

    async def open_session(self, row: Json) -> SessionPeer:
        """A session seeded with the task's row."""
        reply = await self.server.send("POST", "/seed_session", row)
        return _RemoteSession(self.server, reply.cookie)

    async def metrics_spec(self) -> MetricsSpec:
        """Which fields of a verified row are scores."""
        return MetricsSpec.from_json(await self.server.get("/metrics_spec"))


def _remote_error(response: aiohttp.ClientResponse, body: bytes) -> GymletError:
    """The error that another server told of, as it was there."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = body.decode("utf-8", "replace")
    message = cut(error_message(told)) or f"HTTP {response.status}"
    error = told.get("error") if isinstance(told, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    status = response.status
    failure: FailureClass = response.headers.get(FAILURE_CLASS_HEADER, "agent_error")  # type: ignore[assignment]
    if not failure.startswith("provider"):
        return GymletError(message, status=status, code=code, failure_class=failure)
    request_id = response.headers.get("x-request-id")
    return ProviderError(message, status=status, code=code, failure_class=failure, request_id=request_id)


class RemoteAgents:
    """The agents of a running server, for a collector."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._server = RemoteServer(url, api_key, fault=AgentError)

    async def close(self) -> None:
        """Give the connections back."""
        await self._server.close()

    async def run_agent(self, name: str, row: Json) -> Json:
        """One rollout by the agent ``name``, over there."""
        return await self._server.post(f"/{name}/run", row)

    async def metrics_spec(self, name: str) -> MetricsSpec:
        """What the agent's environment scores."""
        return MetricsSpec.from_json(await self._server.get(f"/{name}/metrics_spec"))

    async def agent_names(self) -> list[str]:
        """The agents there are."""
        return sorted(await self._names("responses_api_agents"))

    async def configuration(self) -> Json:
        """The composed configuration of the server, without its secrets."""
        reply = await self._server.send("GET", "/global_config_dict_yaml")
        tree: Json = yaml.safe_load(orjson.loads(reply.body))
        return tree

    async def limits(self) -> dict[str, Json]:
        """The state of each model's endpoints, by the instance's name."""
        names = await self._names("responses_api_models")
        return {name: await self._server.get(f"/{name}/limits") for name in names}

    async def _names(self, server_type: str) -> list[str]:
        reply = await self._server.send("GET", "/server_instances")
        return [entry["name"] for entry in orjson.loads(reply.body) if entry["server_type"] == server_type]
