"""The agents of a Ray cluster, as the collector sees them: it knows what they are, and the nodes run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gymlet.cli.console import note
from gymlet.config.paths import search_roots
from gymlet.config.schema import Instance
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.ray_executor import RayExecutor, Service
from gymlet.serve.cluster import pack, serve_agents
from gymlet.serve.plugins import Plugin
from gymlet.serve.verifiers import metrics_specs

ANY_CLUSTER = "auto"
MAX_PARALLEL_A_NODE = 1024


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


class ClusterAgents(PlannedAgents):
    """Those that nodes will serve. Owns the executor, once there is one."""

    def __init__(self, instances: Sequence[Instance], plugins: Sequence[Plugin]) -> None:
        super().__init__(plugins)
        self._instances = instances
        self._executor: RayExecutor | None = None

    async def limits(self) -> dict[str, dict[str, Any]]:
        """The state of each provider's endpoints, over all nodes."""
        return {} if self._executor is None else await self._executor.limits()

    def executor(self, address: str | None, *, parallel: int | None, timeout_s: float | None) -> RayExecutor:
        """What runs them; ``parallel`` is of each node."""
        configuration = pack(self._instances, search_roots(Path.cwd()))
        service = Service(serve_agents, configuration, parallel or MAX_PARALLEL_A_NODE, timeout_s)
        self._executor = RayExecutor(service, address=address or ANY_CLUSTER, tell=note)
        return self._executor
