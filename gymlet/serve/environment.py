"""An environment: seeds a session, offers tools, verifies and rewards. What a user subclasses.

    class Weather(Environment):
        metrics = MetricsSpec(scores={"accuracy": "reward"})

        @tool
        async def get_weather(self, session: Session, city: str) -> str:
            return "cold"

        async def verify(self, session: Session, row: Json) -> Json:
            return {"reward": 1.0 if "cold" in output_text(row["response"]) else 0.0}

State belongs into the session, never into the environment: thousands of rollouts run at once.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

import orjson
from aiohttp import web

from gymlet.config.schema import EnvironmentOptions
from gymlet.rollout.metrics import MetricsSpec, aggregate
from gymlet.serve.failures import json_response
from gymlet.serve.fellows import Fellows
from gymlet.serve.ids import random_hex
from gymlet.wire.deltas import Json
from gymlet.wire.errors import EnvironmentFault, GymletError, RequestError, VerifierError
from gymlet.wire.fields import check, parse_object

SESSION_COOKIE = "gymlet_session"
MAX_SESSIONS = 100_000
"""Sessions opened over HTTP that are kept; the oldest goes first. Nobody runs more rollouts at once on one machine."""

Session = dict[str, Any]
"""The state of one rollout, from its seeding to its verification."""

Tool = Callable[..., Awaitable[object]]
ToolT = TypeVar("ToolT", bound=Tool)


def tool(method: ToolT) -> ToolT:
    """Offer an async method to the model under its own name, with ``(session, **arguments)``."""
    method.__gymlet_tool__ = True  # type: ignore[attr-defined]
    return method


def output_text(response: Json) -> str:
    """Every answer's text in a Responses object, joined; reasoning is never part of it."""
    messages = (item for item in response.get("output") or () if item.get("type") == "message")
    parts = (part for message in messages for part in message.get("content") or ())
    return "".join(part.get("text") or "" for part in parts if part.get("type") == "output_text")


class Environment:
    """One kind of task: its tools, its verifier, its metrics.

    ``Options`` is the frozen dataclass of the keys that the configuration may set; ``metrics`` says which fields of a
    verified row are scores.
    """

    Options: ClassVar[type[EnvironmentOptions]] = EnvironmentOptions
    metrics: ClassVar[MetricsSpec] = MetricsSpec()

    def __init__(self, name: str, options: EnvironmentOptions) -> None:
        self.name = name
        self.options = options
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._fellows: Fellows | None = None
        self._tools = {
            key: getattr(self, key)
            for key, member in inspect.getmembers(type(self), inspect.isfunction)
            if getattr(member, "__gymlet_tool__", False)
        }

    async def start(self) -> None:
        """Called once, before the server listens."""

    async def stop(self) -> None:
        """Called once, after the last request."""

    async def seed_session(self, session: Session, row: Json) -> None:
        """Fill the session from the task's row."""

    async def verify(self, session: Session, row: Json) -> Json:
        """The fields to add to the row: ``reward`` at least. ``row`` is the task with its ``response``."""
        raise NotImplementedError

    async def open_session(self, row: Json) -> Session:
        """A seeded session. Raises EnvironmentFault when seeding breaks."""
        session: Session = {}
        try:
            await self.seed_session(session, row)
        except GymletError:
            raise
        except Exception as error:
            raise EnvironmentFault(f"{self.name}: seed_session: {_words(error)}") from error
        return session

    async def call_tool(self, session: Session, name: str, arguments: Json) -> str:
        """A tool's output as text. What the model got wrong (name, arguments) is told to it; raises nothing for it."""
        method = self._tools.get(name)
        if method is None:
            return _told(f"there is no tool '{name}'; there are: {', '.join(sorted(self._tools)) or 'none'}")
        try:
            inspect.signature(method).bind(session, **arguments)
        except TypeError as error:
            return _told(f"{name}: {error}")
        try:
            output = await method(session, **arguments)
        except Exception as error:  # noqa: BLE001  the model sees what its call led to
            return _told(_words(error))
        return output if isinstance(output, str) else orjson.dumps(output).decode()

    async def judge(self, session: Session, row: Json) -> Json:
        """The verified row: what was asked, what was answered, and what ``verify`` says of it."""
        try:
            verdict = await self.verify(session, row)
        except GymletError:
            raise
        except Exception as error:
            raise VerifierError(f"{self.name}: verify: {_words(error)}") from error
        kept: Json = {key: row[key] for key in ("responses_create_params", "response") if key in row}
        return {**kept, **verdict}

    def join(self, fellows: Fellows) -> None:
        """Be one of several workers. Called before ``start``."""
        self._fellows = fellows

    def routes(self) -> list[web.RouteDef]:
        """The endpoints below this environment's name; each tool is one."""
        return [
            web.post("/seed_session", self._seed_session),
            web.post("/verify", self._verify),
            web.post("/aggregate_metrics", self._aggregate_metrics),
            web.get("/metrics_spec", self._metrics_spec),
            web.post("/{tool}", self._call_tool),
        ]

    async def _seed_session(self, request: web.Request) -> web.Response:
        session = await self.open_session(parse_object(await request.read()))
        key = random_hex() if self._fellows is None else self._fellows.new_id("")
        self._sessions[key] = session
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        response = json_response({})
        response.set_cookie(SESSION_COOKIE, key, httponly=True, samesite="Strict")
        return response

    async def _verify(self, request: web.Request) -> web.Response:
        elsewhere = await self._forwarded(request, "verify")
        if elsewhere is not None:
            return elsewhere
        row = parse_object(await request.read())
        check(row.get("response"), (dict,), "response")
        verified = await self.judge(self._session(request), row)
        self._sessions.pop(request.cookies.get(SESSION_COOKIE, ""), None)
        return json_response(verified)

    async def _call_tool(self, request: web.Request) -> web.Response:
        name = request.match_info["tool"]
        if name not in self._tools:
            raise RequestError(
                _words_for_unknown(name, self._tools), status=404, code="not_found", failure_class="environment_error"
            )
        elsewhere = await self._forwarded(request, name)
        if elsewhere is not None:
            return elsewhere
        arguments = parse_object(await request.read())
        output = await self.call_tool(self._session(request), name, arguments)
        return web.Response(text=output)

    async def _aggregate_metrics(self, request: web.Request) -> web.Response:
        payload = parse_object(await request.read())
        check(payload.get("verify_responses"), (list,), "verify_responses")
        return json_response(aggregate(self.metrics, payload["verify_responses"]))

    async def _metrics_spec(self, _request: web.Request) -> web.Response:
        return json_response(self.metrics.to_json())

    async def _forwarded(self, request: web.Request, endpoint: str) -> web.Response | None:
        """The answer of the worker that has the session, if it is another."""
        if self._fellows is None:
            return None
        return await self._fellows.forward(request, request.cookies.get(SESSION_COOKIE, ""), f"/{self.name}/{endpoint}")

    def _session(self, request: web.Request) -> Session:
        return self._sessions.get(request.cookies.get(SESSION_COOKIE, ""), {})


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _words_for_unknown(name: str, tools: dict[str, Tool]) -> str:
    return f"there is no tool '{name}' here; there are: {', '.join(sorted(tools)) or 'none'}"


def _told(message: str) -> str:
    return orjson.dumps({"error": message}).decode()
