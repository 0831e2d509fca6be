"""A process that forks workers, so that one can be forked at any time of a run.

It is forked itself before there is an event loop, a thread or a plug-in, and has none of them later: a worker starts
within milliseconds, with all of gymlet imported, and what a library does when it is imported happens in the worker that
uses it. Workers live no longer than it does, and it no longer than the process that made it, however that ended. Each
is a group of its own, so that a terminal's signals do not reach it, and what its verifiers have started ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple, NoReturn

from gymlet.rollout.processes.blame import Mark, Marks
from gymlet.rollout.processes.signals import signals
from gymlet.wire.errors import GymletError

log = logging.getLogger(__name__)

Live = Callable[[socket.socket, Mark], int]
"""What a worker does, with its end of a pair of sockets, and marking which rollout it runs; its exit code."""

MAX_WORKERS = 256

START, KILL, ENDED = b"s", b"k", b"e"
EXIT_BROKEN = 1
STOPPING = (signal.SIGINT, signal.SIGTERM)
"""A batch system may send them to all processes of a command: what they mean is decided by one."""

_FORM = struct.Struct("!cii")


class Word(NamedTuple):
    """What is said between the two: an operation, which worker, and the exit code of one that ended."""

    operation: bytes
    number: int
    code: int = 0

    def send(self, control: socket.socket, *sockets: socket.socket) -> None:
        """Say it, and hand sockets over. Raises OSError where nobody listens."""
        socket.send_fds(control, [_FORM.pack(*self)], [each.fileno() for each in sockets])


class Born(NamedTuple):
    """A worker that was forked: our end of its pair of sockets, its mark, its exit code to come, and what kills it.

    The code of a signal is negative.
    """

    link: socket.socket
    mark: Mark
    code: asyncio.Future[int]
    kill: Callable[[], None]


class Nursery:
    """Starts and ends workers. Owns the process that forks them; use it as a context manager, before any event loop."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._marks = Marks(MAX_WORKERS)
        self._codes: dict[int, asyncio.Future[int]] = {}

    def __enter__(self) -> Nursery:
        sys.stdout.flush()
        sys.stderr.flush()
        self._control, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the child has handlers of its own
        try:
            self._pid = os.fork()
            if self._pid == 0:
                self._control.close()
                Keeper(theirs, self._live, self._marks).run()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        theirs.close()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._control.close()
        os.waitpid(self._pid, 0)

    def listen(self) -> None:
        """Hear of workers that end, on the loop that runs."""
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control, self._hear)

    def start(self, number: int) -> Born:
        """Fork the worker of this number, once the one before it has ended. Raises GymletError where that cannot be."""
        mark = self._marks.of(number)
        mark.clear()
        code = self._codes[number] = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            Word(START, number).send(self._control, theirs)
        except OSError as error:
            ours.close()
            raise GymletError("the process that starts the workers is gone; the same command goes on") from error
        finally:
            theirs.close()
        return Born(ours, mark, code, partial(self._kill, number))

    def _kill(self, number: int) -> None:
        with suppress(OSError):
            Word(KILL, number).send(self._control)

    def _hear(self) -> None:
        try:
            told = self._control.recv(_FORM.size)
        except OSError:
            told = b""
        if told:
            word = Word(*_FORM.unpack(told))
            self._settle(word.number, word.code)
            return
        asyncio.get_running_loop().remove_reader(self._control)
        for number in tuple(self._codes):
            self._settle(number, EXIT_BROKEN)

    def _settle(self, number: int, code: int) -> None:
        future = self._codes.pop(number)
        if not future.done():
            future.set_result(code)


class Keeper:
    """The process that forks. Owns the workers: they are killed when nobody is left to command it."""

    def __init__(self, control: socket.socket, live: Live, marks: Marks) -> None:
        self._control = control
        self._live = live
        self._marks = marks
        self._pids: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> NoReturn:
        """Obey until the other end is closed; then end all workers, and this process."""
        code = EXIT_BROKEN
        try:
            with signals() as wake:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
                try:
                    self._selector.register(wake, selectors.EVENT_READ)
                    self._selector.register(self._control, selectors.EVENT_READ)
                    while self._step(wake):
                        pass
                finally:
                    self._end_all()
            code = 0
        except BaseException:
            log.exception("the process that starts the workers broke")
        finally:
            os._exit(code)

    def _step(self, wake: socket.socket) -> bool:
        """Wait for a word, or the end of a worker; False when there is nobody to obey."""
        for key, _ in self._selector.select():
            if key.fileobj is wake:
                wake.recv(4096)
                self._reap()
            elif not self._obey():
                return False
        return True

    def _obey(self) -> bool:
        told, descriptors, _, _ = socket.recv_fds(self._control, _FORM.size, 1)
        if not told:
            return False
        word = Word(*_FORM.unpack(told))
        if word.operation == START:
            link = socket.socket(fileno=descriptors[0])
            link.set_inheritable(False)
            self._fork(word.number, link)
        elif (pid := self._pid_of(word.number)) is not None:
            _kill_group(pid)
        return True

    def _fork(self, number: int, link: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes: there may be room later
            log.warning("no worker could be forked: %s", error)
            link.close()
            Word(ENDED, number, EXIT_BROKEN).send(self._control)
            return
        if pid == 0:
            self._become_worker(link, self._marks.of(number))
        with suppress(OSError):  # whoever comes first
            os.setpgid(pid, pid)
        link.close()
        self._pids[pid] = number

    def _become_worker(self, link: socket.socket, mark: Mark) -> NoReturn:
        code = EXIT_BROKEN
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.register_at_fork(after_in_child=_obey_signals)
            self._selector.close()
            self._control.close()
            code = self._live(link, mark)
        except BaseException:
            log.exception("a worker broke")
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._pids:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            _kill_group(ended.si_pid)  # as long as nobody else can have its number
            pid, status = os.waitpid(ended.si_pid, 0)
            with suppress(OSError):  # nobody is left to be told: the next step sees it
                Word(ENDED, self._pids.pop(pid), os.waitstatus_to_exitcode(status)).send(self._control)

    def _pid_of(self, number: int) -> int | None:
        return next((pid for pid, each in self._pids.items() if each == number), None)

    def _end_all(self) -> None:
        for pid in self._pids:
            _kill_group(pid)
        for pid in self._pids:
            with suppress(OSError):
                os.waitpid(pid, 0)


def _kill_group(pid: int) -> None:
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _obey_signals() -> None:
    """In what a verifier forks: it may rely on ending it with a signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
