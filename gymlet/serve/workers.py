"""Several processes on one port: started by one that serves nothing itself, watched, started again, ended together.

the parent: no event loop, no threads, so that it may fork at any time, also when a worker has died
├── the hub, if there is one: what the workers share, on an event loop of its own
└── worker 0 … worker n-1: each a whole server, with a listening socket of its own on the shared port
"""

from __future__ import annotations

import logging
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymlet.rollout.processes.signals import cause, signals
from gymlet.serve.child import NOW, SOON, Child, Ready, Run, Work, kill
from gymlet.serve.traffic import Stop

log = logging.getLogger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 10.0
CALM_S = 60.0
"""A worker that has lived for so long is started again at once when it dies."""

MAX_FAILED_STARTS = 5
"""Deaths before it could serve, one after the other, until the server gives up."""

EXIT_FAILED, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130
HUB_SOCKET = "hub.sock"
MAX_FOLDER_CHARS = 80
"""The path of a Unix socket has room for about 100."""

Hub = Callable[[Path], AbstractAsyncContextManager[object]]


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Which worker a process is. ``folder``: private to the workers of one server, for their Unix sockets."""

    index: int
    count: int
    folder: Path

    def socket_of(self, index: int) -> Path:
        """Where worker ``index`` listens to the others."""
        return self.folder / f"worker-{index}.sock"

    @property
    def hub_socket(self) -> Path:
        """Where the hub listens, if there is one."""
        return self.folder / HUB_SOCKET


@dataclass(frozen=True, slots=True)
class Plan:
    """What the processes do.

    ``work`` is done in each worker. ``hub``, given the folder, is entered in a process of its own before any worker
    starts, and left behind the last. ``run`` runs a coroutine in a child and gives its exit code. ``on_ready``, given
    the workers' pids, is called in the parent. ``close`` lets go of what is the workers' alone, such as the listening
    sockets: in the parent when the server stops, and in the hub. What still runs after ``stop_timeout_s`` is killed.
    """

    work: Callable[[WorkerContext, Stop, Ready], Coroutine[Any, Any, None]]
    run: Run
    on_ready: Callable[[Sequence[int]], None]
    close: Callable[[], None]
    stop_timeout_s: float
    hub: Hub | None = None


class Fleet:
    """The workers of one server. Owns their processes and their folder; ``run`` returns when the last has ended."""

    def __init__(self, count: int, plan: Plan) -> None:
        self._plan = plan
        self._folder = _private_folder()
        contexts = [WorkerContext(index, count, self._folder) for index in range(count)]
        self._workers = [Child(f"worker {each.index}", _worker_work(plan, each)) for each in contexts]
        self._hub = (
            Child("the hub", _hub_work(plan.hub, plan.close, self._folder), stays=True)
            if plan.hub is not None
            else None
        )
        self._children = [*self._workers, *([self._hub] if self._hub is not None else [])]
        self._selector = selectors.DefaultSelector()
        self._dues: dict[Child, float] = {}
        self._deaths = dict.fromkeys(self._children, 0)
        self._failed_starts = dict.fromkeys(self._children, 0)
        self._stopping_until: float | None = None
        self._is_announced = False
        self._exit_code = 0

    def run(self) -> int:
        """Serve until a signal; the exit code."""
        try:
            with signals() as wake:
                self._selector.register(wake, selectors.EVENT_READ)
                for child in self._workers if self._hub is None else [self._hub]:
                    self._start(child)
                while self._stopping_until is None or any(child.is_alive for child in self._children):
                    self._step(wake)
        finally:
            self._selector.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        return self._exit_code

    def _step(self, wake: socket.socket) -> None:
        """Wait for a signal, a word of a child, or the clock, and do what follows."""
        for key, _ in self._selector.select(self._patience_s()):
            if key.fileobj is wake:
                for number in wake.recv(4096):
                    self._on_signal(number)
            else:
                self._hear(key.data)
        for child in self._children:
            code = child.ended() if child.is_alive else None
            if code is not None:
                self._on_death(child, code)
        now = time.monotonic()
        for child in [each for each, due in self._dues.items() if due <= now]:
            self._start(child)
        if self._stopping_until is not None and now > self._stopping_until:
            kill(self._children)
            self._exit_code = self._exit_code or EXIT_FAILED
            self._stopping_until = now + self._plan.stop_timeout_s

    def _patience_s(self) -> float | None:
        """How long nothing has to be done by the clock."""
        dues = [*self._dues.values(), *([] if self._stopping_until is None else [self._stopping_until])]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _start(self, child: Child) -> None:
        self._dues.pop(child, None)
        link = child.start(self._plan.run, self._close)
        self._selector.register(link, selectors.EVENT_READ, child)

    def _close(self) -> None:
        """In a child: close what belongs to the parent alone."""
        self._selector.close()
        for child in self._children:
            child.hang_up()

    def _hear(self, child: Child) -> None:
        if child.hear():
            self._on_child_ready(child)
        else:
            self._hang_up(child)

    def _hang_up(self, child: Child) -> None:
        if child.link is not None:
            self._selector.unregister(child.link)
            child.hang_up()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return
        if self._stopping_until is None:
            self._stop(self._exit_code)
        else:
            self._exit_code = EXIT_INTERRUPTED
            for child in self._workers:
                child.tell(NOW)

    def _on_child_ready(self, child: Child) -> None:
        is_first_hub = child is self._hub and not child.is_ready and not self._is_announced
        child.is_ready = True
        self._failed_starts[child] = 0
        if is_first_hub:
            for worker in self._workers:
                if not worker.is_alive and worker not in self._dues and self._stopping_until is None:
                    self._start(worker)
        if not self._is_announced and all(each.is_ready for each in self._children):
            self._is_announced = True
            self._plan.on_ready([worker.pid for worker in self._workers])

    def _on_death(self, child: Child, code: int) -> None:
        if child.hear():
            self._on_child_ready(child)
        self._hang_up(child)
        if self._stopping_until is not None:
            self._exit_code = self._exit_code or (EXIT_FAILED if code else 0)
            self._stop_hub()
            return
        self._failed_starts[child] += not child.is_ready
        if not child.is_ready and code == EXIT_MISTAKE:  # it has said why, and the next one would say the same
            self._stop(EXIT_MISTAKE)
        elif self._failed_starts[child] >= MAX_FAILED_STARTS:
            log.error("%s died %d times before it could serve; the server ends", child.name, MAX_FAILED_STARTS)
            self._stop(EXIT_FAILED)
        else:
            self._start_later(child, code)

    def _start_later(self, child: Child, code: int) -> None:
        now = time.monotonic()
        deaths = 0 if now - child.started_at > CALM_S else self._deaths[child]
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**deaths)
        self._deaths[child] = deaths + 1
        self._dues[child] = now + pause_s
        log.warning("%s ended with %s; it is started again in %g s", child.name, cause(code), pause_s)

    def _stop(self, exit_code: int) -> None:
        """Let every worker end; the hub ends behind them."""
        self._exit_code = exit_code
        self._stopping_until = time.monotonic() + self._plan.stop_timeout_s
        self._dues.clear()
        self._plan.close()
        for child in self._workers:
            child.tell(SOON)
        self._stop_hub()

    def _stop_hub(self) -> None:
        if self._hub is not None and not any(child.is_alive for child in self._workers):
            self._hub.tell(SOON)


def _worker_work(plan: Plan, context: WorkerContext) -> Work:
    return lambda stop, ready: plan.work(context, stop, ready)


def _hub_work(hub: Hub, close: Callable[[], None], folder: Path) -> Work:
    async def work(stop: Stop, ready: Ready) -> None:
        close()
        async with hub(folder):
            ready()
            await stop.soon.wait()

    return work


def _private_folder() -> Path:
    """A folder that only this user may enter."""
    usual = Path(tempfile.gettempdir())
    parent = usual if len(str(usual)) <= MAX_FOLDER_CHARS else Path("/tmp")  # noqa: S108  mkdtemp makes a private one
    return Path(tempfile.mkdtemp(prefix="gymlet-", dir=parent))
