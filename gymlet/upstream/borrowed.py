"""The limiters of another process: they ask its hub (``upstream.hub``)."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from gymlet.config.schema import ModelOptions
from gymlet.upstream.lane import Outcome
from gymlet.upstream.limiter import Limiter, Permit, TurnedAway
from gymlet.upstream.limiters import PoolSpec
from gymlet.upstream.messages import (
    MAX_LINE_BYTES,
    Answered,
    Asked,
    Ended,
    FromHub,
    Lent,
    Opened,
    Outbox,
    Refused,
    Show,
    Shown,
    ToHub,
    Withdrawn,
    Writer,
    from_hub,
)
from gymlet.upstream.pool import Ask
from gymlet.upstream.provider import Provider

Json = dict[str, Any]
AGAIN_S = 0.1
"""Between two tries to reach the hub."""

log = logging.getLogger(__name__)


class LostError(Exception):
    """No answer is to come: the hub went away, or nothing more is asked."""


Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, Writer]]]
"""Connects to the hub: answers are read, lines are written. Raises OSError."""


class HubLimiters:
    """The limiters of another process. Owns the connection to it, and dials again when it is lost.

    A hub that comes back knows nothing of the permits that the one before it lent.
    """

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._outbox: Outbox | None = None
        self._connected = asyncio.Event()
        self._specs: dict[str, PoolSpec] = {}
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[FromHub]] = {}

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
            if self._outbox is not None:
                self._outbox.send()
            self._lose()

    def of(self, provider: Provider, options: ModelOptions) -> Limiter:
        """The limiter for calls to ``provider``."""
        spec = PoolSpec.of(provider, options)
        self._specs[spec.name] = spec
        self.post(Opened(spec))
        return HubLimiter(self, spec.name)

    def post(self, message: ToHub) -> None:
        """Say something."""
        if self._outbox is not None:
            self._outbox.post(message)

    async def number(self) -> int:
        """A number for an ask, once the hub hears it."""
        if not self._connected.is_set():
            await self._connected.wait()
        return next(self._numbers)

    def expect(self, number: int) -> asyncio.Future[FromHub]:
        """The answer to come, until ``forget``; LostError where the hub goes away before."""
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        return answer

    def forget(self, number: int) -> None:
        """Expect no answer."""
        self._answers.pop(number, None)

    async def _open(self) -> asyncio.StreamReader:
        reader, writer = await self._dial()
        self._outbox = Outbox(writer)
        for spec in self._specs.values():
            self.post(Opened(spec))
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
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        for answer in tuple(self._answers.values()):
            if not answer.done():
                answer.set_exception(LostError())

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Until the connection ends, or what comes over it cannot be read."""
        with suppress(ConnectionError, ValueError, msgspec.DecodeError):
            while line := await reader.readline():
                for message in from_hub.decode(line):
                    answer = self._answers.get(message.id)
                    if answer is not None and not answer.done():
                        answer.set_result(message)


class HubLimiter:
    """One pool of the hub. Owns the asks that wait."""

    def __init__(self, hub: HubLimiters, pool: str) -> None:
        self._hub = hub
        self._pool = pool
        self._waiting: set[asyncio.Future[FromHub]] = set()
        self._closed = False

    async def acquire(self, ask: Ask) -> Permit:
        """Wait for a permit. Raises TurnedAway."""
        while not self._closed:
            with suppress(LostError):
                match await self._ask(lambda number: Asked.of(self._pool, number, ask)):
                    case Refused(_, refusal):
                        raise TurnedAway(refusal)
                    case Lent(number, lane, place):
                        return HubPermit(self._hub, self._pool, number, lane, place)
        raise TurnedAway("closed")

    async def to_json(self) -> Json:
        """What may be told of the pool."""
        while True:
            with suppress(LostError):
                answer = await self._ask(lambda number: Show(self._pool, number))
                assert isinstance(answer, Shown), "each ask has its own number"  # noqa: S101
                return answer.state

    def close(self) -> None:
        """Ask no more: whoever waits, or comes, is turned away."""
        self._closed = True
        for expected in tuple(self._waiting):
            if not expected.done():
                expected.set_exception(LostError())

    async def _ask(self, message: Callable[[int], ToHub]) -> FromHub:
        """The hub's answer to a message with a number. Raises LostError where there is none to come any more."""
        number = await self._hub.number()
        expected = self._hub.expect(number)
        self._waiting.add(expected)
        self._hub.post(message(number))
        try:
            return await expected
        except BaseException:
            self._hub.post(Withdrawn(self._pool, number))
            raise
        finally:
            self._hub.forget(number)
            self._waiting.discard(expected)


class HubPermit:
    """A permit that the hub lent."""

    __slots__ = ("_hub", "_number", "_pool", "lane", "place")

    def __init__(self, hub: HubLimiters, pool: str, number: int, lane: int, place: int) -> None:
        self._hub = hub
        self._pool = pool
        self._number = number
        self.lane = lane
        self.place = place

    def answered(self) -> None:
        """A good answer began."""
        self._hub.post(Answered(self._pool, self._number))

    def end(self, outcome: Outcome, *, wait_s: float = 0.0, tokens: int | None = None) -> None:
        """The call is over; see Lane.ended."""
        self._hub.post(Ended(self._pool, self._number, outcome, wait_s, tokens))
