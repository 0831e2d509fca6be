"""The limiters of another process: they ask its hub, in the words of ``upstream.hub``."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from gymlet.config.schema import ModelOptions
from gymlet.upstream.hub import MAX_LINE_BYTES, Writer
from gymlet.upstream.lane import Outcome
from gymlet.upstream.limiter import Limiter, Permit, TurnedAway
from gymlet.upstream.limiters import PoolSpec
from gymlet.upstream.pool import Ask
from gymlet.upstream.provider import Provider

Json = dict[str, Any]
AGAIN_S = 0.1
"""Between two tries to reach the hub."""

log = logging.getLogger(__name__)


class LostError(Exception):
    """The hub went away before it answered."""


Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, Writer]]]
"""Connects to the hub: answers are read, lines are written. Raises OSError."""


class HubLimiters:
    """The limiters of another process. Owns the connection to it, and dials again when it is lost.

    A hub that comes back knows nothing of the permits that the one before it lent.
    """

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._writer: Writer | None = None
        self._connected = asyncio.Event()
        self._specs: dict[str, Json] = {}
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Json]] = {}

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: Path) -> AsyncIterator[HubLimiters]:
        """Talk to the hub that listens on ``path``. Raises OSError where none does."""
        async with cls(lambda: asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)).talking() as limiters:
            yield limiters

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[HubLimiters]:
        """Talk to the hub, wherever it is. Raises OSError where it does not answer."""
        reader = await self._open()
        listening = asyncio.create_task(self._keep(reader))
        try:
            yield self
        finally:
            listening.cancel()
            self._lose()

    def of(self, provider: Provider, options: ModelOptions) -> Limiter:
        """The limiter for calls to ``provider``."""
        spec = PoolSpec.of(provider, options)
        self._specs[spec.name] = {"op": "open", "pool": spec.name, "spec": asdict(spec)}
        self.tell(self._specs[spec.name])
        return HubLimiter(self, spec.name)

    def tell(self, message: Json) -> None:
        """Say something that needs no answer."""
        if self._writer is not None:
            self._writer.write(orjson.dumps(message) + b"\n")

    async def ask(self, message: Json) -> tuple[int, asyncio.Future[Json]]:
        """Say something; its number, and the answer to come: LostError where the hub went away before it answered."""
        if not self._connected.is_set():
            await self._connected.wait()
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda _: self._replies.pop(number, None))
        self.tell({**message, "id": number})
        return number, reply

    async def _open(self) -> asyncio.StreamReader:
        reader, self._writer = await self._dial()
        for spec in self._specs.values():
            self.tell(spec)
        self._connected.set()
        return reader

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Listen, and connect again whenever the connection ends."""
        while True:
            await self._listen(reader)
            log.warning("the hub that lends permits is gone; connecting again")
            self._lose()
            while not self._connected.is_set():
                await asyncio.sleep(AGAIN_S)
                with suppress(OSError):
                    reader = await self._open()

    def _lose(self) -> None:
        self._connected.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for reply in tuple(self._replies.values()):
            if not reply.done():
                reply.set_exception(LostError())

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                message = orjson.loads(line)
                reply = self._replies.get(message["id"])
                if reply is not None and not reply.done():
                    reply.set_result(message)


class HubLimiter:
    """One pool of the hub. Owns the asks that wait."""

    def __init__(self, hub: HubLimiters, pool: str) -> None:
        self._hub = hub
        self._pool = pool
        self._waiting: set[asyncio.Future[Json]] = set()
        self._closed = False

    async def acquire(self, ask: Ask) -> Permit:
        """Wait for a permit. Raises TurnedAway."""
        while not self._closed:
            number, reply = await self._hub.ask({"op": "ask", "pool": self._pool, "ask": _write_ask(ask)})
            self._waiting.add(reply)
            try:
                answer = await reply
            except LostError:
                continue
            except BaseException:
                self.tell(number, "withdraw")
                raise
            finally:
                self._waiting.discard(reply)
            if "refusal" in answer:
                raise TurnedAway(answer["refusal"])
            return HubPermit(self, number, answer["lane"], answer["place"])
        raise TurnedAway("closed")

    async def to_json(self) -> Json:
        """What may be told of the pool."""
        while True:
            _, reply = await self._hub.ask({"op": "show", "pool": self._pool})
            with suppress(LostError):
                shown: Json = (await reply)["shown"]
                return shown

    def close(self) -> None:
        """Ask no more: whoever waits, or comes, is turned away."""
        self._closed = True
        for reply in tuple(self._waiting):
            if not reply.done():
                reply.set_exception(TurnedAway("closed"))

    def tell(self, number: int, op: str, **facts: Any) -> None:
        """What became of an ask, or of its permit."""
        self._hub.tell({"op": op, "pool": self._pool, "id": number, **facts})


def _write_ask(ask: Ask) -> Json:
    """As JSON, where an endless wait is null."""
    return {
        "tokens": ask.tokens,
        "session": ask.session,
        "place": ask.place,
        "tried": [*ask.tried],
        "wait_s": ask.wait_s,
        "down_wait_s": ask.down_wait_s,
    }


class HubPermit:
    """A permit that the hub lent."""

    __slots__ = ("_limiter", "_number", "_telling", "lane", "place")

    def __init__(self, limiter: HubLimiter, number: int, lane: int, place: int) -> None:
        self._limiter = limiter
        self._number = number
        self._telling: asyncio.Handle | None = None
        self.lane = lane
        self.place = place

    def answered(self) -> None:
        """A good answer began. If it ends in the same turn of the loop, both are told at once."""
        self._telling = asyncio.get_running_loop().call_soon(self._tell_answered)

    def end(self, outcome: Outcome, *, wait_s: float = 0.0, tokens: int | None = None) -> None:
        """The call is over; see Lane.ended."""
        answered = self._telling is not None
        if self._telling is not None:
            self._telling.cancel()
        self._limiter.tell(self._number, "end", answered=answered, outcome=outcome, wait_s=wait_s, tokens=tokens)

    def _tell_answered(self) -> None:
        self._telling = None
        self._limiter.tell(self._number, "answered")
