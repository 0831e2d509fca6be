"""Gives tasks to whoever runs rollouts, and commits what comes back before more is given.

A node that is lost gives its tasks back. Those that were on two lost nodes are suspects: one of them may have broken
both. They are run one by one, and one that loses its node again is filed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

from gymlet.rollout.episode import Ended, Failure, Success, failed
from gymlet.rollout.executor import Executor, Node, NodeGone, NodeLost
from gymlet.rollout.keys import Attempts, Key
from gymlet.rollout.records import Records
from gymlet.rollout.todo import Task, Todo
from gymlet.rollout.whole_file import StorageError
from gymlet.wire.errors import AgentError, GymletError


class Dispatch:
    """Between the tasks of a run and its executor. Owns what is known of lost nodes; ``run`` it once."""

    def __init__(self, executor: Executor, todo: Todo, records: Records) -> None:
        self._executor = executor
        self._todo = todo
        self._records = records
        self._losses = Attempts()
        self._suspects: asyncio.Queue[Task] = asyncio.Queue()
        self.ended = 0
        """Rollouts that ended, well or not."""

    async def run(self) -> None:
        """Until there is nothing more to hand out. Raises StorageError, and what the executor raises."""
        await self._executor.start()
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._use_nodes(group))
                await self._todo.over.wait()
                watch.cancel()
        except* GymletError as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._executor.stop()

    async def _use_nodes(self, group: asyncio.TaskGroup) -> None:
        used: set[Node] = set()
        async for nodes in self._executor.nodes():
            for node in set(nodes) - used:
                for _ in range(node.leases):
                    group.create_task(self._take_leases(node))
                group.create_task(self._try_suspects(node))
            used.update(nodes)

    async def _take_leases(self, node: Node) -> None:
        while lease := await self._todo.take(node.tasks):
            if self._records.broken is not None:
                raise self._records.broken
            out = {task.key: task for task in lease}
            try:
                await self._submit(node, lease, out)
            except NodeGone:
                for task in out.values():
                    self._todo.give_back(task)
                return
            except NodeLost as lost:
                self._take_back(out.values(), lost)
                return

    async def _submit(self, node: Node, lease: Sequence[Task], out: dict[Key, Task]) -> None:
        """Run a lease; what has not come back is ``out``."""
        async for batch in self._executor.submit(node, lease):
            for ended in batch:
                self._commit(ended, out)

    def _take_back(self, tasks: Iterable[Task], lost: NodeLost) -> None:
        for task in tasks:
            if lost.acquits(task.key) or self._losses.add(task.key) == 1:
                self._todo.give_back(task)
            else:
                self._suspects.put_nowait(task)

    async def _try_suspects(self, node: Node) -> None:
        while (task := await self._next_suspect()) is not None:
            try:
                await self._submit(node, [task], {task.key: task})
            except NodeGone:
                self._suspects.put_nowait(task)
                return
            except NodeLost as lost:
                self._judge(task, lost)
                return

    def _judge(self, task: Task, lost: NodeLost) -> None:
        if lost.acquits(task.key):
            self._suspects.put_nowait(task)
            return
        told = "the process that ran it died, as did two others that had run it; the next run tries it"
        self._append(failed(task.row(), AgentError(told)))
        self._todo.settle()

    async def _next_suspect(self) -> Task | None:
        getting, over = asyncio.create_task(self._suspects.get()), asyncio.create_task(self._todo.over.wait())
        try:
            await asyncio.wait({getting, over}, return_when=asyncio.FIRST_COMPLETED)
            return getting.result() if getting.done() else None
        finally:
            getting.cancel()
            over.cancel()

    def _commit(self, ended: Ended, out: dict[Key, Task]) -> None:
        """Keep how a task ended, if it is still out: what comes twice is dropped.

        All that ends in one turn of the loop is written at the end of it, in one write, before another task begins.
        """
        task = out.pop(ended.key, None)
        if task is None:
            return
        self._append(ended)
        if isinstance(ended, Failure) and not self._records.is_over(ended.key):
            self._todo.again(task, ended.failure_class)
        else:
            self._todo.settle()

    def _append(self, ended: Ended) -> None:
        self.ended += 1
        if not self._records.waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        match ended:
            case Success(key, line):
                self._records.append(key, line)
            case Failure(key, line, _, terminal):
                self._records.append_failure(key, line, terminal=terminal)

    def _flush(self) -> None:
        with suppress(StorageError):  # whoever takes the next task raises it
            self._records.flush()
