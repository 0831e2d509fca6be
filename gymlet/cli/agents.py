"""The agents of a run, as the collector sees them: in this process, of a running server, or of processes elsewhere."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from gymlet.cli.console import note
from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import CollectOptions, HeadServer
from gymlet.rollout.executor import Executor, LocalExecutor
from gymlet.rollout.metrics import MetricsSpec
from gymlet.serve.launch import Gym
from gymlet.serve.peers import RemoteAgents
from gymlet.serve.plugins import Plugin
from gymlet.serve.verifiers import metrics_specs
from gymlet.wire.errors import GymletError

Json = dict[str, Any]

MAX_PARALLEL = 16_384
"""What "unlimited" means: more rollouts at once than any provider takes."""


class Agents(Protocol):
    """What serves a run."""

    async def agent_names(self) -> list[str]:
        """The agents there are."""
        ...

    async def metrics_spec(self, name: str) -> MetricsSpec:
        """What the agent's environment scores."""
        ...

    async def limits(self) -> dict[str, Json]:
        """The state of each model's endpoints. Raises GymletError where nobody can tell."""
        ...

    def executor(self, options: CollectOptions, remaining: int, stop: asyncio.Event) -> Executor:
        """What runs the ``remaining`` rollouts; it may set ``stop`` where no more can begin."""
        ...


class LocalAgents:
    """Those of this process."""

    def __init__(self, gym: Gym) -> None:
        self._gym = gym
        self.agent_names = gym.agent_names
        self.metrics_spec = gym.metrics_spec
        self.limits = gym.limits

    def executor(self, options: CollectOptions, remaining: int, stop: asyncio.Event) -> Executor:  # noqa: ARG002
        """This process."""
        return LocalExecutor(
            self._gym.run_agent, parallel=at_once(options, remaining), timeout_s=options.rollout_timeout_s
        )


class ServerAgents:
    """Those of a running server."""

    def __init__(self, remote: RemoteAgents) -> None:
        self._remote = remote
        self.agent_names = remote.agent_names
        self.metrics_spec = remote.metrics_spec
        self.limits = remote.limits
        self.configuration = remote.configuration

    def executor(self, options: CollectOptions, remaining: int, stop: asyncio.Event) -> Executor:
        """Asks the server. Once nobody listens there no rollout begins any more: all would fail, for good."""

        async def run_agent(name: str, row: Json) -> Json:
            try:
                return await self._remote.run_agent(name, row)
            except GymletError as error:
                if getattr(error.__cause__, "errno", None) == errno.ECONNREFUSED and not stop.is_set():
                    note("the server is gone: no rollout begins any more")
                    stop.set()
                raise

        return LocalExecutor(run_agent, parallel=at_once(options, remaining), timeout_s=options.rollout_timeout_s)


class PlannedAgents:
    """What a configuration serves, once other processes serve it."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._specs = metrics_specs(plugins)

    async def agent_names(self) -> list[str]:
        """The agents there are."""
        return sorted(self._specs)

    async def metrics_spec(self, name: str) -> MetricsSpec:
        """What the agent's environment scores."""
        return self._specs[name]


def at_once(options: CollectOptions, remaining: int) -> int:
    """How many rollouts this machine runs at once."""
    return min(options.num_samples_in_parallel or MAX_PARALLEL, max(1, remaining))


@asynccontextmanager
async def server_agents(head: HeadServer) -> AsyncIterator[ServerAgents]:
    """The agents of the server that ng_run started. Raises ConfigError where there is none."""
    remote = RemoteAgents(head.url(), next(iter(head.keys), None))
    try:
        try:
            await remote.agent_names()
        except Exception as error:
            raise ConfigError([Problem(_unreached(head, error))]) from error
        yield ServerAgents(remote)
    finally:
        await remote.close()


def _unreached(head: HeadServer, error: Exception) -> str:
    where = f"{head.host}:{head.port}"
    if isinstance(error, GymletError) and error.status == 401:
        return f"the server at {where} does not let us in: {error}; head_server.api_key is what is sent"
    return f"no server answers at {where} ({error}); start one with ng_run, or name config_paths"
