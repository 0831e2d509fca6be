"""Which rollout is which, and how often it failed."""

from __future__ import annotations

from typing import Any

from gymlet.rollout.compact import KeySet
from gymlet.rollout.metrics import ROLLOUT, TASK

Json = dict[str, Any]
Key = tuple[int, int]
"""A task's index and its rollout's index."""


def key_of(row: Json) -> Key:
    """Which rollout a row is of."""
    return row[TASK], row[ROLLOUT]


class Attempts:
    """How often each rollout failed: one set of keys for each number of times."""

    def __init__(self) -> None:
        self._levels: list[KeySet] = []

    def __getitem__(self, key: Key) -> int:
        for times, level in enumerate(self._levels):
            if key not in level:
                return times
        return len(self._levels)

    def add(self, key: Key) -> int:
        """Count one more failure; returns how many there are now."""
        for times, level in enumerate(self._levels, start=1):
            if level.add(*key):
                return times
        level = KeySet()
        level.add(*key)
        self._levels.append(level)
        return len(self._levels)
