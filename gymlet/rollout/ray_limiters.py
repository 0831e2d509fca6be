"""One limiter for all nodes of a cluster: an actor has the pools, and lends permits that expire with their borrower.

With fixed limits on each node a provider sees more calls than it allows as soon as one node is lost and another joins:
what the lost one has open still runs. Here each node is a borrower with an account. What a node holds comes back when
it ends a call, and all of it once nothing was heard of the node for ``EXPIRES_S``.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gymlet.config.schema import ModelOptions
from gymlet.upstream.lane import Outcome
from gymlet.upstream.limiter import Limiter, LocalLimiter, Permit, TurnedAway
from gymlet.upstream.limiters import PoolSpec
from gymlet.upstream.pool import Ask
from gymlet.upstream.provider import Provider
from gymlet.upstream.shared import Account

Json = dict[str, Any]
BEAT_S = 1.0
EXPIRES_S = 8.0
"""So many missed beats, and the node is taken for lost."""


class Lender:
    """The actor. Owns the pools, and each borrower's accounts. ``clock`` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limiters: dict[str, LocalLimiter] = {}
        self._accounts: dict[str, dict[str, Account]] = {}
        self._heard: dict[str, float] = {}

    async def acquire(self, borrower: str, spec: PoolSpec, number: int, ask: Ask) -> Json:
        """A permit's ``lane`` and ``place``, or why there is none: ``refusal``."""
        told: asyncio.Queue[Json] = asyncio.Queue()
        self._account(borrower, spec).ask(number, ask, told.put_nowait)
        return await told.get()

    async def answered(self, borrower: str, spec: PoolSpec, number: int) -> None:
        """See Permit.answered."""
        self._account(borrower, spec).answered(number)

    async def end(
        self, borrower: str, spec: PoolSpec, number: int, outcome: Outcome, wait_s: float, tokens: int | None
    ) -> None:
        """See Permit.end."""
        self._account(borrower, spec).end(number, outcome, wait_s=wait_s, tokens=tokens)

    async def withdraw(self, borrower: str, spec: PoolSpec, number: int) -> None:
        """Nobody waits for this permit any more."""
        self._account(borrower, spec).withdraw(number)

    async def beat(self, borrower: str) -> None:
        """The borrower lives; those of whom nothing was heard lose what they hold."""
        now = self._heard[borrower] = self._clock()
        for name in [name for name, heard in self._heard.items() if now - heard > EXPIRES_S]:
            self._forget(name)

    async def to_json(self, spec: PoolSpec) -> Json:
        """What may be told of a pool."""
        return await self._limiter(spec).to_json()

    async def states(self) -> dict[str, Json]:
        """What may be told of all pools."""
        return {name: await limiter.to_json() for name, limiter in self._limiters.items()}

    def _forget(self, borrower: str) -> None:
        del self._heard[borrower]
        for account in self._accounts.pop(borrower, {}).values():
            account.close()

    def _account(self, borrower: str, spec: PoolSpec) -> Account:
        self._heard[borrower] = self._clock()
        accounts = self._accounts.setdefault(borrower, {})
        if spec.name not in accounts:
            accounts[spec.name] = Account(self._limiter(spec))
        return accounts[spec.name]

    def _limiter(self, spec: PoolSpec) -> LocalLimiter:
        if spec.name not in self._limiters:
            self._limiters[spec.name] = LocalLimiter(spec.build())
        return self._limiters[spec.name]


class RayLimiters:
    """The limiters of one node, as the lender has them. Owns the beat; use it as a context manager."""

    def __init__(self, lender: Any, borrower: str) -> None:
        self._lender = lender
        self._borrower = borrower

    async def __aenter__(self) -> RayLimiters:
        self._beat = asyncio.create_task(self._beat_on())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._beat.cancel()
        await asyncio.wait({self._beat})

    def of(self, provider: Provider, options: ModelOptions) -> Limiter:
        """The limiter for calls to ``provider``."""
        return RayLimiter(self._lender, self._borrower, PoolSpec.of(provider, options))

    async def _beat_on(self) -> None:
        while True:
            with suppress(Exception):  # a lender that is gone fails the next call, which says so
                await self._lender.beat.remote(self._borrower)
            await asyncio.sleep(BEAT_S)


class RayLimiter:
    """Asks the lender for each permit."""

    def __init__(self, lender: Any, borrower: str, spec: PoolSpec) -> None:
        self._lender = lender
        self._borrower = borrower
        self._spec = spec
        self._numbers = itertools.count()
        self._closed = False

    async def acquire(self, ask: Ask) -> Permit:
        """Wait for a permit. Raises TurnedAway."""
        if self._closed:
            raise TurnedAway("closed")
        number = next(self._numbers)
        try:
            told = await self._lender.acquire.remote(self._borrower, self._spec, number, ask)
        except asyncio.CancelledError:
            self._lender.withdraw.remote(self._borrower, self._spec, number)
            raise
        if "refusal" in told:
            raise TurnedAway(told["refusal"])
        return RayPermit(self, number, told["lane"], told["place"])

    async def to_json(self) -> Json:
        """What may be told of the pool."""
        state: Json = await self._lender.to_json.remote(self._spec)
        return state

    def close(self) -> None:
        """Ask no more."""
        self._closed = True

    def answered(self, number: int) -> None:
        """See Permit.answered."""
        self._lender.answered.remote(self._borrower, self._spec, number)

    def ended(self, number: int, outcome: Outcome, wait_s: float, tokens: int | None) -> None:
        """See Permit.end."""
        self._lender.end.remote(self._borrower, self._spec, number, outcome, wait_s, tokens)


class RayPermit:
    """A permit of the lender's."""

    __slots__ = ("_limiter", "_number", "lane", "place")

    def __init__(self, limiter: RayLimiter, number: int, lane: int, place: int) -> None:
        self._limiter = limiter
        self._number = number
        self.lane = lane
        self.place = place

    def answered(self) -> None:
        """A good answer began."""
        self._limiter.answered(self._number)

    def end(self, outcome: Outcome, *, wait_s: float = 0.0, tokens: int | None = None) -> None:
        """The call is over; see Lane.ended."""
        self._limiter.ended(self._number, outcome, wait_s, tokens)
