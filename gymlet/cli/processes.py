"""The agents of several processes on this machine: the collector knows what they are, and workers run them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from gymlet.cli.agents import PlannedAgents, at_once
from gymlet.cli.command import load_plugins, not_by_each
from gymlet.cli.console import EXIT_OK, exit_code, note, run_async
from gymlet.config.compose import COMMAND_LINE, Composition
from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import CollectOptions
from gymlet.rollout.processes.blame import Mark
from gymlet.rollout.processes.executor import ProcessExecutor
from gymlet.rollout.processes.nursery import Nursery
from gymlet.rollout.processes.worker import work
from gymlet.serve.launch import Gym
from gymlet.serve.plugins import Plugin
from gymlet.upstream.limiters import Limiters


class ProcessAgents(PlannedAgents):
    """Those that worker processes serve, by the executor that runs them."""

    def __init__(self, plugins: Sequence[Plugin], executor: ProcessExecutor) -> None:
        super().__init__(plugins)
        self._executor = executor

    async def limits(self) -> dict[str, dict[str, Any]]:
        """The state of each provider's endpoints, over all workers."""
        return await self._executor.limits()

    def executor(self, options: CollectOptions, remaining: int, stop: asyncio.Event) -> ProcessExecutor:  # noqa: ARG002
        """The workers, which were started before."""
        self._executor.parallel = at_once(options, remaining)
        return self._executor


@contextmanager
def nursery(composition: Composition, options: CollectOptions) -> Iterator[Nursery | None]:
    """What starts the workers, if there are to be several. Raises ConfigError where nothing is to be served here.

    A file may say how many there are in the server that is asked then.
    """
    source = composition.sources["num_workers"]
    if options.num_workers == 1 or not (composition.instances or source == COMMAND_LINE):
        yield None
        return
    if not composition.instances:
        told = "is of what is served here: give it to ng_run, or name config_paths"
        raise ConfigError([Problem(told, key="num_workers", source=source)])

    @asynccontextmanager
    async def serve(limiters: Limiters) -> AsyncIterator[Gym]:
        async with Gym(load_plugins(composition), limiters=limiters).running() as gym:
            yield gym

    def live(link: socket.socket, mark: Mark) -> int:
        return exit_code(lambda: run_async(work(link, serve, mark, timeout_s=options.rollout_timeout_s)) or EXIT_OK)

    with Nursery(live) as started:
        yield started


@asynccontextmanager
async def process_agents(
    nursery: Nursery, composition: Composition, options: CollectOptions
) -> AsyncIterator[ProcessAgents]:
    """The agents, served by workers. Raises ConfigError and GymletError where they cannot be."""
    plugins = load_plugins(composition)
    problems = not_by_each(plugins, composition)
    if problems:
        raise ConfigError(problems)
    count = min(options.num_workers, options.num_samples_in_parallel or options.num_workers)
    async with ProcessExecutor(nursery, count, tell=note) as executor:
        yield ProcessAgents(plugins, executor)
