"""A model server: /v1/responses, /v1/chat/completions and /v1/models in front of one provider."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from aiohttp import web

from gymlet.config.schema import ModelOptions
from gymlet.serve import streaming
from gymlet.serve.failures import json_response
from gymlet.serve.upstream import Provider, Upstream
from gymlet.wire.chat import ChatReader
from gymlet.wire.chat_request import pass_chat
from gymlet.wire.completions import CompletionWriter
from gymlet.wire.deltas import Json
from gymlet.wire.fields import parse_object
from gymlet.wire.reasoning import Plain, Tagged, Verbatim
from gymlet.wire.reply import Reply
from gymlet.wire.request import ChatProfile, envelope, namespaces, to_chat
from gymlet.wire.responses import ResponseWriter


class Exchange(NamedTuple):
    """What to send to the provider, and what will read its reply."""

    body: Json
    reply: Reply


Door = Callable[[Json, bool], Exchange]


def new_id(prefix: str) -> str:
    """A fresh id: the prefix and 128 random bits."""
    return prefix + secrets.token_hex(16)


def now_s() -> int:
    """The time in whole seconds, as the protocols have it."""
    return int(time.time())


class ModelServer:
    """One model behind the two doors of OpenAI's API. Subclass it and say where the provider is.

    ``Options`` is the frozen dataclass of the keys that the configuration may set.
    """

    Options: ClassVar[type[ModelOptions]] = ModelOptions

    def __init__(self, name: str, options: ModelOptions) -> None:
        self.name = name
        self.options = options
        self._profile = ChatProfile(
            model=options.model,
            system_role=options.system_role,
            strip_reasoning=options.uses_reasoning_parser,
            extra_body=options.extra_body,
        )
        self._upstream: Upstream | None = None

    async def open_provider(self) -> Provider:
        """Where to call. Called once, before the server listens; may start what it needs."""
        raise NotImplementedError

    async def close_provider(self) -> None:
        """Stop what ``open_provider`` started. Called once, after the last reply."""

    async def start(self) -> None:
        """Get ready to call the provider."""
        self._upstream = Upstream(await self.open_provider())

    async def stop(self) -> None:
        """Close the connections and the provider."""
        if self._upstream is not None:
            await self._upstream.close()
        await self.close_provider()

    def routes(self) -> list[web.RouteDef]:
        """The endpoints below this server's name."""
        return [
            web.post("/v1/responses", self._responses),
            web.post("/v1/chat/completions", self._completions),
            web.get("/v1/models", self._models),
        ]

    async def respond(self, request: Json) -> Json:
        """A Responses request from inside this process. Raises RequestError or ProviderError."""
        body, reply = self._through_responses(request, False)
        async with self._provider.call(body) as answer:
            return await streaming.collect(answer, reply)

    @property
    def _provider(self) -> Upstream:
        assert self._upstream is not None, "start() comes first"  # noqa: S101
        return self._upstream

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, self._through_responses)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, self._through_completions)

    async def _models(self, _request: web.Request) -> web.Response:
        model = {"id": self.options.model, "object": "model", "created": 0, "owned_by": self.name}
        return json_response({"object": "list", "data": [model]})

    async def _serve(self, request: web.Request, door: Door) -> web.StreamResponse:
        payload = parse_object(await request.read())
        stream = payload.get("stream") is True
        body, reply = door(payload, stream)
        async with self._provider.call(body) as answer:
            if stream:
                return await streaming.relay(request, answer, reply)
            return json_response(await streaming.collect(answer, reply))

    def _through_responses(self, request: Json, stream: bool) -> Exchange:
        body = to_chat(request, self._profile, stream=stream)
        shell = envelope(request, response_id=new_id("resp_"), created_at=now_s(), model=self.options.model)
        form = self.options.reasoning_output
        writer = ResponseWriter(shell, new_id=new_id, now=now_s, reasoning_output=form, namespaces=namespaces(request))
        splitter = Tagged() if self.options.uses_reasoning_parser else Plain()
        return Exchange(body, Reply(ChatReader(new_id), splitter, writer))

    def _through_completions(self, request: Json, stream: bool) -> Exchange:
        body = pass_chat(request, self._profile, stream=stream)
        shell = {"id": new_id("chatcmpl-"), "created": now_s(), "model": self.options.model}
        asked = (request.get("stream_options") or {}).get("include_usage") is True
        splitter = Tagged() if self.options.uses_reasoning_parser else Verbatim()
        return Exchange(body, Reply(ChatReader(new_id), splitter, CompletionWriter(shell, include_usage=asked)))
