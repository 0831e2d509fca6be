"""A model server: /v1/responses, /v1/chat/completions and /v1/models in front of one provider."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar, NamedTuple, TypeVar

from aiohttp import web

from gymlet.config.schema import ModelOptions
from gymlet.serve import streaming
from gymlet.serve.cache import SqliteCache
from gymlet.serve.cached_calls import CachedUpstream
from gymlet.serve.failures import json_response
from gymlet.serve.fellows import Fellows
from gymlet.serve.ids import new_id
from gymlet.serve.request_ids import note_provider_id
from gymlet.serve.store import ResponseStore, Stored, references
from gymlet.serve.streaming import Body, NewReply
from gymlet.upstream.call import Upstream
from gymlet.upstream.limiters import Limiters, LocalLimiters
from gymlet.upstream.provider import Provider
from gymlet.upstream.watch import CallLog, Noted
from gymlet.wire.chat import ChatReader
from gymlet.wire.chat_request import pass_chat
from gymlet.wire.completions import CompletionWriter
from gymlet.wire.deltas import Json
from gymlet.wire.dialect import thinking_is_off
from gymlet.wire.errors import StreamError
from gymlet.wire.fields import parse_object
from gymlet.wire.reasoning import Plain, Splitter, Tagged, Verbatim
from gymlet.wire.reply import Reply, Writer
from gymlet.wire.request import FIELDS, check_request, envelope, to_chat
from gymlet.wire.responses import ResponseWriter, View
from gymlet.wire.seal import Seal
from gymlet.wire.tools import toolbox

log = logging.getLogger(__name__)

T = TypeVar("T")

REPEAT = "x-gymlet-repeat"
"""The header by which a client says which of several equal calls this is; with it, each has a reply of its own."""

ENCRYPTED = "reasoning.encrypted_content"
"""What a client includes that wants to send reasoning back."""


class Exchange(NamedTuple):
    """What to send to the provider, and what will read its answer, once for each attempt.

    ``session``: the client asks that calls with the same one go to the same endpoint.
    """

    body: Json
    new_reply: NewReply
    session: str | None


Door = Callable[[Json, bool], Exchange]


def now_s() -> int:
    """The time in whole seconds, as the protocols have it."""
    return int(time.time())


class ModelServer:
    """One model behind the two doors of OpenAI's API. Subclass it and say where the provider is.

    ``Options`` is the frozen dataclass of the keys that the configuration may set.
    """

    Options: ClassVar[type[ModelOptions]] = ModelOptions
    single: ClassVar[bool] = False
    """Whether it must not be served by several workers, because each would start it anew."""

    def __init__(self, name: str, options: ModelOptions) -> None:
        self.name = name
        self.options = options
        self._whose = f"{self.origin}/{options.model}"
        self._seal = Seal(self._whose)
        self._store = ResponseStore(options.max_stored_responses)
        self.limiters: Limiters = LocalLimiters()
        self._upstream: Upstream | CachedUpstream | None = None
        self._fellows: Fellows | None = None
        self._new_id = new_id

    @property
    def origin(self) -> str:
        """Whose model it is: reasoning that goes back to it must have come from there."""
        return self.name

    async def open_provider(self) -> Provider:
        """Where to call. Called once, before the server listens; may start what it needs."""
        raise NotImplementedError

    async def close_provider(self) -> None:
        """Stop what ``open_provider`` started. Called once, after the last reply."""

    async def start(self) -> None:
        """Get ready to call the provider. Raises ConfigError for a cache that cannot be used."""
        options = self.options
        provider = await self.open_provider()
        self._upstream = upstream = Upstream(provider, options, self.limiters.of(provider, options))
        cache = SqliteCache.of(options)
        if cache is not None:
            await cache.start()
            self._upstream = CachedUpstream(upstream, cache, self._whose, total_timeout_s=options.total_timeout_s)

    async def stop(self) -> None:
        """Close the connections, the cache and the provider."""
        if self._upstream is not None:
            await self._upstream.close()
        await self.close_provider()

    def interrupt(self, error: StreamError) -> None:
        """End every call of the provider, and those to come, with ``error``: streams in band, whole replies by it."""
        if self._upstream is not None:
            self._upstream.interrupt(error)

    def join(self, fellows: Fellows) -> None:
        """Be one of several workers. Called before ``start``."""
        self._fellows = fellows
        self._new_id = fellows.new_id

    def inner_routes(self) -> list[web.RouteDef]:
        """The endpoints for the other workers, below this server's name."""
        return [
            web.get("/v1/responses/{response_id}", self._stored_response),
            web.delete("/v1/responses/{response_id}", self._delete_response),
            web.get("/stored/{name}", self._lend),
        ]

    def routes(self) -> list[web.RouteDef]:
        """The endpoints below this server's name."""
        return [
            web.post("/v1/responses", self._responses),
            web.get("/v1/responses/{response_id}", self._stored_response),
            web.delete("/v1/responses/{response_id}", self._delete_response),
            web.post("/v1/chat/completions", self._completions),
            web.get("/v1/models", self._models),
            web.get("/limits", self._limits),
        ]

    async def limits(self) -> Json:
        """The provider's endpoints and the queue before them: limits, calls in flight, waiting, tried again.

        ``cached``: the calls that the cache has answered, where there is one.
        """
        return await self._provider.to_json()

    async def respond(self, request: Json) -> Json:
        """A Responses request from inside this process. Raises RequestError or ProviderError."""
        exchange = await self._open({**request, "store": False}, False, self._through_responses)
        return (await self._call(exchange, streaming.collect)).response

    @property
    def _provider(self) -> Upstream | CachedUpstream:
        assert self._upstream is not None, "start() comes first"  # noqa: S101
        return self._upstream

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, self._through_responses)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, self._through_completions)

    async def _stored_response(self, request: web.Request) -> web.Response:
        response_id = request.match_info["response_id"]
        elsewhere = await self._forwarded(request, response_id)
        return elsewhere or json_response(self._store.get(response_id))

    async def _delete_response(self, request: web.Request) -> web.Response:
        response_id = request.match_info["response_id"]
        elsewhere = await self._forwarded(request, response_id)
        if elsewhere is not None:
            return elsewhere
        self._store.delete(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    async def _limits(self, _request: web.Request) -> web.Response:
        return json_response(await self.limits())

    async def _lend(self, request: web.Request) -> web.Response:
        stored = self._store.find(request.match_info["name"])
        return json_response(None if stored is None else stored.to_json())

    async def _forwarded(self, request: web.Request, response_id: str) -> web.Response | None:
        """The answer of the worker that stored the response, if it is another."""
        if self._fellows is None:
            return None
        return await self._fellows.forward(request, response_id, f"/{self.name}/v1/responses/{response_id}")

    async def _models(self, _request: web.Request) -> web.Response:
        model = {"id": self.options.model, "object": "model", "created": 0, "owned_by": self.name}
        return json_response({"object": "list", "data": [model]})

    async def _serve(self, request: web.Request, door: Door) -> web.StreamResponse:
        payload = parse_object(await request.read())
        stream = payload.get("stream") is True
        exchange = await self._open(payload, stream, door)
        with Noted(CallLog(request.headers.get(REPEAT))):
            if stream:
                return await self._call(exchange, partial(streaming.relay, request))

            async def collect(new_reply: NewReply, answer: Body) -> Reply:
                note_provider_id(request, answer.request_id)
                return await streaming.collect(new_reply, answer)

            return json_response((await self._call(exchange, collect)).body)

    def _call(self, exchange: Exchange, read: Callable[[NewReply, Body], Awaitable[T]]) -> Awaitable[T]:
        return self._provider.call(exchange.body, partial(read, exchange.new_reply), session=exchange.session)

    async def _open(self, request: Json, stream: bool, door: Door) -> Exchange:
        """Begin an exchange, with what other workers have stored of what the request refers to."""
        if self._fellows is None:
            return door(request, stream)
        lent: list[Stored] = []
        for name in references(request):
            index = self._fellows.maker(name)
            if index is not None:
                stored = await self._fellows.get(index, f"/{self.name}/stored/{name}")
                lent += [Stored.from_json(stored)] if stored is not None else []
        with self._store.lending(lent):
            return door(request, stream)

    def _through_responses(self, request: Json, stream: bool) -> Exchange:
        options = self.options
        check_request(request)
        if log.isEnabledFor(logging.DEBUG) and (unknown := request.keys() - FIELDS.keys()):
            log.debug("fields of the request that mean nothing here: %s", ", ".join(sorted(unknown)))
        recalled = self._store.recall(request)
        body = to_chat(recalled.request, options, self._seal, stream=stream, earlier=recalled.earlier)
        store, encrypted = self._store.takes(request), ENCRYPTED in (request.get("include") or ())
        view = View(
            stream=stream,
            reasoning_output=options.reasoning_output,
            tools=toolbox(recalled.request),
            seal=self._seal if store or encrypted else None,
            encrypted=encrypted,
        )
        keep = partial(self._store.keep, recalled) if store else None

        def new_writer() -> Writer:
            new_id = self._new_id
            shell = envelope(request, response_id=new_id("resp_"), created_at=now_s(), model=options.model, store=store)
            return ResponseWriter(shell, view, new_id=new_id, now=now_s, keep=keep)

        return self._exchange(request, body, Plain, new_writer)

    def _through_completions(self, request: Json, stream: bool) -> Exchange:
        body = pass_chat(request, self.options, stream=stream)
        asked = (request.get("stream_options") or {}).get("include_usage") is True

        def new_writer() -> Writer:
            shell = {"id": self._new_id("chatcmpl-"), "created": now_s(), "model": self.options.model}
            return CompletionWriter(shell, include_usage=asked)

        return self._exchange(request, body, Verbatim, new_writer)

    def _exchange(
        self, request: Json, body: Json, unparsed: Callable[[], Splitter], new_writer: Callable[[], Writer]
    ) -> Exchange:
        excludes = self.options.completion_excludes_reasoning

        def new_reply() -> Reply:
            reader = ChatReader(self._new_id, completion_excludes_reasoning=excludes)
            return Reply(reader, self._splitter(body, unparsed), new_writer(), self._provider.provider.redact)

        session = request.get("prompt_cache_key")
        return Exchange(body, new_reply, session if isinstance(session, str) else None)

    def _splitter(self, body: Json, unparsed: Callable[[], Splitter]) -> Splitter:
        """What the profile says; the request may have turned thinking off."""
        options = self.options
        if not options.uses_reasoning_parser:
            return unparsed()
        if options.reasoning_in == "field":
            return Verbatim()
        form = body.get("response_format")
        return Tagged(
            self._new_id,
            implicit=options.opens_in_reasoning and not thinking_is_off(body),
            json=isinstance(form, dict) and form.get("type") in ("json_object", "json_schema"),
            unclosed=options.unclosed_reasoning,
            interleaved=options.reasoning_in == "interleaved_tags",
        )
