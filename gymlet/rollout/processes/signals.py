"""What a process that forks others hears of signals, and tells of their ends."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@contextmanager
def signals() -> Iterator[socket.socket]:
    """A socket on which the numbers of SIGNALS arrive. They are not ignored: what is run later would inherit that."""
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    old_waker = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    try:
        yield wake
    finally:
        signal.set_wakeup_fd(old_waker)
        for number, handler in before.items():
            signal.signal(number, handler)
        wake.close()
        waker.close()


def cause(code: int) -> str:
    """How a process ended, in words; the code of a signal is negative."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
