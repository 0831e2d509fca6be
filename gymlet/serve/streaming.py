"""Moves bytes between provider, Reply and client, and knows nothing of what they mean.

Awaiting the write is the back-pressure: while the client does not take what there is, the provider is not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from aiohttp import web

from gymlet.serve.request_ids import note_provider_id, request_id
from gymlet.upstream.lane import Outcome
from gymlet.wire.errors import GymletError, ProviderError, StreamError
from gymlet.wire.provider_errors import MAX_PAGE_CHARS, error_message
from gymlet.wire.reply import Reply

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""Some clients give up on a stream that is silent for longer."""

PATIENCE_S = 15.0
"""What a client waits for a whole body in place of a stream, before it hears a first sign of life."""

MAX_BODY_BYTES = 64 * 1024 * 1024
"""The longest reply that is read as a whole."""

MAX_STREAM_BYTES = 128 * 1024 * 1024
"""The longest stream, whose text is kept for its last events: 400,000 tokens, or 50,000 with log probabilities."""

MAX_WORDS = 200
BOM = b"\xef\xbb\xbf"

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


NewReply = Callable[[], Reply]
"""Each attempt at a call is read by a reply of its own."""


class Body(Protocol):
    """What is read of an answer, a provider's or one that was kept.

    ``request_id``: what the provider calls the request. The reader says how it ended (``outcome``), and the ``tokens``
    that the provider counted.
    """

    request_id: str | None
    outcome: Outcome
    tokens: int | None

    @property
    def is_labelled_whole(self) -> bool:
        """Whether the body says that it is no stream of events."""
        ...

    @property
    def content_type(self) -> str:
        """What the provider says that the body is."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether nothing is left to read."""
        ...

    def read_now(self) -> bytes:
        """What has come already. Raises StreamError."""
        ...

    async def read_some(self) -> bytes:
        """The next bytes; b"" at the end. Raises StreamError."""
        ...


async def relay(request: web.Request, new_reply: NewReply, answer: Body) -> web.StreamResponse:
    """Stream one reply to the client, each of the provider's pieces as it comes, in one write.

    Raises ProviderError for an answer that broke before the model had said anything: the client has seen nothing of it.
    """
    reply = new_reply()
    intake = Intake(answer, reply)
    events = reply.open() + intake.now() + await intake.whole(PATIENCE_S)
    if isinstance(reply.error, ProviderError) and not reply.said:
        raise reply.error
    note_provider_id(request, answer.request_id)
    response = web.StreamResponse(headers=_HEADERS)
    try:
        await response.prepare(request)
        await response.write_eof(await _last(request, intake, reply, response, events))
    except OSError:
        answer.outcome = "left"
    else:
        answer.outcome = "ok" if reply.error is None else "failed"
    answer.tokens = reply.tokens
    return response


async def _last(
    request: web.Request, intake: Intake, reply: Reply, response: web.StreamResponse, events: bytes
) -> bytes:
    """Copy everything but the last events, which are returned, whatever ends the reply. Raises OSError only."""
    try:
        return await _copy(intake, reply, response, events)
    except OSError:
        raise
    except Exception:
        log.exception("unexpected error in a stream: %s (%s)", request.rel_url.raw_path, request_id(request))
        return reply.fail(GymletError("internal error; the server's log has the details"))


async def collect(new_reply: NewReply, answer: Body) -> Reply:
    """Read one reply to its end. Raises the ProviderError that ended it, if one did."""
    reply = new_reply()
    intake = Intake(answer, reply)
    while not reply.ended:
        await intake.next()
    answer.tokens = reply.tokens
    if reply.error is not None:
        raise reply.error
    return reply


async def _copy(intake: Intake, reply: Reply, response: web.StreamResponse, events: bytes) -> bytes:
    """Everything but the last events, which are returned; one is repeated when the client had none for KEEP_ALIVE_S."""
    loop = asyncio.get_running_loop()
    while not reply.ended:
        if events:
            await response.write(events)
            silent_until = loop.time() + KEEP_ALIVE_S
        try:
            async with asyncio.timeout_at(silent_until):
                events = await intake.next()
        except TimeoutError:
            events = reply.keep_alive()
    return events


class Intake:
    """Feeds a provider's answer to a reply, piece by piece. Owns what came before it was known what the body is.

    What a body is, its first byte says: not every provider labels its streams, nor its errors.
    """

    def __init__(self, answer: Body, reply: Reply) -> None:
        self._answer = answer
        self._reply = reply
        self._streams: bool | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def now(self) -> bytes:
        """The events of what has come already."""
        try:
            chunk = self._answer.read_now()
        except StreamError as error:
            return self._reply.fail(error)
        return self._feed(chunk) if chunk else b""

    async def whole(self, patience_s: float) -> bytes:
        """The events of a body that is no stream or is empty, all at once; b"" for a stream, or if it takes longer."""
        if self._streams is not False and not self._answer.at_end:
            return b""
        events = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not self._reply.ended:
                    events += await self.next()
        return events

    async def next(self) -> bytes:
        """The events of the next piece, or of the end. It may be cancelled, and called again."""
        try:
            chunk = await self._answer.read_some()
        except StreamError as error:
            return self._reply.fail(error)
        return self._feed(chunk) if chunk else self._end()

    def _feed(self, chunk: bytes) -> bytes:
        self._size += len(chunk)
        most = MAX_STREAM_BYTES if self._streams else MAX_BODY_BYTES
        if self._size > most:
            return self._reply.fail(ProviderError(f"the provider's reply has more than {most} bytes"))
        if self._streams:
            return self._reply.feed(chunk)
        self._pieces.append(chunk)
        if self._streams is None:
            self._streams = self._is_stream(chunk)
            if self._streams:
                return self._reply.feed(b"".join(self._pieces))
        return b""

    def _is_stream(self, chunk: bytes) -> bool | None:
        """None while there is only white space."""
        start = chunk.removeprefix(BOM).lstrip()[:1]
        if not start:
            return None
        return start not in b"{[<" and (not self._answer.is_labelled_whole or start in b"de:i")

    def _end(self) -> bytes:
        if self._streams or (self._streams is None and not self._answer.is_labelled_whole):
            return self._reply.close()
        body = b"".join(self._pieces).removeprefix(BOM).strip()
        if body.startswith(b"{"):
            return self._reply.feed_body(body)
        words = self._reply.redact(error_message(body[:MAX_PAGE_CHARS].decode("utf-8", "replace")))[:MAX_WORDS]
        kind = self._answer.content_type
        return self._reply.fail(ProviderError(f"the provider sent {kind} instead of a reply: {words!r}"))
