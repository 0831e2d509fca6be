"""What is to be run next: tasks in their order, then those that failed, and last those that a provider failed.

A task that waits to be tried again is kept as its place in the file of tasks, not as a row: a million of them may fail.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import orjson

from gymlet.rollout.files import scan
from gymlet.rollout.keys import Key, key_of
from gymlet.rollout.records import Records
from gymlet.wire.errors import RequestError

Json = dict[str, Any]
Again = Literal["soon", "last", "next run"]

AGAIN: Mapping[str, Again] = {
    "provider_unavailable": "last",
    "provider_rate_limited": "last",
    "provider_quota_exhausted": "next run",
    "provider_rejected": "next run",
    "invalid_row": "next run",
}
"""When a failed rollout is tried again, by its class: the others soon. What would fail alike waits for the next run."""

PAUSE_S = 1.0
MAX_PAUSE_S = 30.0


class Task(NamedTuple):
    """A rollout to be run: its row as it stands in the file of tasks, at ``offset``; ``attempt`` counts from 0."""

    key: Key
    offset: int
    line: bytes
    attempt: int

    def row(self) -> Json:
        """The row as the agent gets it. Raises RequestError where the file of tasks was damaged."""
        try:
            row: Json = orjson.loads(self.line)
        except orjson.JSONDecodeError as error:
            raise RequestError(
                f"the materialized inputs are damaged at task {self.key[0]}, rollout {self.key[1]}: {error}; "
                "without that file, the same command makes it anew"
            ) from None
        return {**row, "_ng_attempt_index": self.attempt} if self.attempt else row


class Todo:
    """Hands out leases of tasks, each to one taker at a time, until ``stop``. Owns what waits to be tried again.

    Use it as a context manager. Every task taken is told about once: ``settle``, ``again`` or ``give_back``.
    """

    def __init__(self, path: Path, records: Records, stop: asyncio.Event) -> None:
        self._path = path
        self._stop = stop
        self._records = records
        self._fresh = self._unfinished()
        self._lost: deque[Task] = deque()
        self._soon: deque[int] = deque()
        self._last: deque[int] = deque()
        self._pausing = 0
        self._out = 0
        self._takers: deque[asyncio.Future[None]] = deque()
        self.over = asyncio.Event()
        """Set when there is nothing more to hand out, now or later."""

    def __enter__(self) -> Todo:
        self._file: BinaryIO = self._path.open("rb")
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()
        self._fresh.close()

    async def take(self, most: int) -> list[Task]:
        """Up to ``most`` tasks; waits while there may be some later; none at the end."""
        await asyncio.sleep(0)  # what ended is written first; nor may an agent that never waits keep all others waiting
        while not self._stop.is_set():
            lease = self._ready(most)
            if lease:
                self._out += len(lease)
                return lease
            if not self._out and not self._pausing:
                break
            await self._wait()
        self.over.set()
        return []

    def close(self) -> None:
        """Send those away who wait."""
        self.over.set()
        self._wake_all()

    def settle(self) -> None:
        """A task that was taken is over."""
        self._out -= 1
        if not self._out:
            self._wake_all()

    def again(self, task: Task, failure_class: str) -> None:
        """A task that was taken failed, and may be tried again."""
        match AGAIN.get(failure_class, "soon"):
            case "soon":
                self._soon.append(task.offset)
                self._wake_one()
            case "last":
                self._pausing += 1
                pause_s = min(MAX_PAUSE_S, PAUSE_S * 2**task.attempt)
                asyncio.get_running_loop().call_later(pause_s, self._end_pause, task.offset)
        self.settle()

    def give_back(self, task: Task) -> None:
        """A task that was taken was not run: it comes next."""
        self._lost.append(task)
        self._wake_one()
        self.settle()

    def _unfinished(self) -> Generator[Task, None, None]:
        for key, offset, text in scan(self._path):
            if not self._records.is_over(key):
                yield Task(key, offset, text, self._records.attempts[key])

    def _ready(self, most: int) -> list[Task]:
        lease: list[Task] = []
        while len(lease) < most and (task := self._next()) is not None:
            lease.append(task)
        return lease

    def _next(self) -> Task | None:
        if self._lost:
            return self._lost.popleft()
        task = next(self._fresh, None)
        if task is not None:
            return task
        for waiting in (self._soon, self._last):
            if waiting:
                return self._read(waiting.popleft())
        return None

    def _read(self, offset: int) -> Task:
        self._file.seek(offset)
        line = self._file.readline()
        key = key_of(orjson.loads(line))
        return Task(key, offset, line, self._records.attempts[key])

    def _end_pause(self, offset: int) -> None:
        self._pausing -= 1
        self._last.append(offset)
        self._wake_one()

    async def _wait(self) -> None:
        taker = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        await taker

    def _wake_one(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return

    def _wake_all(self) -> None:
        for taker in self._takers:
            if not taker.done():
                taker.set_result(None)
        self._takers.clear()
