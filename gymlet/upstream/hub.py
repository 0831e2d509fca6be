"""One limiter for several processes: the hub has the pools, the others ask it, over a Unix socket or another way.

What a process holds comes back when its connection ends, however it ended. ``upstream.borrowed`` is the other side,
``upstream.messages`` what they say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from gymlet.upstream.lane import Outcome
from gymlet.upstream.limiter import LocalLimiter, Permit, TurnedAway
from gymlet.upstream.limiters import PoolSpec
from gymlet.upstream.messages import (
    MAX_LINE_BYTES,
    Answered,
    Asked,
    Ended,
    Lent,
    Opened,
    Outbox,
    Refused,
    Show,
    Shown,
    ToHub,
    Withdrawn,
    Writer,
    to_hub,
)
from gymlet.upstream.pool import Ask, Waiting

log = logging.getLogger(__name__)


class Account:
    """What one borrower has of a limiter: permits, and asks that wait. Owns them until it is closed.

    ``outbox`` is for the borrower, whose own the numbers are.
    """

    def __init__(self, limiter: LocalLimiter, outbox: Outbox) -> None:
        self._limiter = limiter
        self._outbox = outbox
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

    def show(self, number: int) -> None:
        """Tell the state of the pool."""
        self._outbox.post(Shown(number, self._limiter.state()))

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
            self._limiter.withdraw(waiting)
            self._refuse(number, error)
        else:
            self._lend(number, waiting)

    def _lend(self, number: int, waiting: Waiting) -> None:
        try:
            permit = self._permits[number] = self._limiter.permit(waiting)
        except TurnedAway as answer:
            self._refuse(number, answer)
        else:
            self._outbox.post(Lent(number, permit.lane, permit.place))

    def _refuse(self, number: int, answer: TurnedAway) -> None:
        self._outbox.post(Refused(number, answer.refusal))


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
                borrower.take(line)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the process ended, or this one does
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("a process asked for permits in words that cannot be read: %s", error)
        finally:
            borrower.close()
            writer.close()


class Borrower:
    """What the hub knows of one that asks it. Owns its accounts; answers go to ``writer``."""

    def __init__(self, limiters: dict[str, LocalLimiter], writer: Writer) -> None:
        self._limiters = limiters
        self._outbox = Outbox(writer)
        self._accounts: dict[str, Account] = {}

    def take(self, line: bytes) -> None:
        """Carry out what a line says."""
        for message in to_hub.decode(line):
            self._take(message)

    def close(self) -> None:
        """The process is gone: everything it had comes back."""
        for account in self._accounts.values():
            account.close()

    def _take(self, message: ToHub) -> None:
        if isinstance(message, Opened):
            self._open(message.spec)
            return
        account = self._accounts.get(message.pool)
        if account is None:
            return  # it was taken for lost, and does not know it yet
        match message:
            case Asked(_, number):
                account.ask(number, message.ask)
            case Answered(_, number):
                account.answered(number)
            case Ended(_, number, outcome, wait_s, tokens):
                account.end(number, outcome, wait_s=wait_s, tokens=tokens)
            case Withdrawn(_, number):
                account.withdraw(number)
            case Show(_, number):
                account.show(number)

    def _open(self, spec: PoolSpec) -> None:
        if spec.name not in self._limiters:
            self._limiters[spec.name] = LocalLimiter(spec.build())
        if spec.name not in self._accounts:
            self._accounts[spec.name] = Account(self._limiters[spec.name], self._outbox)
