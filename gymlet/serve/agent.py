"""An agent: takes a task to a model and an environment until it is answered, then has it verified."""

from __future__ import annotations

import time
from typing import ClassVar

from aiohttp import web

from gymlet.config.schema import AgentOptions
from gymlet.rollout.metrics import ROLLOUT, MetricsSpec
from gymlet.serve.failures import json_response
from gymlet.serve.peers import EnvironmentPeer, ModelPeer, SessionPeer
from gymlet.upstream.watch import CallLog, Noted
from gymlet.wire.deltas import Json
from gymlet.wire.errors import AgentError, GymletError, RequestError
from gymlet.wire.fields import parse_object


class Timings:
    """Where the seconds of one rollout went. Owns its sums.

    ``calls`` is told of every call of a model: its wait in the queue is part of ``model_s``. ``repeat`` is the number
    of the rollout among those of its task.
    """

    def __init__(self, repeat: int | None = None) -> None:
        self._sums = {"model_s": 0.0, "tools_s": 0.0, "verify_s": 0.0}
        self.calls = CallLog(repeat)

    def add(self, name: str, started: float) -> None:
        """Count the time since ``started`` (of ``time.perf_counter``) as ``name``."""
        self._sums[name] += time.perf_counter() - started

    def stamps(self) -> Json:
        """``_ng_timings`` in seconds, to the microsecond; ``_ng_retries``; ``_ng_cached_calls`` where there are some.

        ``ttft_s``, the first call's time to its first byte, is null where no provider was called.
        """
        calls = self.calls
        told = {**self._sums, "queued_s": calls.queued_s, "ttft_s": calls.ttft_s}
        rounded = {name: None if seconds is None else round(seconds, 6) for name, seconds in told.items()}
        cached = {"_ng_cached_calls": calls.cached} if calls.cached else {}
        return {"_ng_timings": rounded, "_ng_retries": calls.retries, **cached}


class Agent:
    """One way to answer a task. Subclass it and write ``respond``.

    ``Options`` is the frozen dataclass of the keys that the configuration may set.
    """

    Options: ClassVar[type[AgentOptions]] = AgentOptions

    def __init__(self, name: str, options: AgentOptions, *, model: ModelPeer, environment: EnvironmentPeer) -> None:
        self.name = name
        self.options = options
        self.model = model
        self.environment = environment

    async def start(self) -> None:
        """Called once, before the server listens."""

    async def stop(self) -> None:
        """Called once, after the last request."""

    async def respond(self, params: Json, session: SessionPeer, timings: Timings) -> Json:
        """Responses create parameters to one Responses object; its output holds the items of all steps."""
        raise NotImplementedError

    async def run(self, row: Json) -> Json:
        """One rollout: seed, respond, verify. Raises GymletError, named by whose fault it was."""
        params = row.get("responses_create_params")
        if not isinstance(params, dict):
            raise RequestError("'responses_create_params' must be an object", param="responses_create_params")
        timings = Timings(row.get(ROLLOUT))
        session = await self.environment.open_session(row)
        with Noted(timings.calls):
            response = await self._answer(params, session, timings)
        started = time.perf_counter()
        verified = await self._verify(session, {**row, "response": response})
        timings.add("verify_s", started)
        return {**verified, **timings.stamps()}

    async def metrics_spec(self) -> MetricsSpec:
        """Which fields of a verified row are scores: the environment says so."""
        return await self.environment.metrics_spec()

    def routes(self) -> list[web.RouteDef]:
        """The endpoints below this agent's name."""
        return [
            web.post("/run", self._run),
            web.post("/v1/responses", self._responses),
            web.get("/metrics_spec", self._metrics_spec),
        ]

    async def _answer(self, params: Json, session: SessionPeer, timings: Timings) -> Json:
        try:
            return await self.respond(params, session, timings)
        except GymletError:
            raise
        except Exception as error:
            raise AgentError(f"{self.name}: {type(error).__name__}: {error}") from error

    async def _verify(self, session: SessionPeer, row: Json) -> Json:
        if not self.options.skip_verification:
            return await session.verify(row)
        reward = self.options.skip_verification_reward
        kept = {key: row[key] for key in ("responses_create_params", "response")}
        return {**kept, "reward": 0.0 if reward is None else reward, "verification_skipped": True}

    async def _run(self, request: web.Request) -> web.Response:
        return json_response(await self.run(parse_object(await request.read())))

    async def _responses(self, request: web.Request) -> web.Response:
        params = parse_object(await request.read())
        session = await self.environment.open_session({"responses_create_params": params})
        return json_response(await self._answer(params, session, Timings()))

    async def _metrics_spec(self, _request: web.Request) -> web.Response:
        return json_response((await self.metrics_spec()).to_json())
