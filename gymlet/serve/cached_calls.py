"""Calls of a provider that are paid for once: what was kept is answered again, what was not is called for and kept.

A reply is kept as the provider sent it, once it has ended without an error, and read like any other: streamed or whole,
through either door. Of equal calls at the same time one goes out, and the others wait for what it brings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from gymlet.serve.cache import SqliteCache, call_digest, nth_digest
from gymlet.serve.streaming import MAX_BODY_BYTES, Body
from gymlet.upstream.call import Upstream
from gymlet.upstream.lane import Outcome
from gymlet.upstream.provider import Provider
from gymlet.upstream.watch import CALLS
from gymlet.wire.deltas import Json
from gymlet.wire.errors import ProviderError, StreamError

T = TypeVar("T")
Read = Callable[[Body], Awaitable[T]]

PIECE_BYTES = 64 * 1024
"""What is read at once of a kept reply, so that a client that takes little holds little."""


class CachedUpstream:
    """Stands in the place of ``upstream``, and calls it for what ``cache`` does not have. Owns both, and equal calls.

    ``origin``: whose model it is. ``total_timeout_s``: the longest that a client may take a kept reply.
    """

    def __init__(self, upstream: Upstream, cache: SqliteCache, origin: str, *, total_timeout_s: float) -> None:
        self._upstream = upstream
        self._cache = cache
        self._origin = origin
        self._total_timeout_s = total_timeout_s
        self._under_way: dict[bytes, asyncio.Event] = {}

    @property
    def provider(self) -> Provider:
        """Whom ``upstream`` calls."""
        return self._upstream.provider

    async def close(self) -> None:
        """Give the connections back, and close the file."""
        await self._upstream.close()
        await self._cache.stop()

    def interrupt(self, error: StreamError) -> None:
        """As ``Upstream.interrupt``."""
        self._upstream.interrupt(error)

    async def to_json(self) -> Json:
        """As ``Upstream.to_json``, and how many calls the cache has answered."""
        return {**await self._upstream.to_json(), "cached": self._cache.hits}

    async def call(self, body: Json, read: Read[T], *, session: str | None = None) -> T:
        """As ``Upstream.call``."""
        key = self._key(body)
        async with self._one_of(key):
            kept = await self._cache.get(key)
            if kept is None:
                return await self._call(key, body, read, session)
        try:
            result = await self._read_kept(kept, read)
        except ProviderError:  # what was fit to be kept is damaged now, or another reader's
            await self._cache.forget(key)
            return await self._call(key, body, read, session)
        log = CALLS.get()
        if log is not None:
            log.cached += 1
        return result

    async def _read_kept(self, kept: bytes, read: Read[T]) -> T:
        try:
            async with asyncio.timeout(self._total_timeout_s):
                return await read(_Kept(kept))
        except TimeoutError:  # the client does not take it, and has its head already: all there is left is to hang up
            raise asyncio.CancelledError from None

    def _key(self, body: Json) -> bytes:
        """A rollout that makes a call again wants another answer; when the rollout is run again, the same two."""
        log = CALLS.get()
        if log is None:
            return call_digest(self._origin, body, None)
        key = call_digest(self._origin, body, log.repeat)
        times = log.asked[key] = log.asked.get(key, 0) + 1
        return nth_digest(key, times)

    @asynccontextmanager
    async def _one_of(self, key: bytes) -> AsyncIterator[None]:
        """After an equal call that is under way. Should it bring nothing, all that waited for it go on at once."""
        under_way = self._under_way.get(key)
        if under_way is not None:
            await under_way.wait()
            yield
            return
        ended = self._under_way[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._under_way[key]
            ended.set()

    async def _call(self, key: bytes, body: Json, read: Read[T], session: str | None) -> T:
        tape: _Tape | None = None

        async def listen(answer: Body) -> T:
            nonlocal tape
            tape = _Tape(answer)
            try:
                return await read(tape)
            finally:
                answer.outcome, answer.tokens = tape.outcome, tape.tokens

        result = await self._upstream.call(body, listen, session=session)
        if tape is not None and tape.outcome == "ok" and not tape.is_full:
            await self._cache.put(key, tape.heard)
        return result


class _Tape:
    """An answer that remembers what was read of it, unless it is too long to be kept."""

    def __init__(self, answer: Body) -> None:
        self.request_id = answer.request_id
        self.outcome = answer.outcome
        self.tokens = answer.tokens
        self.is_full = False
        self._answer = answer
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def heard(self) -> bytes:
        return b"".join(self._pieces)

    @property
    def is_labelled_whole(self) -> bool:
        return self._answer.is_labelled_whole

    @property
    def content_type(self) -> str:
        return self._answer.content_type

    @property
    def at_end(self) -> bool:
        return self._answer.at_end

    def read_now(self) -> bytes:
        return self._note(self._answer.read_now())

    async def read_some(self) -> bytes:
        return self._note(await self._answer.read_some())

    def _note(self, piece: bytes) -> bytes:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > MAX_BODY_BYTES:
            self.is_full = True
            self._pieces.clear()
        return piece


class _Kept:
    """An answer that was kept: all of it is there, and it is no new request."""

    request_id: str | None = None
    is_labelled_whole = False
    content_type = ""

    def __init__(self, body: bytes) -> None:
        self.outcome: Outcome = "ok"
        self.tokens: int | None = None
        self._body = body
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._body)

    def read_now(self) -> bytes:
        piece = self._body[self._at : self._at + PIECE_BYTES]
        self._at += len(piece)
        return piece

    async def read_some(self) -> bytes:
        await asyncio.sleep(0)  # others get their turn: nothing else in the reading of a long reply waits
        return self.read_now()
