"""The files of a run, and their only writer.

Beside ``<stem>.jsonl`` (one line per success) lie ``<stem>_materialized_inputs.jsonl`` (all tasks, in order),
``<stem>_failures.jsonl`` (one line per failed attempt), ``<stem>_aggregate_metrics.json`` and
``<stem>_manifest.json``. A line is written whole, with its newline, in one write, and is on the disk half a second
later: whatever kills the process leaves at most one torn line at the end, and that is cut off at the next start.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gymlet.rollout.manifest import differences
from gymlet.rollout.metrics import ROLLOUT, TASK
from gymlet.wire.errors import RequestError

Json = dict[str, Any]
Key = tuple[int, int]
"""A task's index and its rollout's index."""

SYNC_ROWS = 32
SYNC_S = 0.5


class RunFiles:
    """The names of a run's files."""

    def __init__(self, output: Path) -> None:
        self.output = output
        stem = output.with_suffix("")
        self.inputs = stem.with_name(f"{stem.name}_materialized_inputs.jsonl")
        self.failures = stem.with_name(f"{stem.name}_failures.jsonl")
        self.metrics = stem.with_name(f"{stem.name}_aggregate_metrics.json")
        self.manifest = stem.with_name(f"{stem.name}_manifest.json")
        self.lock = stem.with_name(f".{stem.name}.lock")

    def all(self) -> tuple[Path, ...]:
        """Every file of the run but its lock."""
        return self.output, self.inputs, self.failures, self.metrics, self.manifest

    def set_aside(self) -> list[Path]:
        """Move the files of an earlier run out of the way; returns where they are now."""
        number = 1
        while any(_aside(path, number).exists() for path in self.all()):
            number += 1
        return [path.rename(_aside(path, number)) for path in self.all() if path.exists()]


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old-{number}")


class Records:
    """Appends rows and failures; knows what is done. Owns the files of the run while it is open.

    Use it as a context manager: leaving it puts everything on the disk. ``notes`` says what was repaired.
    """

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self.done: set[Key] = set()
        self.attempts: Counter[Key] = Counter()
        self.terminal: set[Key] = set()
        self.notes: list[str] = []
        self._unsynced = 0
        self._synced_at = 0.0

    def __enter__(self) -> Records:
        self._files.output.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._files.lock)
        return self

    def __exit__(self, *_exc: object) -> None:
        for name in ("_rows", "_failures"):
            file: BinaryIO | None = getattr(self, name, None)
            if file is not None:
                os.fsync(file.fileno())
                file.close()
        self._files.lock.unlink(missing_ok=True)
        self._lock.close()

    def open(self) -> None:
        """Repair what an earlier run left, learn what is done, and get ready to append."""
        for path in (self._files.output, self._files.failures):
            self.notes += repair_tail(path)
        self.notes += self._learn_done()
        self._learn_attempts()
        self._rows = self._files.output.open("ab", buffering=0)
        self._failures = self._files.failures.open("ab", buffering=0)
        self._synced_at = time.monotonic()

    def append(self, row: Json) -> bool:
        """Commit one row; False, and nothing written, if its key is there already."""
        key = key_of(row)
        if key in self.done:
            return False
        _write(self._rows, row)
        self.done.add(key)
        self._sync_sometimes()
        return True

    def append_failure(self, row: Json) -> None:
        """Commit one failed attempt."""
        key = key_of(row)
        _write(self._failures, row)
        self.attempts[key] += 1
        if row.get("_ng_failure_terminal"):
            self.terminal.add(key)
        self._sync_sometimes()

    def remaining(self, max_attempts: int) -> Iterator[Json]:
        """The tasks still to run, in order: neither done, nor terminal, nor tried too often."""
        for row in read_rows(self._files.inputs):
            key = key_of(row)
            if key in self.done or key in self.terminal or self.attempts[key] >= max_attempts:
                continue
            if self.attempts[key]:
                row["_ng_attempt_index"] = self.attempts[key]
            yield row

    def _sync_sometimes(self) -> None:
        self._unsynced += 1
        if self._unsynced >= SYNC_ROWS or time.monotonic() - self._synced_at >= SYNC_S:
            os.fdatasync(self._rows.fileno())
            os.fdatasync(self._failures.fileno())
            self._unsynced, self._synced_at = 0, time.monotonic()

    def _learn_done(self) -> list[str]:
        path = self._files.output
        twice = 0
        for row in read_rows(path) if path.exists() else ():
            twice += key_of(row) in self.done
            self.done.add(key_of(row))
        if not twice:
            return []
        _rewrite(path, _first_of_each_key(read_rows(path)))
        return [f"{path.name}: {twice} row{'s' if twice > 1 else ''} stood there twice; the first of each was kept"]

    def _learn_attempts(self) -> None:
        for row in read_rows(self._files.failures) if self._files.failures.exists() else ():
            self.attempts[key_of(row)] += 1
            if row.get("_ng_failure_terminal"):
                self.terminal.add(key_of(row))


def key_of(row: Json) -> Key:
    """Which rollout a row is of."""
    return row[TASK], row[ROLLOUT]


def read_rows(path: Path) -> Iterator[Json]:
    """The rows of a JSONL file, one at a time. Raises RequestError with the line of one that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise RequestError(f"Malformed JSON in {path} at line {number}: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get(TASK), int) or not isinstance(row.get(ROLLOUT), int):
                raise RequestError(f"{path} at line {number} is no row of a run: it has no {TASK} and {ROLLOUT}")
            yield row


def materialize(path: Path, rows: Iterable[Json], check: Callable[[], None]) -> int:
    """Write all tasks; the file appears whole, once ``check`` has found nothing wrong, or not at all."""
    return _rewrite(path, rows, check)


def write_json(path: Path, payload: object) -> None:
    """A JSON file that appears whole or not at all."""
    scratch = path.with_name(f"{path.name}.part")
    with scratch.open("wb") as file:
        file.write(orjson.dumps(payload, option=orjson.OPT_INDENT_2))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def compare_manifest(path: Path, new: Json, *, force: bool) -> None:
    """Raise RequestError with what differs from the run that ``path`` tells of, unless ``force``."""
    old = orjson.loads(path.read_bytes())
    lines = differences(old, new)
    if lines and not force:
        shown = "".join(f"\n    {line}" for line in lines)
        raise RequestError(
            f"{path.parent} holds another run, which differs in:{shown}\n"
            "  +overwrite=true moves it aside and starts afresh, +force_resume=true goes on with it all the same, "
            "and another output_jsonl_fpath leaves it alone"
        )


def repair_tail(path: Path) -> list[str]:
    """Cut off a torn last line, or give a whole one its newline; says what was done."""
    if not path.exists() or path.stat().st_size == 0:
        return []
    with path.open("r+b") as file:
        start, tail = _last_line(file)
        if tail.endswith(b"\n") and _is_row(tail):
            return []
        if _is_row(tail):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return [f"{path.name}: the last line had no newline; it was given one"]
        file.truncate(start)
        return [f"{path.name}: the last line was torn ({len(tail)} bytes) and was cut off"]


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """Where the last line begins, and what stands there."""
    end = file.seek(0, os.SEEK_END)
    start, block = end, b""
    while start > 0:
        size = min(1 << 16, start)
        start -= size
        file.seek(start)
        block = file.read(size) + block
        newline = block.rfind(b"\n", 0, len(block) - 1)
        if newline >= 0:
            return start + newline + 1, block[newline + 1 :]
    return 0, block


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _first_of_each_key(rows: Iterable[Json]) -> Iterator[Json]:
    seen: set[Key] = set()
    for row in rows:
        if key_of(row) not in seen:
            seen.add(key_of(row))
            yield row


def _rewrite(path: Path, rows: Iterable[Json], check: Callable[[], None] | None = None) -> int:
    scratch = path.with_name(f"{path.name}.part")
    count = 0
    try:
        with scratch.open("wb") as file:
            for count, row in enumerate(rows, start=1):  # noqa: B007  the last count is the number of rows
                file.write(orjson.dumps(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return count


def _write(file: BinaryIO, row: Json) -> None:
    line = memoryview(orjson.dumps(row) + b"\n")
    while line:
        line = line[file.write(line) :]


def _lock(path: Path) -> BinaryIO:
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RequestError(f"another collector is writing beside {path.parent / path.name}; let it end first") from None
    return file
