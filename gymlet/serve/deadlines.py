"""Who owes us bytes, and by when: one timer for all of them, however many they are."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Debtors with the same time to pay, the longest waiting first; ``on_overdue`` is told each. Owns the timer."""

    def __init__(self, timeout_s: float, on_overdue: Callable[[T], None]) -> None:
        self.timeout_s = timeout_s
        self._on_overdue = on_overdue
        self._loop = asyncio.get_running_loop()
        self._due: OrderedDict[T, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, debtor: T) -> bool:
        return debtor in self._due

    def __len__(self) -> int:
        return len(self._due)

    def begin(self, debtor: T) -> None:
        """Its time begins, or begins anew."""
        self._due[debtor] = self._loop.time() + self.timeout_s
        self._due.move_to_end(debtor)
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._look)

    def end(self, debtor: T) -> None:
        """It owes nothing any more."""
        self._due.pop(debtor, None)

    def stop(self) -> None:
        """Forget them all."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due and next(iter(self._due.values())) <= now:
            self._on_overdue(self._due.popitem(last=False)[0])
        if self._due and self._timer is None:
            self._timer = self._loop.call_at(next(iter(self._due.values())), self._look)
