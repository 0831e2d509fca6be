"""One limiter for several processes: the hub has the pools, the others ask it, over a Unix socket or another way.

Each line is a JSON object. A process says ``open`` with what a pool is made of, then ``ask``, ``answered``, ``end`` and
``withdraw`` with a number of its own for each call; the hub answers with that number, and a lane or a refusal. What a
process holds comes back when its connection ends, however it ended. ``upstream.borrowed`` is the other side.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson

from gymlet.upstream.lane import LaneLimits, Outcome
from gymlet.upstream.limiter import LocalLimiter, Permit, TurnedAway
from gymlet.upstream.limiters import PoolSpec
from gymlet.upstream.pool import Ask, Waiting

Json = dict[str, Any]
MAX_LINE_BYTES = 1 << 20


class Writer(Protocol):
    """Where lines go."""

    def write(self, data: bytes) -> None:
        """Send, now or soon."""
        ...

    def close(self) -> None:
        """Send nothing more."""
        ...


class Account:
    """What one borrower has of a limiter: permits, and asks that wait. Owns them until it is closed.

    ``tell`` takes what the borrower is to hear; its numbers are its own.
    """

    def __init__(self, limiter: LocalLimiter, tell: Callable[[Json], None]) -> None:
        self._limiter = limiter
        self._tell = tell
        self._permits: dict[int, Permit] = {}
        self._waiting: dict[int, Waiting] = {}

    def ask(self, number: int, ask: Ask) -> None:
        """Tell lane and place of a permit, or why there is none, now or later."""
        try:
            waiting = self._limiter.ask(ask)
        except TurnedAway as answer:
            self._refuse(number, answer)
            return
        if waiting.decided:
            self._lend(number, waiting)
        else:
            self._waiting[number] = waiting
            self._limiter.wake(waiting).add_done_callback(partial(self._end_wait, number))

    def answered(self, number: int) -> None:
        """See Permit.answered."""
        if (permit := self._permits.get(number)) is not None:
            permit.answered()

    def end(self, number: int, outcome: Outcome, *, wait_s: float = 0.0, tokens: int | None = None) -> None:
        """See Permit.end."""
        if (permit := self._permits.pop(number, None)) is not None:
            permit.end(outcome, wait_s=wait_s, tokens=tokens)

    def withdraw(self, number: int) -> None:
        """Ask no more; a permit that was given meanwhile goes back."""
        if (waiting := self._waiting.pop(number, None)) is not None:
            self._limiter.withdraw(waiting)
        self.end(number, "left")

    def close(self) -> None:
        """Give everything back."""
        for number in {*self._waiting, *self._permits}:
            self.withdraw(number)

    def _end_wait(self, number: int, wake: asyncio.Future[None]) -> None:
        error = wake.exception()
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return  # it was withdrawn meanwhile
        if isinstance(error, TurnedAway):
            self._refuse(number, error)
        else:
            self._lend(number, waiting)

    def _lend(self, number: int, waiting: Waiting) -> None:
        try:
            permit = self._permits[number] = self._limiter.permit(waiting)
        except TurnedAway as answer:
            self._refuse(number, answer)
        else:
            self._tell({"id": number, "lane": permit.lane, "place": permit.place})

    def _refuse(self, number: int, answer: TurnedAway) -> None:
        self._tell({"id": number, "refusal": answer.refusal})


class Hub:
    """Lends permits to other processes. Owns the pools, made when somebody first asks for one."""

    def __init__(self) -> None:
        self._limiters: dict[str, LocalLimiter] = {}

    @asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[None]:
        """Listen on a Unix socket."""
        server = await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE_BYTES)
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        borrower = Borrower(self._limiters, writer)
        try:
            while line := await reader.readline():
                await borrower.take(orjson.loads(line))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the process ended, or this one does
        finally:
            borrower.close()
            writer.close()


class Borrower:
    """What the hub knows of one that asks it. Owns its accounts; answers go to ``writer``."""

    def __init__(self, limiters: dict[str, LocalLimiter], writer: Writer) -> None:
        self._limiters = limiters
        self._writer = writer
        self._accounts: dict[str, Account] = {}

    async def take(self, message: Json) -> None:
        """Carry out one message."""
        name, number = message["pool"], message.get("id", 0)
        match message["op"]:
            case "open":
                self._open(name, message["spec"])
            case "ask":
                self._accounts[name].ask(number, _read_ask(message["ask"]))
            case "answered":
                self._accounts[name].answered(number)
            case "end":
                if message["answered"]:
                    self._accounts[name].answered(number)
                self._accounts[name].end(number, message["outcome"], wait_s=message["wait_s"], tokens=message["tokens"])
            case "withdraw":
                self._accounts[name].withdraw(number)
            case "show":
                self._tell({"id": number, "shown": await self._limiters[name].to_json()})

    def close(self) -> None:
        """The process is gone: everything it had comes back."""
        for account in self._accounts.values():
            account.close()

    def _open(self, name: str, spec: Json) -> None:
        if name not in self._limiters:
            lanes = tuple((place, weight) for place, weight in spec["lanes"])
            limits = LaneLimits(**spec["limits"])
            self._limiters[name] = LocalLimiter(PoolSpec(name, lanes, limits, spec["max_queued"]).build())
        self._accounts.setdefault(name, Account(self._limiters[name], self._tell))

    def _tell(self, message: Json) -> None:
        self._writer.write(orjson.dumps(message) + b"\n")


def _read_ask(told: Json) -> Ask:
    waits = {key: math.inf if told[key] is None else told[key] for key in ("wait_s", "down_wait_s")}
    return Ask(told["tokens"], told["session"], told["place"], frozenset(told["tried"]), **waits)
