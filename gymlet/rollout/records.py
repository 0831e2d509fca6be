"""The only writer of a run's rows and failures, and what it knows of them.

Beside ``<stem>.jsonl`` (one line per success) lie ``<stem>_materialized_inputs.jsonl`` (all tasks, in order),
``<stem>_failures.jsonl`` (one line per failed attempt), ``<stem>_aggregate_metrics.json`` and
``<stem>_manifest.json``. A line is written whole, with its newline, in one write, before the next rollout begins, and
is on the disk half a second later: whatever kills the process leaves at most one torn line at the end, and that is cut
off at the next start.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from gymlet.rollout.compact import KeySet
from gymlet.rollout.files import RunFiles, drop_repeated, repair_tail, scan
from gymlet.rollout.keys import Attempts, Key
from gymlet.rollout.sync import Syncer
from gymlet.rollout.whole_file import StorageError
from gymlet.wire.errors import RequestError

TERMINAL = b'"_ng_failure_terminal":true'


class Records:
    """Appends rows and failures; knows what is done. Owns the files of the run while it is open.

    Use it as a context manager: leaving it puts everything on the disk. ``notes`` says what was repaired.
    """

    def __init__(self, files: RunFiles, max_attempts: int) -> None:
        self._files = files
        self.done = KeySet()
        self.attempts = Attempts()
        self._max_attempts = max_attempts
        self._terminal = KeySet()
        self.failed = 0
        """Rollouts that failed and have no row."""

        self.given_up = 0
        """Those among them that are not run again: they failed for good, or too often."""

        self.broken: StorageError | None = None
        """Why nothing can be written any more."""

        self.notes: list[str] = []
        self._appenders: tuple[Appender, ...] = ()
        self._syncer: Syncer | None = None

    def __enter__(self) -> Records:
        self._lock = _lock(self._files.lock)
        return self

    def __exit__(self, *_exc: object) -> None:
        try:
            if self._syncer is not None and self.broken is None:
                self.flush()
        finally:
            self._close()
        if self._syncer is not None and self._syncer.error is not None and self.broken is None:
            raise self._rows.cannot_write(self._syncer.error)

    def _close(self) -> None:
        if self._syncer is not None:
            self._syncer.close()
        for appender in self._appenders:
            appender.close()
        self._files.lock.unlink(missing_ok=True)
        self._lock.close()

    def learn(self) -> None:
        """Repair what an earlier run left, and learn what is done and what failed."""
        for path in (self._files.output, self._files.failures):
            self.notes += repair_tail(path)
        output = self._files.output
        twice = sum(not self.done.add(*line.key) for line in scan(output))
        if twice:
            drop_repeated(output)
            rows = "1 row stood" if twice == 1 else f"{twice} rows stood"
            self.notes.append(f"{output.name}: {rows} there twice; the first of each was kept")
        for line in scan(self._files.failures):
            self._count_failure(line.key, terminal=TERMINAL in line.text.replace(b": ", b":"))

    def open(self) -> None:
        """Get ready to append."""
        self._rows, self._failures = self._appenders = Appender(self._files.output), Appender(self._files.failures)
        self._syncer = Syncer([appender.descriptor for appender in self._appenders])

    def append(self, key: Key, line: bytes) -> bool:
        """Keep one row for the next ``flush``; False if its key is there already."""
        if not self.done.add(*key):
            return False
        self._rows.waiting.append(line)
        if self.attempts[key]:
            self.failed -= 1
            self.given_up -= self._is_given_up(key)
        return True

    def append_failure(self, key: Key, line: bytes, *, terminal: bool) -> None:
        """Keep one failed attempt for the next ``flush``."""
        self._failures.waiting.append(line)
        self._count_failure(key, terminal=terminal)

    @property
    def waiting(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._rows.waiting or self._failures.waiting)

    def flush(self) -> None:
        """Commit what was appended: write it whole, and have it synced soon.

        Raises StorageError, and from then on always: nothing is written behind what was lost.
        """
        assert self._syncer is not None, "open() comes first"  # noqa: S101
        if self.broken is None:
            try:
                self._write(self._syncer)
            except StorageError as error:
                self.broken = error
        if self.broken is not None:
            raise self.broken

    def _write(self, syncer: Syncer) -> None:
        for appender in self._appenders:
            if syncer.error is not None:
                raise appender.cannot_write(syncer.error)
            if appender.waiting:
                syncer.wrote(appender.descriptor, appender.flush())

    def is_over(self, key: Key) -> bool:
        """Whether a rollout is not to be run: done, failed for good, or tried too often."""
        return key in self.done or self._is_given_up(key)

    def _is_given_up(self, key: Key) -> bool:
        times = self.attempts[key]
        return times >= self._max_attempts or (times > 0 and key in self._terminal)

    def _count_failure(self, key: Key, *, terminal: bool) -> None:
        was_over = self.is_over(key)
        self.failed += self.attempts.add(key) == 1 and key not in self.done
        if terminal:
            self._terminal.add(*key)
        self.given_up += self.is_over(key) and not was_over


class Appender:
    """Writes whole lines to the end of one file. Owns it, its size, and the lines that wait to be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: BinaryIO = path.open("ab", buffering=0)
        except OSError as error:
            raise self.cannot_write(error) from error
        self._size = self._file.seek(0, os.SEEK_END)
        self.waiting: list[bytes] = []

    @property
    def descriptor(self) -> int:
        """What to sync."""
        return self._file.fileno()

    def flush(self) -> int:
        """Write the lines that wait, in one write; returns how many. Raises StorageError; only whole lines stay."""
        lines, self.waiting = self.waiting, []
        if lines:
            self._write(b"".join(lines))
        return len(lines)

    def _write(self, block: bytes) -> None:
        try:
            written = self._file.write(block)
            while written < len(block):  # a full disk takes a part, and refuses the rest
                written += self._file.write(block[written:])
        except OSError as error:
            written = os.fstat(self.descriptor).st_size - self._size
            self._size += block.rfind(b"\n", 0, written) + 1
            self._file.truncate(self._size)
            raise self.cannot_write(error) from error
        self._size += len(block)

    def close(self) -> None:
        """Sync and close. Raises StorageError."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise self.cannot_write(error) from error
        finally:
            self._file.close()

    def cannot_write(self, error: OSError) -> StorageError:
        """What is told when the disk is full, or gone."""
        return StorageError(f"{self._path} cannot be written: {error.strerror or error}; what was committed is kept")


def _lock(path: Path) -> BinaryIO:
    """Raises RequestError if another collector holds it, or the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    except OSError as error:
        raise RequestError(
            f"{path.parent} cannot be written: {error.strerror or error}; name another output_jsonl_fpath"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except OSError:
        held = False
    if held:
        return file
    file.close()
    raise RequestError(f"another collector is writing beside {path.parent / path.name}; let it end first")
