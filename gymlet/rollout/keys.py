"""Which rollout is which: keys, and sets of them that stay small when there are millions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gymlet.rollout.metrics import ROLLOUT, TASK

Json = dict[str, Any]
Key = tuple[int, int]
"""A task's index and its rollout's index."""

_SHIFT = 4
_SIDE = 1 << _SHIFT
_MASK = _SIDE - 1


def key_of(row: Json) -> Key:
    """Which rollout a row is of."""
    return row[TASK], row[ROLLOUT]


class Keys:
    """A set of keys, kept as tiles of 16 tasks by 16 rollouts, a bit each.

    A million keys that lie close together take some 12 MB (a set of tuples: 150); scattered ones take no more than in
    a set.
    """

    def __init__(self) -> None:
        self._tiles: dict[Key, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Key]:
        for (task, rollout), tile in self._tiles.items():
            for bit in range(_SIDE * _SIDE):
                if tile >> bit & 1:
                    yield task << _SHIFT | bit >> _SHIFT, rollout << _SHIFT | bit & _MASK

    def __contains__(self, key: Key) -> bool:
        task, rollout = key
        tile = self._tiles.get((task >> _SHIFT, rollout >> _SHIFT))
        return tile is not None and tile >> ((task & _MASK) << _SHIFT | rollout & _MASK) & 1 == 1

    def add(self, key: Key) -> bool:
        """Put a key in; False if it was there."""
        task, rollout = key
        place = (task >> _SHIFT, rollout >> _SHIFT)
        bit = 1 << ((task & _MASK) << _SHIFT | rollout & _MASK)
        tile = self._tiles.get(place, 0)
        if tile & bit:
            return False
        self._tiles[place] = tile | bit
        self._count += 1
        return True


class Attempts:
    """How often each rollout failed: one set for each number of times."""

    def __init__(self) -> None:
        self._levels: list[Keys] = []

    def __len__(self) -> int:
        """How many rollouts failed at all."""
        return len(self._levels[0]) if self._levels else 0

    def __getitem__(self, key: Key) -> int:
        for times, level in enumerate(self._levels):
            if key not in level:
                return times
        return len(self._levels)

    def at_least(self, times: int) -> Keys:
        """The rollouts that failed so often."""
        return self._levels[times - 1] if times <= len(self._levels) else Keys()

    def add(self, key: Key) -> int:
        """Count one more failure; returns how many there are now."""
        for times, level in enumerate(self._levels, start=1):
            if level.add(key):
                return times
        level = Keys()
        level.add(key)
        self._levels.append(level)
        return len(self._levels)
