"""Rollouts on the nodes of a Ray cluster: an actor on each runs leases, and this process alone writes what comes back.

Nothing of Ray's is retried: it would run again, unseen, what has cost money and had effects. A lease whose actor is
lost comes back as ``NodeLost``; on a node that still lives another actor is started. An actor that only could not be
reached may still work: it is killed, and what it had is run again.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from gymlet.rollout.cluster.limiters import Lender, RayLimiters
from gymlet.rollout.episode import Ended, RunAgent, run
from gymlet.rollout.executor import Node, NodeGone, NodeLost
from gymlet.rollout.todo import Task
from gymlet.upstream.limiters import Limiters
from gymlet.wire.errors import GymletError, RequestError

LEASE_TASKS = (8, 32)
LEASES_AHEAD = 2
BATCH_ROWS = 32
BATCH_S = 0.5
LOOK_S = 1.0
"""How often it is looked which nodes there are."""

START_S = 120.0
"""What an actor gets to start in: a node may have much to import."""

TOKEN_MODE = "RAY_AUTH_MODE"  # noqa: S105  the name of a variable

Serve = Callable[[bytes, Limiters], AbstractAsyncContextManager[RunAgent]]
"""From a configuration to what runs its agents; a function that nodes can import."""


@dataclass(frozen=True, slots=True)
class Service:
    """What each node serves. ``configuration`` holds keys: it is sent to the actor alone, and shown nowhere."""

    serve: Serve
    configuration: bytes = field(repr=False)
    parallel: int
    timeout_s: float | None = None


class Host:
    """The actor of one node. Owns the node's Gym."""

    def __init__(self, parallel: int, timeout_s: float | None) -> None:
        self._slots = asyncio.Semaphore(parallel)
        self._timeout_s = timeout_s
        self._stack = AsyncExitStack()

    async def start(self, serve: Serve, configuration: bytes, lender: Any, name: str) -> None:
        """Build and start what the configuration names; its limits are those of the whole cluster."""
        limiters = await self._stack.enter_async_context(RayLimiters(lender, name))
        self._run_agent = await self._stack.enter_async_context(serve(configuration, limiters))

    async def run(self, lease: Sequence[Task]) -> AsyncIterator[Sequence[Ended]]:
        """Run tasks; how they ended, 32 at a time, or what there is after half a second."""
        pending = {asyncio.create_task(self._run(task)) for task in lease}
        batch: list[Ended] = []
        due = time.monotonic() + BATCH_S
        while pending:
            wait_s = max(0.0, due - time.monotonic()) if batch else None
            done, pending = await asyncio.wait(pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if done and not batch:
                due = time.monotonic() + BATCH_S
            batch += [task.result() for task in done]
            if batch and (len(batch) >= BATCH_ROWS or not pending or time.monotonic() >= due):
                yield batch
                batch = []

    async def stop(self) -> None:
        """Stop what was started."""
        await self._stack.aclose()

    async def _run(self, task: Task) -> Ended:
        async with self._slots:
            return await run(task.row(), self._run_agent, timeout_s=self._timeout_s)


class RayExecutor:
    """The nodes of a cluster as places to run leases. Owns its actors; the cluster is not its own, and stays."""

    def __init__(self, service: Service, *, address: str, tell: Callable[[str], None]) -> None:
        """``tell``: what the user may want to know, such as that a node has joined."""
        self._service = service
        self._address = address
        self._tell = tell
        self._ray: Any = None
        self._lender: Any = None
        self._hosts: dict[str, Any] = {}
        self._refused: dict[str, str] = {}
        self._addresses: dict[str, str] = {}

    async def start(self) -> None:
        """Join the cluster. Raises RequestError where there is none, or anybody could use it."""
        self._ray = _import_ray()
        try:
            self._ray.init(
                address=self._address, namespace=f"gymlet-{uuid.uuid4()}", log_to_driver=False, logging_level="ERROR"
            )
        except Exception as error:
            raise RequestError(f"no Ray cluster answers at {self._address}: {error}", param="ray_address") from error
        _require_token(self._ray.nodes())
        here = self._ray.get_runtime_context().get_node_id()
        self._lender = self._ray.remote(Lender).options(**_alone_on(self._ray, here)).remote()

    async def nodes(self) -> AsyncIterator[Sequence[Node]]:
        """The nodes that serve; looked for every second."""
        while True:
            known = [node for node in await asyncio.to_thread(self._ray.nodes) if node["Alive"]]
            self._addresses |= {node["NodeID"]: node["NodeManagerAddress"] for node in known}
            alive = {node["NodeID"] for node in known}
            before = set(self._hosts)
            for name in [name for name in self._hosts if _node_id(name) not in alive]:
                self._lose(name)
            served = {_node_id(name) for name in self._hosts}
            await asyncio.gather(*(self._start_host(node) for node in alive - served - self._refused.keys()))
            if not self._hosts and self._refused:
                raise GymletError("no node can serve the run:\n  " + "\n  ".join(sorted(set(self._refused.values()))))
            if set(self._hosts) != before:
                yield [self._node(name) for name in self._hosts]
            await asyncio.sleep(LOOK_S)

    async def submit(self, node: Node, lease: Sequence[Task]) -> AsyncIterator[Sequence[Ended]]:
        """Run tasks on a node. Raises NodeLost when its actor ends or is out of reach, NodeGone when it was before."""
        host = self._hosts.get(node.name)
        if host is None:
            raise NodeGone
        try:
            async for batch in host.run.options(num_returns="streaming").remote(list(lease)):
                yield await batch
        except self._ray.exceptions.RayError as error:
            self._lose(node.name)
            raise NodeLost from error

    async def stop(self) -> None:
        """Let the actors end; the cluster goes on."""
        if self._ray is None:
            return
        ends = [asyncio.ensure_future(host.stop.remote()) for host in self._hosts.values()]
        if ends:
            await asyncio.wait(ends, timeout=5)
        self._ray.shutdown()

    async def limits(self) -> dict[str, dict[str, Any]]:
        """The state of each provider's endpoints, over all nodes; empty while nobody can tell."""
        if self._lender is None:
            return {}
        try:
            states: dict[str, dict[str, Any]] = await self._lender.states.remote()
        except self._ray.exceptions.RayError:
            return {}
        return states

    async def _start_host(self, node_id: str) -> None:
        name = f"{node_id}/{uuid.uuid4().hex[:8]}"
        service = self._service
        try:
            async with asyncio.timeout(START_S):
                actor = self._ray.remote(Host).options(**_alone_on(self._ray, node_id))
                host = actor.remote(service.parallel, service.timeout_s)
                await host.start.remote(service.serve, service.configuration, self._lender, name)
        except self._ray.exceptions.RayTaskError as error:
            self._refused[node_id] = f"{self._addresses[node_id]}: {error.cause}"
            self._tell(f"the node {self._refused[node_id]}")
        except (self._ray.exceptions.RayError, TimeoutError):
            return  # it is gone, or slow: the next look tries again
        else:
            self._hosts[name] = host
            self._tell(f"the node {self._addresses[node_id]} takes part")

    def _lose(self, name: str) -> None:
        host = self._hosts.pop(name, None)
        if host is not None:
            self._ray.kill(host)
            self._tell(f"the node {self._addresses[_node_id(name)]} was lost; what it had is run elsewhere")

    def _node(self, name: str) -> Node:
        parallel = self._service.parallel
        tasks = min(max(parallel // 4, LEASE_TASKS[0]), LEASE_TASKS[1])
        return Node(name, -(-parallel // tasks) + LEASES_AHEAD, tasks)


def _node_id(name: str) -> str:
    return name.partition("/")[0]


def _alone_on(ray: Any, node_id: str) -> dict[str, Any]:
    """Options of an actor on one node, that Ray neither restarts nor retries."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    return {
        "num_cpus": 0,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 100_000,
        "scheduling_strategy": strategy,
    }


def _import_ray() -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.util.scheduling_strategies")
    except ImportError:
        raise RequestError("executor=ray needs ray: pip install 'gymlet[ray]'", param="executor") from None
    return ray


def _require_token(nodes: Sequence[dict[str, Any]]) -> None:
    """Ray listens on all interfaces, and runs what it is sent: beyond this machine it must ask for a token."""
    open_to = sorted({node["NodeManagerAddress"] for node in nodes if not _is_loopback(node["NodeManagerAddress"])})
    if open_to and os.environ.get(TOKEN_MODE) != "token":
        raise RequestError(
            f"the cluster is reached at {', '.join(open_to)}, and whoever reaches it can run anything there; start it, "
            f"and this command, with {TOKEN_MODE}=token (docs/scale.md)",
            param="ray_address",
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
