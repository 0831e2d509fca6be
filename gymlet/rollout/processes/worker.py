"""A worker process: serves the configuration, runs what the driver gives it, and ends when the driver does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from gymlet.config.problems import ConfigError
from gymlet.rollout.episode import run
from gymlet.rollout.processes.blame import Mark, marked
from gymlet.rollout.processes.link import Back, Counted, Give, Link, Permits, Ready, Refused, Stop
from gymlet.rollout.todo import Task
from gymlet.upstream.borrowed import HubLimiters
from gymlet.upstream.limiters import Limiters
from gymlet.upstream.messages import MAX_LINE_BYTES, Writer
from gymlet.wire.errors import GymletError

Json = dict[str, Any]
COUNT_S = 1.0
"""How often the driver is told what this worker alone knows."""

COUNTS = ("retries", "cached")
EXIT_ALONE = 1


class Served(Protocol):
    """What runs agents."""

    async def run_agent(self, name: str, row: Json) -> Json:
        """One rollout."""
        ...

    async def limits(self) -> dict[str, Json]:
        """The state of each model's endpoints, by the instance's name."""
        ...


Serve = Callable[[Limiters], AbstractAsyncContextManager[Served]]
"""Starts what the configuration names, and stops it. Raises ConfigError, GymletError, or whatever a plug-in raises."""


async def work(sock: socket.socket, serve: Serve, mark: Mark, *, timeout_s: float | None = None) -> None:
    """Be a worker, with one end of a pair of sockets, until the driver says so; ``mark`` whose turn it is."""
    await Worker(await Link.over(sock), mark, timeout_s).live(serve)


class Worker:
    """Owns what is under way here."""

    def __init__(self, link: Link, mark: Mark, timeout_s: float | None) -> None:
        self._link = link
        self._mark = mark
        self._timeout_s = timeout_s
        self._permits = asyncio.StreamReader(MAX_LINE_BYTES)
        self._running: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    async def live(self, serve: Serve) -> None:
        """Serve until told to stop; what cannot be started is told to the driver."""
        listening = asyncio.create_task(self._listen())
        try:
            async with HubLimiters(self._dial).talking() as limiters, serve(limiters) as served:
                self._served = served
                self._link.post(Ready())
                counting = asyncio.create_task(self._count())
                await self._stop.wait()
                await _end({counting, *self._running})
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a plug-in raises, the driver tells it
            self._link.post(Refused(_words(error)))
        finally:
            listening.cancel()
            await self._link.close()

    async def _listen(self) -> None:
        """Take messages. Once there is no driver nobody keeps what is run: end at once, and make no more calls."""
        while messages := await self._link.fetch():
            for message in messages:
                match message:
                    case Permits(line):
                        self._permits.feed_data(line)
                    case Give(task):
                        running = asyncio.create_task(self._run(task))
                        self._running.add(running)
                        running.add_done_callback(self._running.discard)
                    case Stop():
                        self._stop.set()
        os._exit(EXIT_ALONE)

    async def _run(self, task: Task) -> None:
        rollout = run(task.row(), self._served.run_agent, timeout_s=self._timeout_s)
        self._link.post(Back.of(await marked(rollout, self._mark, task.key)))

    async def _count(self) -> None:
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(COUNT_S)
            states = (await self._served.limits()).values()
            counts = {name: sum(state.get(name, 0) for state in states) for name in COUNTS}
            if counts != told:
                told = counts
                self._link.post(Counted(counts))

    async def _dial(self) -> tuple[asyncio.StreamReader, Writer]:
        return self._permits, PermitPost(self._link)


class PermitPost:
    """Lines about permits, into a link that is not its own."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def write(self, data: bytes) -> None:
        """Send a line."""
        self._link.post(Permits(data))

    def close(self) -> None:
        """The link stays open."""


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, ConfigError | GymletError) else f"{type(error).__name__}: {error}"
