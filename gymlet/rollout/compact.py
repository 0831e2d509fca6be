"""What must be known of every row of a run, in a few bytes a row: a million rows fit beside everything else.

Indices of tasks and rollouts are usually dense (0, 1, 2, …): arrays and bitmaps hold those. A data set may stamp any
others; they cost more, and are right all the same.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Iterator, Mapping

_FREE = 1024
_PLACES_A_TASK = 16
"""An array may have so many places for each task in it: 64 bytes, less than a dictionary's entry takes."""

_TAG_BYTES, _NUMBER_BYTES = 10, 6
_RECORD_BYTES = _TAG_BYTES + _NUMBER_BYTES


class TaskCounts:
    """A count for each task; 4 bytes a task where the indices are dense."""

    def __init__(self) -> None:
        self._dense = array("I")
        self._others: dict[int, int] = {}
        self._tasks = 0
        self.total = 0

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> TaskCounts:
        """The counts of a mapping."""
        kept = cls()
        for task, count in counts.items():
            kept.add(task, count)
        return kept

    def add(self, task: int, count: int = 1) -> int:
        """Count ``count`` more of a task; how many there were before."""
        self.total += count
        before = self.get(task)
        self._tasks += before == 0
        if 0 <= task < _FREE + _PLACES_A_TASK * self._tasks:
            if task >= len(self._dense):
                self._dense.extend([self._others.pop(at, 0) for at in range(len(self._dense), task + 1)])
            self._dense[task] = before + count
        else:
            self._others[task] = before + count
        return before

    def get(self, task: int) -> int:
        """How many there are of a task."""
        return self._dense[task] if 0 <= task < len(self._dense) else self._others.get(task, 0)

    def tasks(self) -> Iterator[int]:
        """The tasks that were counted, in order."""
        dense = (task for task, count in enumerate(self._dense) if count)
        return heapq.merge(dense, sorted(self._others))


class KeySet:
    """A set of (task, rollout); 64 neighbours share one integer.

    A million keys take 2 MB with eight rollouts of each task and 14 MB with one, where indices are dense.
    """

    def __init__(self) -> None:
        self._tiles: dict[_Tile, int] = {}
        self._count = 0

    def add(self, task: int, rollout: int) -> bool:
        """Put a key in; False if it was in."""
        tile, bit = _place(task, rollout)
        bits = self._tiles.get(tile, 0)
        if bits & bit:
            return False
        self._tiles[tile] = bits | bit
        self._count += 1
        return True

    def discard(self, task: int, rollout: int) -> bool:
        """Take a key out; False if it was not in."""
        tile, bit = _place(task, rollout)
        bits = self._tiles.get(tile, 0)
        if not bits & bit:
            return False
        self._tiles[tile] = bits ^ bit
        self._count -= 1
        return True

    def __contains__(self, key: tuple[int, int]) -> bool:
        tile, bit = _place(*key)
        return bool(self._tiles.get(tile, 0) & bit)

    def __len__(self) -> int:
        return self._count


class LineNumbers:
    """Numbers distinct lines in the order of their first coming; about 30 bytes a line, however long it is.

    A line is known by 96 bits of its digest: among a billion lines the chance that any two are confused is 10⁻¹¹.
    """

    def __init__(self) -> None:
        self._parts: dict[bytes, bytearray] = {}
        self.count = 0

    def number(self, line: bytes) -> int:
        """The line's number, from 0."""
        digest = hashlib.blake2b(line, digest_size=_TAG_BYTES + 2).digest()
        part = self._parts.setdefault(digest[:2], bytearray())
        tag = digest[2:]
        at = part.find(tag)
        while at > 0 and at % _RECORD_BYTES:
            at = part.find(tag, at + 1)
        if at >= 0:
            return int.from_bytes(part[at + _TAG_BYTES : at + _RECORD_BYTES], "little")
        part += tag + self.count.to_bytes(_NUMBER_BYTES, "little")
        self.count += 1
        return self.count - 1


_Tile = int | tuple[int, int]


def _place(task: int, rollout: int) -> tuple[_Tile, int]:
    """The tile of 8 tasks by 8 rollouts that holds a key, and the key's bit in it."""
    row, column = task >> 3, rollout >> 3
    tile: _Tile = row << 32 | column if 0 <= column < 1 << 32 else (row, column)
    return tile, 1 << ((task & 7) << 3 | (rollout & 7))
