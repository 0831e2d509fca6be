"""The agents of a Ray cluster, as the collector sees them: it knows what they are, and the nodes run them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gymlet.cli.agents import PlannedAgents
from gymlet.cli.console import note
from gymlet.config.paths import search_roots
from gymlet.config.schema import CollectOptions, Instance
from gymlet.rollout.cluster.executor import RayExecutor, Service
from gymlet.serve.cluster import pack, serve_agents
from gymlet.serve.plugins import Plugin

ANY_CLUSTER = "auto"
MAX_PARALLEL_A_NODE = 1024


class ClusterAgents(PlannedAgents):
    """Those that nodes will serve. Owns the executor, once there is one."""

    def __init__(self, instances: Sequence[Instance], plugins: Sequence[Plugin]) -> None:
        super().__init__(plugins)
        self._instances = instances
        self._executor: RayExecutor | None = None

    async def limits(self) -> dict[str, dict[str, Any]]:
        """The state of each provider's endpoints, over all nodes."""
        return {} if self._executor is None else await self._executor.limits()

    def executor(self, options: CollectOptions, remaining: int, stop: asyncio.Event) -> RayExecutor:  # noqa: ARG002
        """The nodes; ``num_samples_in_parallel`` is of each."""
        service = Service(
            serve_agents,
            pack(self._instances, search_roots(Path.cwd())),
            options.num_samples_in_parallel or MAX_PARALLEL_A_NODE,
            options.rollout_timeout_s,
        )
        self._executor = RayExecutor(service, address=options.ray_address or ANY_CLUSTER, tell=note)
        return self._executor
