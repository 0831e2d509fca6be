"""How many calls at once, and how many a minute: found out, and kept to. Pure; the clock is passed in.

The limit is found as TCP finds its window (Jacobson 1988; AIMD after Chiu and Jain 1989): it doubles with every round
of good answers until the provider refuses one, is halved, and grows by a twentieth a round. Later refusals take off as
much as is refused (what comes by chance takes off little, what comes of being one too many soon is enough), and the
level at which they came is remembered: the limit goes back to just below it and looks beyond it only now and then, so
that few calls are spent on finding out what is known.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

START = 16
FIRST_CUT = 0.5
LEAST_CUT, MOST_CUT = 0.03, 0.3
MEMORY = 30
"""Over how many calls, roughly, the share of the refused is taken."""

STEP = 0.05
"""What a round of good answers adds, as a share of the limit; 1 at least."""

OFTEN_S, SOME, MANY = 5.0, 0.01, 0.1
"""Refusals that come so often, and are such a share of the calls, come by chance: at any level, and tell none."""

NEAR = 0.97
"""How near to the level of the last refusal the limit goes by itself."""

PROBE_S = 10.0
"""Between two looks beyond that level."""

PAUSE_S = 1.0
"""How long nothing grows after a provider's own failure (5xx); then it may for as long, though more of them come."""

MINUTE_S = 60.0


class AdaptiveLimit:
    """The most calls at once, from 1 to ``ceiling``. Owns what it has learnt; stays at the ceiling if not adaptive."""

    def __init__(self, ceiling: int, *, adaptive: bool = True) -> None:
        self._ceiling = float(ceiling)
        self._adaptive = adaptive
        self._limit = float(min(START, ceiling)) if adaptive else float(ceiling)
        self._double_below = math.inf
        self._knee = math.inf
        self._knee_at = -math.inf
        self._cut_at = -math.inf
        self._still_until = -math.inf
        self._refused = 0.0
        self._refused_at = -math.inf

    @property
    def now(self) -> int:
        """The most calls at once, now."""
        return int(self._limit)

    def accepted(self, *, saturated: bool, now: float) -> None:
        """A good answer began; ``saturated``: its call had been one of as many as were allowed."""
        self._refused -= self._refused / MEMORY
        if not saturated or not self._adaptive or now < self._still_until:
            return
        target = self._ceiling
        if now < self._knee_at + PROBE_S:
            target = min(target, max(1.0, self._knee * NEAR))
        if self._limit < target:
            doubling = self._limit < self._double_below
            step = 1.0 if doubling else max(1.0, STEP * self._limit) / self._limit
            self._limit = min(target, self._limit + step)
        if self._limit > self._knee:
            self._knee = math.inf

    def throttled(self, *, sent_at: float, now: float) -> None:
        """The provider refused a call as one too many; those sent before the last cut say nothing new."""
        by_chance = now < self._refused_at + OFTEN_S and SOME < self._refused < MANY
        self._refused_at = now
        self._refused += (1 - self._refused) / MEMORY
        if not self._adaptive or sent_at < self._cut_at:
            return
        if self._double_below == math.inf:
            self._cut(FIRST_CUT, now)
        else:
            if not by_chance:
                self._knee, self._knee_at = self._limit, now
            self._cut(min(MOST_CUT, max(LEAST_CUT, self._refused)), now, at_least_one=not by_chance)
        self._double_below = 0.0

    def unreachable(self, *, sent_at: float, now: float) -> None:
        """A connection was refused. Once the provider is back, half of what it took comes back by doubling."""
        if not self._adaptive or sent_at < self._cut_at:
            return
        known = 0.0 if self._double_below == math.inf else self._double_below
        self._double_below = max(known, FIRST_CUT * self._limit)
        self._cut(MOST_CUT, now)

    def faltered(self, *, now: float) -> None:
        """The provider failed by itself: no time to ask for more."""
        if now >= self._still_until + PAUSE_S:
            self._still_until = now + PAUSE_S

    def _cut(self, share: float, now: float, *, at_least_one: bool = True) -> None:
        cut = self._limit * (1 - share)
        self._limit = max(1.0, min(cut, self._limit // 1 - 1) if at_least_one else cut)
        self._cut_at = now


@dataclass(slots=True)
class Spent:
    """What one call took of a window, and when."""

    at: float
    amount: float


class Window:
    """At most ``most`` (requests, or tokens) within any ``span_s``. Owns what was spent in the last span."""

    def __init__(self, most: int, span_s: float = MINUTE_S) -> None:
        self.most = most
        self._span_s = span_s
        self._entries: deque[Spent] = deque()
        self._sum = 0.0

    def free_at(self, amount: float, now: float) -> float:
        """When so much may be spent: ``now``, or later. What is more than ``most`` needs an empty window."""
        self._forget(now)
        over = self._sum + min(amount, self.most) - self.most
        at = now
        for entry in self._entries:
            if over <= 0:
                break
            over -= entry.amount
            at = entry.at + self._span_s
        return at

    def spend(self, amount: float, now: float) -> Spent:
        """Take it."""
        entry = Spent(now, amount)
        self._entries.append(entry)
        self._sum += amount
        return entry

    def correct(self, entry: Spent, amount: float, now: float) -> None:
        """What the call really took, now that it is known."""
        self._forget(now)
        if now < entry.at + self._span_s:
            self._sum += amount - entry.amount
        entry.amount = amount

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0].at + self._span_s <= now:
            self._sum -= self._entries.popleft().amount
        if not self._entries:
            self._sum = 0.0  # what rounding left
