"""Permits to call a provider. One small interface: who holds the pool (this process, its parent, a node elsewhere) is
behind it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from gymlet.upstream.lane import Grant, Outcome
from gymlet.upstream.pool import Ask, Pool, Refusal, Waiting

Json = dict[str, Any]


class TurnedAway(Exception):  # noqa: N818  it is an answer, not a fault
    """A call may not go out."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class Permit(Protocol):
    """One call may go out, by the lane of this number; ``end`` gives the permit back."""

    @property
    def lane(self) -> int:
        """Which of the provider's endpoints."""
        ...

    @property
    def place(self) -> int:
        """The call's number, to keep its place when it is tried again."""
        ...

    def answered(self) -> None:
        """A good answer began."""
        ...

    def end(self, outcome: Outcome, *, wait_s: float = 0.0, tokens: int | None = None) -> None:
        """The call is over; see Lane.ended."""
        ...


class Limiter(Protocol):
    """Lends permits."""

    async def acquire(self, ask: Ask) -> Permit:
        """Wait for a permit. Raises TurnedAway."""
        ...

    async def to_json(self) -> Json:
        """What may be told of the pool."""
        ...

    def close(self) -> None:
        """Lend no more: whoever waits, or comes, is turned away."""
        ...


class LocalLimiter:
    """The pool is this process's own. Owns it, and who waits for it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wakes: dict[int, asyncio.Future[None]] = {}  # by identity: places of a hub that is gone may come again
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._closed = False

    async def acquire(self, ask: Ask) -> Permit:
        """Wait for a permit. Raises TurnedAway."""
        waiting = self.ask(ask)
        if not waiting.decided:
            try:
                await self.wake(waiting)
            except BaseException:
                self.withdraw(waiting)
                raise
        return self.permit(waiting)

    def ask(self, ask: Ask) -> Waiting:
        """What is decided at once, or in the queue from now on. Raises TurnedAway."""
        if self._closed:
            raise TurnedAway("closed")
        waiting = self._pool.ask(ask, asyncio.get_running_loop().time())
        if not waiting.decided:
            self.settle()
        return waiting

    def wake(self, waiting: Waiting) -> asyncio.Future[None]:
        """Done once that is decided, unless it is withdrawn before; TurnedAway, once nothing is lent any more."""
        wake = self._wakes[id(waiting)] = asyncio.get_running_loop().create_future()
        return wake

    def withdraw(self, waiting: Waiting) -> None:
        """Leave the queue; what was granted meanwhile goes back."""
        self._wakes.pop(id(waiting), None)
        self._pool.withdraw(waiting)
        if waiting.grant is not None:
            self.ended(waiting.grant, "left")

    def permit(self, waiting: Waiting) -> Permit:
        """What was decided. Raises TurnedAway."""
        if waiting.grant is None:
            raise TurnedAway(waiting.refusal or "queue_timeout")
        return LocalPermit(self, waiting.grant, waiting.place)

    async def to_json(self) -> Json:
        """What may be told of the pool."""
        return self.state()

    def state(self) -> Json:
        """The same, at once."""
        return self._pool.to_json(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Lend no more: whoever waits, or comes, is turned away."""
        self._closed = True
        for wake in self._wakes.values():
            if not wake.done():
                wake.set_exception(TurnedAway("closed"))
        self._wakes.clear()
        self._set_timer(None)

    def answered(self, grant: Grant) -> None:
        """See Pool.answered."""
        self._pool.answered(grant, asyncio.get_running_loop().time())
        self.settle()

    def ended(self, grant: Grant, outcome: Outcome, *, wait_s: float = 0.0, tokens: int | None = None) -> None:
        """See Pool.ended."""
        self._pool.ended(grant, outcome, asyncio.get_running_loop().time(), wait_s=wait_s, tokens=tokens)
        self.settle()

    def settle(self) -> None:
        """Let go out what can, and come back when time makes room."""
        if not self._pool.queued:
            return
        now = asyncio.get_running_loop().time()
        for waiting in self._pool.decide(now):
            wake = self._wakes.pop(id(waiting), None)
            if wake is not None and not wake.done():
                wake.set_result(None)
        self._set_timer(None if self._closed else self._pool.next_at(now))

    def _set_timer(self, at: float | None) -> None:
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at is None else asyncio.get_running_loop().call_at(at, self._on_timer)
        self._timer_at = at

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self.settle()


class LocalPermit:
    """A grant of this process's own pool."""

    __slots__ = ("_grant", "_limiter", "place")

    def __init__(self, limiter: LocalLimiter, grant: Grant, place: int) -> None:
        self._limiter = limiter
        self._grant = grant
        self.place = place

    @property
    def lane(self) -> int:
        """Which of the provider's endpoints."""
        return self._grant.lane

    def answered(self) -> None:
        """A good answer began."""
        self._limiter.answered(self._grant)

    def end(self, outcome: Outcome, *, wait_s: float = 0.0, tokens: int | None = None) -> None:
        """The call is over; see Lane.ended."""
        self._limiter.ended(self._grant, outcome, wait_s=wait_s, tokens=tokens)
