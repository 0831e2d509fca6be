"""Where rollouts run: in this process, or wherever an executor of these four methods takes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from gymlet.rollout.episode import Ended, RunAgent, run
from gymlet.rollout.keys import Key
from gymlet.rollout.todo import Task


class Node(NamedTuple):
    """A place that runs leases: how many at once, and of how many tasks each."""

    name: str
    leases: int
    tasks: int


class NodeLost(Exception):  # noqa: N818  it says what happened
    """A node is gone with its lease; what it had not returned may, or may not, have been run.

    ``blamed``: the rollout that it was running at that moment, where that is known; no other has broken it.
    """

    def __init__(self, blamed: Key | None = None) -> None:
        super().__init__(blamed)
        self.blamed = blamed

    def acquits(self, key: Key) -> bool:
        """Whether this rollout has certainly not broken it."""
        return self.blamed not in (None, key)


class NodeGone(NodeLost):
    """A node was gone already, and ran nothing of the lease."""


class Executor(Protocol):
    """Runs tasks. It is given them by the collector, which alone writes what comes back."""

    async def start(self) -> None:
        """Get ready."""
        ...

    def nodes(self) -> AsyncIterator[Sequence[Node]]:
        """The nodes there are, and again whenever they change."""
        ...

    def submit(self, node: Node, lease: Sequence[Task]) -> AsyncIterator[Sequence[Ended]]:
        """Run tasks on a node; how they ended, in whatever order, some at a time. Raises NodeLost, NodeGone."""
        ...

    async def stop(self) -> None:
        """Let go of everything."""
        ...


class LocalExecutor:
    """Runs each task in this process, on its own."""

    def __init__(self, run_agent: RunAgent, *, parallel: int, timeout_s: float | None = None) -> None:
        self._run_agent = run_agent
        self._parallel = parallel
        self._timeout_s = timeout_s

    async def start(self) -> None:
        """Nothing to do."""

    async def nodes(self) -> AsyncIterator[Sequence[Node]]:
        """This process."""
        yield [Node("this process", self._parallel, 1)]

    async def submit(self, node: Node, lease: Sequence[Task]) -> AsyncIterator[Sequence[Ended]]:  # noqa: ARG002  there is one
        """Run the task."""
        for task in lease:
            yield [await run(task.row(), self._run_agent, timeout_s=self._timeout_s)]

    async def stop(self) -> None:
        """Nothing to do."""
