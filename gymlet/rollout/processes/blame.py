"""Which rollout a process was running when it died: one that breaks its process is found among a hundred in flight.

Rollouts of one process take turns, and each turn is marked in memory that another process sees. Who is marked when the
process dies has killed it, or was in a verifier that did. What runs beside the loop, in threads or tasks of its own, is
not marked; then nobody is blamed.
"""

from __future__ import annotations

import mmap
import struct
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from gymlet.rollout.keys import Key

T = TypeVar("T")
_FORM = struct.Struct("=?qq")


class Marks:
    """Memory with a mark for each of several processes, shared by all that are forked from this one."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, count * _FORM.size)

    def of(self, at: int) -> Mark:
        """The mark of one of them."""
        return Mark(self._memory, at * _FORM.size)


class Mark:
    """Whose turn it is in one process."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset

    @property
    def key(self) -> Key | None:
        """The rollout whose turn it is, or was when the process ended."""
        is_set, task, rollout = _FORM.unpack_from(self._memory, self._offset)
        return (task, rollout) if is_set else None

    def set(self, key: Key) -> None:
        """A turn begins."""
        _FORM.pack_into(self._memory, self._offset, True, *key)

    def clear(self) -> None:
        """It is over."""
        self._memory[self._offset] = 0


@types.coroutine
def marked(rollout: Coroutine[Any, Any, T], mark: Mark, key: Key) -> Generator[Any, None, T]:
    """Run a rollout, each of its turns marked."""
    error: BaseException | None = None
    while True:
        mark.set(key)
        try:
            waits_for = rollout.send(None) if error is None else rollout.throw(error)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            mark.clear()
        try:
            yield waits_for
            error = None
        except BaseException as thrown:  # noqa: BLE001  it is passed on
            error = thrown
