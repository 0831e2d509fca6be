"""Puts what was written on the disk, in a thread: a sync may take a tenth of a second, and no rollout waits for it.

The thread is woken as seldom as can be: each time, the interpreter goes from the rollouts to it and back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue

SYNC_ROWS = 32
SYNC_S = 0.5


class Syncer:
    """Syncs files once 32 rows wait for it, and what is left every half second; one sync at a time.

    Owns its thread and the counts: those of what was written belong to the writer, those of what was synced to the
    thread. ``error`` is what a sync failed with: the rows since the one before it may be lost in a power cut, so
    nothing more should be written.
    """

    def __init__(self, descriptors: Iterable[int]) -> None:
        self._written = dict.fromkeys(descriptors, 0)
        self._synced = dict(self._written)
        self._waiting = 0
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closing = False
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def wrote(self, descriptor: int, rows: int) -> None:
        """So many more rows of a file wait."""
        self._written[descriptor] += rows
        self._waiting += rows
        if self._waiting >= SYNC_ROWS:
            self._waiting = 0
            self._wake.put(None)

    def close(self) -> None:
        """Sync what waits, and end."""
        self._closing = True
        self._wake.put(None)
        self._thread.join()

    def _run(self) -> None:
        last = False
        while self.error is None and not last:
            with suppress(Empty):
                self._wake.get(timeout=SYNC_S)
            last = self._closing
            try:
                self._sync()
            except OSError as error:
                self.error = error

    def _sync(self) -> None:
        for descriptor, rows in self._written.items():
            if self._synced[descriptor] != rows:
                self._synced[descriptor] = rows
                os.fdatasync(descriptor)
