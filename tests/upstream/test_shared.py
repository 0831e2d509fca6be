"""One limiter for several processes, over a real Unix socket and with real processes."""

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gymlet.config.schema import ModelOptions
from gymlet.upstream.limiter import TurnedAway
from gymlet.upstream.pool import Ask
from gymlet.upstream.provider import Endpoint, Provider
from gymlet.upstream.shared import Hub, HubLimiters

OPTIONS = ModelOptions(model="m", adaptive_concurrency=False)
PROVIDER = Provider((Endpoint("http://p/v1", "sk-shared-0123"),), num_concurrent_requests=3)
HOLDER = """
import asyncio, sys
from pathlib import Path
from gymlet.upstream.pool import Ask
from gymlet.upstream.shared import HubLimiters
from upstream.test_shared import OPTIONS, PROVIDER

async def main():
    async with HubLimiters.connect(Path(sys.argv[1])) as hub:
        limiter = hub.of(PROVIDER, OPTIONS)
        permits = [await limiter.acquire(Ask()) for _ in range(2)]
        print("holds", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def socket_path():
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "hub.sock"


@asynccontextmanager
async def clients(path, count):
    async with Hub().serving(path), asyncio.TaskGroup():
        opened = [HubLimiters.connect(path) for _ in range(count)]
        yield [(await each.__aenter__()).of(PROVIDER, OPTIONS) for each in opened]
        for each in opened:
            await each.__aexit__(None, None, None)


async def soon(task):
    return await asyncio.wait_for(task, 5)


async def test_the_limit_is_one_for_all(socket_path):
    async with clients(socket_path, 2) as (one, two):
        permits = [await soon(limiter.acquire(Ask())) for limiter in (one, two, one)]
        waiting = asyncio.create_task(two.acquire(Ask()))
        shown = await soon(one.to_json())
        assert (shown["in_flight"], shown["limit"]) == (3, 3)
        assert not waiting.done()
        permits[0].answered()
        permits[0].end("ok", tokens=7)
        await soon(waiting)
        shown = await soon(two.to_json())
        assert (shown["in_flight"], shown["ok"], shown["queued"]) == (3, 1, 0)
        assert "sk-shared" not in str(shown)


async def test_first_come_first_served_over_processes(socket_path):
    async with clients(socket_path, 3) as limiters:
        held = [await soon(limiters[0].acquire(Ask())) for _ in range(3)]
        order, tasks = [], []

        async def take(number):
            permit = await limiters[number % 3].acquire(Ask())
            order.append(number)
            permit.end("ok")

        for number in range(9):
            tasks.append(asyncio.create_task(take(number)))
            await asyncio.sleep(0.02)
        held[0].end("ok")
        await soon(asyncio.gather(*tasks))
        assert order == list(range(9))


async def test_who_waits_no_more_leaves_no_trace(socket_path):
    async with clients(socket_path, 1) as (limiter,):
        held = [await soon(limiter.acquire(Ask())) for _ in range(3)]
        for pause_s in (0, 0.05):
            task = asyncio.create_task(limiter.acquire(Ask()))
            await asyncio.sleep(pause_s)
            task.cancel()
        await asyncio.sleep(0.05)
        shown = await soon(limiter.to_json())
        assert (shown["queued"], shown["in_flight"]) == (0, 3)
        for permit in held:
            permit.end("ok")
        assert (await soon(limiter.to_json()))["in_flight"] == 0


async def test_refusals_come_through(socket_path):
    async with clients(socket_path, 1) as (limiter,):
        for _ in range(3):
            await soon(limiter.acquire(Ask()))
        with pytest.raises(TurnedAway, match="queue_timeout"):
            await soon(limiter.acquire(Ask(wait_s=0.05)))
        waiting = asyncio.create_task(limiter.acquire(Ask()))
        await asyncio.sleep(0.02)
        limiter.close()
        with pytest.raises(TurnedAway, match="closed"):
            await soon(waiting)


async def test_what_a_killed_process_held_comes_back(socket_path):
    async with Hub().serving(socket_path), HubLimiters.connect(socket_path) as hub:
        limiter = hub.of(PROVIDER, OPTIONS)
        holder = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            HOLDER,
            str(socket_path),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
        )
        assert await asyncio.wait_for(holder.stdout.readline(), 30) == b"holds\n"
        await soon(limiter.acquire(Ask()))
        waiting = asyncio.gather(*(limiter.acquire(Ask()) for _ in range(2)))
        assert (await soon(limiter.to_json()))["in_flight"] == 3
        holder.send_signal(signal.SIGKILL)
        await holder.wait()
        await soon(waiting)
        shown = await soon(limiter.to_json())
        assert (shown["in_flight"], shown["left"]) == (3, 2)


async def test_when_the_hub_is_gone_nobody_waits_for_it(socket_path):
    hub = Hub().serving(socket_path)
    await hub.__aenter__()
    async with HubLimiters.connect(socket_path) as limiters:
        limiter = limiters.of(PROVIDER, OPTIONS)
        for _ in range(3):
            await soon(limiter.acquire(Ask()))
        waiting = asyncio.create_task(limiter.acquire(Ask()))
        await asyncio.sleep(0.02)
        await hub.__aexit__(None, None, None)
        for task in asyncio.all_tasks():
            if "_serve" in repr(task.get_coro()):
                task.cancel()
        with pytest.raises(TurnedAway, match="closed"):
            await soon(waiting)
        with pytest.raises(TurnedAway, match="closed"):
            await soon(limiter.acquire(Ask()))
