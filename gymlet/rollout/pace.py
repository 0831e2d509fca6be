"""How fast a run goes, and when it will be over: of this run only, whatever an earlier one did."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
"""How far back the rate looks: far enough for slow rollouts, near enough to see a provider slow down."""


class Pace:
    """Takes how many rollouts have ended, and when; tells the rate. Owns the samples of the last minute."""

    def __init__(self, now_s: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now_s, 0)])

    def add(self, now_s: float, ended: int) -> None:
        """So many have ended since the run began."""
        self._samples.append((now_s, ended))
        while len(self._samples) > 2 and self._samples[1][0] < now_s - WINDOW_S:
            self._samples.popleft()

    @property
    def per_s(self) -> float:
        """Rollouts a second."""
        (then_s, before), (now_s, ended) = self._samples[0], self._samples[-1]
        return (ended - before) / (now_s - then_s) if now_s > then_s else 0.0

    def left_s(self, remaining: int) -> float | None:
        """The seconds that as many again take; None while nobody can know."""
        return remaining / self.per_s if self.per_s > 0 else None
