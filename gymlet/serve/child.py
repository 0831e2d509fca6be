"""One process forked from a parent that has no event loop, and the words between the two.

They hold the two ends of a socket pair: the child says READY, the parent SOON and NOW; when the parent is gone its end
is too, and the child stops. Signals are for the parent: Ctrl-C, or a service manager, reaches all processes at once;
a child waits for the parent's word.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from gymlet.rollout.processes.signals import SIGNALS
from gymlet.serve.traffic import Stop

log = logging.getLogger(__name__)

READY, SOON, NOW = b"r", b"s", b"n"
EXIT_BROKEN = 1

Ready = Callable[[], None]
Work = Callable[[Stop, Ready], Coroutine[Any, Any, None]]
Run = Callable[[Coroutine[Any, Any, None]], int]


class Child:
    """A process that does ``work``, and the one that is started when it died. Owns its pid and its end of the pair.

    ``stays``: only its parent's word ends it, no SIGTERM.
    """

    def __init__(self, name: str, work: Work, *, stays: bool = False) -> None:
        self.name = name
        self._stays = stays
        self.pid = 0
        self.is_ready = False
        self.link: socket.socket | None = None
        self.started_at = 0.0
        self._work = work

    @property
    def is_alive(self) -> bool:
        """Whether there is a process."""
        return self.pid != 0

    def start(self, run: Run, close: Callable[[], None]) -> socket.socket:
        """Fork. The child does ``close`` what is the parent's, and ends with the exit code of ``run``."""
        sys.stdout.flush()
        sys.stderr.flush()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child has handlers of its own
        try:
            self.pid = os.fork()
            if self.pid == 0:
                ours.close()
                self._live(theirs, run, close)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        self.link, self.is_ready, self.started_at = ours, False, time.monotonic()
        return ours

    def tell(self, word: bytes) -> None:
        """Say SOON or NOW; one that is dead hears nothing."""
        if self.link is not None:
            with suppress(OSError):
                self.link.send(word)

    def hear(self) -> bool:
        """Whether it has said READY since it was last asked."""
        if self.link is None:
            return False
        try:
            return READY in self.link.recv(64)
        except OSError:
            return False

    def ended(self) -> int | None:
        """The exit code (a signal's is negative) of a process that has ended since; None as long as it lives."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def hang_up(self) -> None:
        """Close our end of the pair."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def _live(self, link: socket.socket, run: Run, close: Callable[[], None]) -> None:
        code = EXIT_BROKEN
        try:
            close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            code = run(_obey(link, self._work, stays=self._stays))
        except BaseException:
            log.exception("%s broke", self.name)
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def kill(children: Iterable[Child]) -> None:
    """End what does not end by itself."""
    for child in children:
        if child.is_alive:
            log.error("%s (pid %d) did not stop and is killed", child.name, child.pid)
            os.kill(child.pid, signal.SIGKILL)


async def _obey(link: socket.socket, work: Work, *, stays: bool) -> None:
    """Do ``work`` until the parent says so, or is no more, or somebody asks this very process."""
    stop = Stop()
    loop = asyncio.get_running_loop()

    def on_word() -> None:
        word = link.recv(64)
        if not word:
            loop.remove_reader(link)
        if NOW in word:
            stop.now.set()
        stop.soon.set()

    def ready() -> None:
        with suppress(OSError):
            link.send(READY)

    loop.add_reader(link, on_word)
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if stays else stop.soon.set)
    await work(stop, ready)
