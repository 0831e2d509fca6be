"""Rollouts in several processes of this machine: each serves the configuration, and this one alone writes.

A worker is given as many rollouts as may run in it, each by itself, and another for each that comes back: a slow one
keeps no other waiting. The limits of a provider hold for all workers together, because this process lends the permits.
A worker that dies comes back as ``NodeLost``, and another is started in its place.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from gymlet.rollout.episode import Ended
from gymlet.rollout.executor import Node, NodeGone, NodeLost
from gymlet.rollout.keys import Key
from gymlet.rollout.processes.link import Back, Counted, Give, Link, Message, Permits, Ready, Refused, Stop
from gymlet.rollout.processes.nursery import Born, Nursery
from gymlet.rollout.processes.signals import cause
from gymlet.rollout.processes.worker import PermitPost
from gymlet.rollout.todo import Task
from gymlet.upstream.hub import Borrower
from gymlet.upstream.limiter import LocalLimiter
from gymlet.wire.errors import GymletError

Json = dict[str, Any]
Limiters = dict[str, LocalLimiter]

STOP_S = 5.0
"""What workers get to stop their plug-ins in; what still lives then is killed."""

HANG_UP_S = 1.0
"""What a process gets to end in, once it has hung up."""

MAX_FAILED_STARTS = 5
"""Starts that fail in a row, until a worker that was lost is not replaced any more."""

FIRST_PAUSE_S = 0.1
"""Doubled with each try to replace a worker that fails."""


class ProcessExecutor:
    """Runs tasks in worker processes. Owns them, and the permits of all; the nursery that forks them is not its own.

    Use it as a context manager: the workers are started when it is entered, so that what cannot be started is told
    before there is a run. Raises GymletError then.
    """

    def __init__(self, nursery: Nursery, count: int, *, tell: Callable[[str], None]) -> None:
        """``tell``: what the user may want to know, such as that a worker died."""
        self.parallel = count
        """Rollouts at once, in all workers together; read when the run starts."""

        self._nursery = nursery
        self._count = count
        self._tell = tell
        self._limiters: Limiters = {}
        self._counts: Counter[str] = Counter()
        self._workers: list[WorkerProcess] = []
        self._nodes: dict[Node, WorkerProcess] = {}
        self._changed = asyncio.Event()
        self._keeping: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> ProcessExecutor:
        self._nursery.listen()
        try:
            async with asyncio.TaskGroup() as group:
                starting = [group.create_task(self._begin(slot)) for slot in range(self._count)]
        except* GymletError as errors:
            raise errors.exceptions[0] from None
        self._workers = [each.result() for each in starting]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Watch the workers, which were started before."""
        self._keeping = [asyncio.create_task(self._keep(slot)) for slot in range(self._count)]

    async def nodes(self) -> AsyncIterator[Sequence[Node]]:
        """The workers that serve. Raises GymletError once there is none, nor will be."""
        while True:
            self._changed.clear()
            yield [*self._nodes]
            await self._changed.wait()
            failed = [each.exception() for each in self._keeping if each.done()]
            if len(failed) == self._count and failed[0] is not None:
                raise failed[0]

    async def submit(self, node: Node, lease: Sequence[Task]) -> AsyncIterator[Sequence[Ended]]:
        """Run tasks in a worker. Raises NodeLost when it dies, NodeGone when it was dead before."""
        worker = self._nodes.get(node)
        if worker is None:
            raise NodeGone
        for ended in [worker.run(task) for task in lease]:
            yield [await ended]

    async def stop(self) -> None:
        """Let the workers end; what is under way in them is given up."""
        for keeping in self._keeping:
            keeping.cancel()
        workers, self._workers = self._workers, []
        self._nodes.clear()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        for wrong in await asyncio.gather(*(worker.stop() for worker in workers)):
            if wrong is not None:
                self._tell(f"a worker did not stop as it should: {wrong}")

    async def limits(self) -> dict[str, Json]:
        """The state of each provider's endpoints, and what the workers count on their own."""
        counts = sum((worker.counts for worker in self._workers), self._counts)
        return {"workers": dict(counts), **{name: await each.to_json() for name, each in self._limiters.items()}}

    async def _begin(self, slot: int) -> WorkerProcess:
        """A worker that serves. Raises GymletError."""
        born = self._nursery.start(slot)
        worker = WorkerProcess(born, await Link.over(born.link), self._limiters)
        try:
            await worker.ready()
        except BaseException:
            worker.kill()
            raise
        return worker

    async def _keep(self, slot: int) -> None:
        """See that there is a worker, as long as one can be started. Raises GymletError when none can."""
        leases = self.parallel // self._count + (slot < self.parallel % self._count)
        try:
            for life in itertools.count(1):
                worker = self._workers[slot]
                node = Node(f"worker {slot}, life {life}", leases, 1)
                self._nodes[node] = worker
                self._changed.set()
                code = await worker.ended()
                del self._nodes[node]
                self._counts += worker.counts
                self._tell(f"worker {slot} ended with {cause(code)}; another takes its place, and runs what it had")
                self._workers[slot] = await self._replace(slot)
        finally:
            self._changed.set()

    async def _replace(self, slot: int) -> WorkerProcess:
        for failed in range(1, MAX_FAILED_STARTS):
            try:
                return await self._begin(slot)
            except GymletError as error:
                self._tell(f"try {failed} of {MAX_FAILED_STARTS} to start it failed: {error}")
                await asyncio.sleep(FIRST_PAUSE_S * 2**failed)
        return await self._begin(slot)


class WorkerProcess:
    """One worker, as the driver sees it. Owns the link to it, the permits it holds, and what it was given."""

    def __init__(self, born: Born, link: Link, limiters: Limiters) -> None:
        self.kill = born.kill
        self.counts: Counter[str] = Counter()
        self._mark = born.mark
        self._code = born.code
        self._link = link
        self._borrower = Borrower(limiters, PermitPost(link))
        self._out: dict[Key, asyncio.Future[Ended]] = {}
        self._refusal: str | None = None
        self._has_hung_up = False
        self._is_ready = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())
        self._code.add_done_callback(self._cut_later)

    async def ready(self) -> None:
        """Wait until it serves. Raises GymletError, with its words, where it cannot."""
        ready = asyncio.ensure_future(self._is_ready.wait())
        try:
            await asyncio.wait({ready, self._listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._is_ready.is_set():
            return
        code = await self.ended()
        raise GymletError(self._refusal or f"a worker ended with {cause(code)} before it could run anything")

    def run(self, task: Task) -> asyncio.Future[Ended]:
        """How the task ends: NodeLost, when the worker dies first. Raises NodeGone where it is dead."""
        if self._has_hung_up:
            raise NodeGone
        ended = self._out[task.key] = asyncio.get_running_loop().create_future()
        self._link.post(Give(task))
        return ended

    async def ended(self) -> int:
        """Wait until the process is gone; its exit code. One that hangs up, but lives, is killed."""
        await asyncio.wait({self._listening})
        await self._gone_within(HANG_UP_S)
        return self._code.result()

    async def stop(self) -> str | None:
        """Let it end, in good time; what went wrong, if something did."""
        self._link.post(Stop())
        in_time = await self._gone_within(STOP_S)
        return self._refusal if in_time else f"it took more than {STOP_S:g} s, and was killed"

    def _cut_later(self, _code: asyncio.Future[int]) -> None:
        """Something that the worker has left behind may hold its end of the link open."""
        asyncio.get_running_loop().call_later(HANG_UP_S, self._link.cut)

    async def _gone_within(self, timeout_s: float) -> bool:
        """Wait until the process is gone, and kill it after a time; whether it was gone before."""
        in_time, _ = await asyncio.wait([self._code], timeout=timeout_s)
        if not in_time:
            self.kill()
            await asyncio.wait([self._code])
        await asyncio.wait([self._listening], timeout=HANG_UP_S)
        return bool(in_time)

    async def _listen(self) -> None:
        try:
            while messages := await self._link.fetch():
                for message in messages:
                    self._take(message)
        finally:
            self._has_hung_up = True
            self._borrower.close()
            for ended in self._out.values():
                if not ended.done():
                    ended.set_exception(NodeLost(self._mark.key))
            await self._link.close()

    def _take(self, message: Message) -> None:
        match message:
            case Back(key):
                ended = self._out.pop(key, None)
                if ended is not None and not ended.done():
                    ended.set_result(message.ended)
            case Permits(line):
                self._borrower.take(line)
            case Counted(counts):
                self.counts = Counter(counts)
            case Ready():
                self._is_ready.set()
            case Refused(words):
                self._refusal = words
