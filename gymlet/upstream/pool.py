"""The queue before a provider's endpoints: who may call next, and where. Pure; the clock is passed in.

First come, first served, over all endpoints; a call that is tried again keeps its place. The least loaded endpoint
takes it, one that it has not tried before if there is a choice; one that has rested enough is asked before the others.
A call that asks for it (``session``) always goes to the same endpoint while that one works: highest random weight
(Thaler and Ravishankar 1996), so that the others stay where they were when one fails.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from gymlet.upstream.lane import OUTCOMES, Grant, Lane, Outcome

Json = dict[str, Any]

Refusal = Literal["queue_full", "queue_timeout", "down", "closed"]
"""Why a call may not go out: too many wait, it waited too long, no endpoint works, or nothing goes out any more."""

DOWN_CHECK_S = 1.0
"""How often those who wait are looked through while no endpoint works."""


FEW = 1000
"""So many who wait no more are not worth looking for."""


class Ask(NamedTuple):
    """What a call wants.

    ``tokens``: its prompt's, by estimate. ``place``: its number from its first ask, to keep its place. ``tried``: the
    lanes that failed it. ``wait_s`` and ``down_wait_s``: how long it waits in the queue, and how long of that while no
    endpoint works.
    """

    tokens: int = 0
    session: str | None = None
    place: int | None = None
    tried: frozenset[int] = frozenset()
    wait_s: float = math.inf
    down_wait_s: float = math.inf


@dataclass(slots=True, order=True)
class Waiting:
    """A call in the queue, until it is granted, refused or withdrawn."""

    place: int
    ask: Ask = field(compare=False)
    since: float = field(compare=False)
    grant: Grant | None = field(default=None, compare=False)
    refusal: Refusal | None = field(default=None, compare=False)
    withdrawn: bool = field(default=False, compare=False)

    @property
    def decided(self) -> bool:
        """Whether it waits no more."""
        return self.withdrawn or self.grant is not None or self.refusal is not None


class Pool:
    """Owns the queue and the lanes. After each call of ``ask``, ``answered`` or ``ended``, ask it to ``decide``."""

    def __init__(self, lanes: Sequence[Lane], *, max_queued: int) -> None:
        self.lanes = tuple(lanes)
        self._max_queued = max_queued
        self._places = itertools.count()
        self._anywhere: list[Waiting] = []
        self._bound: list[list[Waiting]] = [[] for _ in self.lanes]
        self._deadlines: list[tuple[float, Waiting]] = []
        self._down_since: float | None = None
        self._down_checked = -math.inf
        self.queued = 0

    def ask(self, ask: Ask, now: float) -> Waiting:
        """Go at once where nobody waits and there is room; else join the queue, or be refused where it is full.

        A call that is tried again has its place already.
        """
        waiting = Waiting(next(self._places) if ask.place is None else ask.place, ask, now)
        if not self.queued and (lane := self._somewhere(ask, now)) is not None:
            waiting.grant = lane.take(ask.tokens, now)
        elif ask.place is None and self.queued >= self._max_queued:
            waiting.refusal = "queue_full"
        else:
            self._join(waiting, now)
        return waiting

    def withdraw(self, waiting: Waiting) -> None:
        """Leave the queue."""
        if not waiting.decided:
            waiting.withdrawn = True
            self.queued -= 1

    def decide(self, now: float) -> list[Waiting]:
        """Grant and refuse what can be; returns those that were waiting and wait no more."""
        decided: list[Waiting] = []
        self._move_sessions(now)
        while (granted := self._grant_next(now)) is not None:
            decided.append(granted)
        decided += self._refuse_late(now)
        decided += self._refuse_down(now)
        self.queued -= len(decided)
        self._sweep()
        return decided

    def next_at(self, now: float) -> float | None:
        """When to decide again though nothing has happened; None: no need."""
        if not self.queued:
            return None
        times = [self._deadlines[0][0]] if self._deadlines else []
        for heads, lanes in (
            (self._anywhere, self.lanes),
            *((self._bound[lane.index], (lane,)) for lane in self.lanes),
        ):
            head = _head(heads)
            if head is not None:
                times += (at for lane in lanes if (at := lane.free_at(head.ask.tokens, now)) is not None)
        if self._down_since is not None:
            times.append(self._down_checked + DOWN_CHECK_S)
        return min(times, default=None)

    def answered(self, grant: Grant, now: float) -> None:
        """A granted call has the beginning of a good answer."""
        self.lanes[grant.lane].answered(grant, now)

    def ended(
        self, grant: Grant, outcome: Outcome, now: float, *, wait_s: float = 0.0, tokens: int | None = None
    ) -> None:
        """A granted call is over."""
        self.lanes[grant.lane].ended(grant, outcome, now, wait_s=wait_s, tokens=tokens)

    def to_json(self, now: float) -> Json:
        """The sums over all lanes, the queue, and each lane."""
        lanes = [lane.to_json(now) for lane in self.lanes]
        summed = ("limit", "in_flight", "sent", *OUTCOMES)
        return {**{key: sum(lane[key] for lane in lanes) for key in summed}, "queued": self.queued, "endpoints": lanes}

    def _join(self, waiting: Waiting, now: float) -> None:
        self.queued += 1
        self._enqueue(waiting, now)
        if waiting.ask.wait_s < math.inf:
            heapq.heappush(self._deadlines, (now + waiting.ask.wait_s, waiting))

    def _enqueue(self, waiting: Waiting, now: float) -> None:
        lane = self._home(waiting.ask, now) if self._is_bound(waiting.ask) else None
        heapq.heappush(self._anywhere if lane is None else self._bound[lane.index], waiting)

    def _is_bound(self, ask: Ask) -> bool:
        """Whether it matters where it goes."""
        return ask.session is not None and len(self.lanes) > 1

    def _grant_next(self, now: float) -> Waiting | None:
        """The first in line that has somewhere to go."""
        best: tuple[Waiting, Lane, list[Waiting]] | None = None
        for queue, lane in self._heads(now):
            if best is None or queue[0] < best[0]:
                best = queue[0], lane, queue
        if best is None:
            return None
        waiting, lane, queue = best
        heapq.heappop(queue)
        waiting.grant = lane.take(waiting.ask.tokens, now)
        return waiting

    def _heads(self, now: float) -> Iterator[tuple[list[Waiting], Lane]]:
        """Each queue whose first can go, and where to."""
        head = _head(self._anywhere)
        if head is not None and (lane := self._choose(head.ask, now)) is not None:
            yield self._anywhere, lane
        for lane in self.lanes if len(self.lanes) > 1 else ():
            queue = self._bound[lane.index]
            head = _head(queue)
            if head is not None and lane.has_room(head.ask.tokens, now):
                yield queue, lane

    def _choose(self, ask: Ask, now: float) -> Lane | None:
        free = [lane for lane in self.lanes if lane.has_room(ask.tokens, now)]
        if len(free) == 1:
            return free[0]
        return min(free, key=lambda lane: (lane.index in ask.tried, lane.works, lane.load), default=None)

    def _somewhere(self, ask: Ask, now: float) -> Lane | None:
        """Where a call can go now."""
        if not self._is_bound(ask):
            return self._choose(ask, now)
        home = self._home(ask, now)
        return home if home.has_room(ask.tokens, now) else None

    def _home(self, ask: Ask, now: float) -> Lane:
        """Where a session's calls go."""
        by_choice = sorted(self.lanes, key=lambda lane: _affinity(ask.session or "", lane), reverse=True)
        working = [lane for lane in by_choice if lane.takes_calls(now)]
        untried = [lane for lane in working if lane.index not in ask.tried]
        return (untried or working or by_choice)[0]

    def _move_sessions(self, now: float) -> None:
        """Sessions of an endpoint that does not work go on at another one, if one works."""
        for lane, queue in zip(self.lanes, self._bound, strict=True):
            if queue and not lane.takes_calls(now) and any(other.takes_calls(now) for other in self.lanes):
                moved, queue[:] = list(queue), []
                for waiting in moved:
                    if not waiting.decided:
                        self._enqueue(waiting, now)

    def _refuse_late(self, now: float) -> Iterator[Waiting]:
        while self._deadlines and (self._deadlines[0][1].decided or self._deadlines[0][0] <= now):
            waiting = heapq.heappop(self._deadlines)[1]
            if not waiting.decided:
                waiting.refusal = "queue_timeout"
                yield waiting

    def _refuse_down(self, now: float) -> Iterator[Waiting]:
        """Those who have waited too long for any endpoint to work again."""
        if any(lane.works for lane in self.lanes):
            self._down_since = None
            return
        if self._down_since is None:
            self._down_since = now
        if now < self._down_checked + DOWN_CHECK_S:
            return
        self._down_checked = now
        for waiting in self._all_waiting():
            if now >= max(waiting.since, self._down_since) + waiting.ask.down_wait_s:
                waiting.refusal = "down"
                yield waiting

    def _sweep(self) -> None:
        """Forget those behind the first in line who wait no more, once they are the most."""
        if len(self._deadlines) <= 2 * self.queued + FEW:
            return
        self._deadlines = [each for each in self._deadlines if not each[1].decided]
        heapq.heapify(self._deadlines)
        for queue in (self._anywhere, *self._bound):
            queue[:] = [each for each in queue if not each.decided]
            heapq.heapify(queue)

    def _all_waiting(self) -> Iterable[Waiting]:
        return (each for queue in (self._anywhere, *self._bound) for each in queue if not each.decided)


def _head(queue: list[Waiting]) -> Waiting | None:
    """The first that still waits."""
    while queue and queue[0].decided:
        heapq.heappop(queue)
    return queue[0] if queue else None


def _affinity(session: str, lane: Lane) -> float:
    digest = hashlib.blake2b(f"{session}\0{lane.index}\0{lane.name}".encode(), digest_size=8).digest()
    share = (int.from_bytes(digest) + 1) / (2**64 + 1)
    return -lane.weight / math.log(share)
