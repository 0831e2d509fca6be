"""Puts what was written on the disk, in a thread: a sync may take a tenth of a second, and no rollout waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

SYNC_ROWS = 32
SYNC_S = 0.5


class Syncer:
    """Syncs files once 32 rows wait for it, or the first of them has waited half a second; one sync at a time.

    Owns its thread and the count of what waits. ``error`` is what a sync failed with: the rows since the one before it
    may be lost in a power cut, so nothing more should be written.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = tuple(descriptors)
        self._changed = threading.Condition()
        self._waiting = 0
        self._closing = False
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def wrote(self, rows: int) -> None:
        """So many more rows wait."""
        if not rows:
            return
        with self._changed:
            before, self._waiting = self._waiting, self._waiting + rows
            if before == 0 or before < SYNC_ROWS <= self._waiting:
                self._changed.notify()

    def close(self) -> None:
        """Sync what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self.error is None:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                self._changed.wait_for(lambda: self._waiting >= SYNC_ROWS or self._closing, SYNC_S)
                if not self._waiting:
                    return
                self._waiting = 0
            try:
                for descriptor in self._descriptors:
                    os.fdatasync(descriptor)
            except OSError as error:
                self.error = error
