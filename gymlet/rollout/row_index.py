"""The first row of each task in a file, found again without holding any."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.compact import TaskCounts
from gymlet.rollout.files import scan

Json = dict[str, Any]


class RowIndex:
    """Where each task's first row stands: 16 bytes a task. Use it as a context manager, which keeps the file open."""

    def __init__(self, path: Path) -> None:
        """Reads the file once. Raises RequestError with the line of one that is no row of a run."""
        seen = TaskCounts()
        tasks, offsets = array("q"), array("q")
        for line in scan(path):
            if seen.add(line.key[0]) == 0:
                tasks.append(line.key[0])
                offsets.append(line.offset)
        if any(tasks[at] > tasks[at + 1] for at in range(len(tasks) - 1)):
            places = sorted(zip(tasks, offsets, strict=True))
            tasks, offsets = array("q", [task for task, _ in places]), array("q", [offset for _, offset in places])
        self._tasks, self._offsets = tasks, offsets
        self._path = path

    def __enter__(self) -> RowIndex:
        self._file = self._path.open("rb")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()

    def get(self, task: int) -> Json | None:
        """The first row of a task; None if it has none."""
        at = bisect_left(self._tasks, task)
        if at == len(self._tasks) or self._tasks[at] != task:
            return None
        self._file.seek(self._offsets[at])
        row: Json = orjson.loads(self._file.readline())
        return row
