"""One limiter for several processes, over a real Unix socket and with real processes."""

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson
import pytest

from gymlet.config.schema import ModelOptions
from gymlet.upstream.borrowed import HubLimiters
from gymlet.upstream.call import Upstream
from gymlet.upstream.hub import Hub
from gymlet.upstream.limiter import TurnedAway
from gymlet.upstream.messages import MAX_LINE_BYTES
from gymlet.upstream.pool import Ask
from gymlet.upstream.provider import Endpoint, Provider

OPTIONS = ModelOptions(model="m", adaptive_concurrency=False)
PROVIDER = Provider((Endpoint("http://p/v1", "sk-shared-0123"),), num_concurrent_requests=3)
HOLDER = """
import asyncio, sys
from pathlib import Path
from gymlet.upstream.pool import Ask
from gymlet.upstream.borrowed import HubLimiters
from upstream.test_hub import OPTIONS, PROVIDER

async def main():
    async with HubLimiters.connect(Path(sys.argv[1])) as hub:
        limiter = hub.of(PROVIDER, OPTIONS)
        permits = [await limiter.acquire(Ask()) for _ in range(2)]
        print("holds", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


HUB = (
    sys.executable,
    "-c",
    """
import asyncio, sys
from pathlib import Path
from gymlet.upstream.hub import Hub

async def main():
    async with Hub().serving(Path(sys.argv[1])):
        await asyncio.sleep(60)

asyncio.run(main())
""",
)


async def until_there(path):
    async with asyncio.timeout(30):
        while not path.exists():  # noqa: ASYNC110  another process makes it
            await asyncio.sleep(0.02)


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


async def test_places_that_an_earlier_hub_gave_are_no_harm(socket_path):
    async with clients(socket_path, 2) as limiters:
        held = [await soon(limiters[0].acquire(Ask())) for _ in range(3)]
        new = asyncio.create_task(limiters[0].acquire(Ask()))
        await soon(limiters[0].to_json())
        again = asyncio.create_task(limiters[1].acquire(Ask(place=held[-1].place + 1)))
        await soon(limiters[1].to_json())
        for permit in held:
            permit.end("ok")
        assert (await soon(new)).place == (await soon(again)).place


async def test_a_client_names_its_session_as_long_as_it_likes(socket_path, provider):
    async def consume(answer):
        return b"".join([piece async for piece in pieces(answer)])

    async def pieces(answer):
        while piece := await answer.read_some():
            yield piece

    there = Provider((Endpoint(f"{provider.url}/v1"),))
    async with Hub().serving(socket_path), HubLimiters.connect(socket_path) as hub:
        upstream = Upstream(there, OPTIONS, hub.of(there, OPTIONS))
        body = {"model": "plain", "messages": [{"role": "user", "content": "hi"}]}
        assert await soon(upstream.call(body, consume, session="x" * (2 * MAX_LINE_BYTES)))
        await upstream.close()


async def test_a_burst_of_answers_is_longer_than_a_line(socket_path):
    many = Provider(tuple(Endpoint(f"http://p{number}/v1") for number in range(8)))
    async with Hub().serving(socket_path), HubLimiters.connect(socket_path) as hub:
        limiter = hub.of(many, OPTIONS)
        states = await soon(asyncio.gather(*(limiter.to_json() for _ in range(700))))
        assert sum(len(orjson.dumps(each)) for each in states) > MAX_LINE_BYTES
        assert (await soon(limiter.acquire(Ask()))).lane in range(8)


@pytest.mark.parametrize("line", [b"nonsense\n", b'[["end","p",1,"ok",0.0,true]]\n', b"[" * (2 * MAX_LINE_BYTES)])
async def test_who_cannot_be_understood_is_hung_up_on_alone(socket_path, line):
    async with clients(socket_path, 1) as (limiter,):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        writer.write(line)
        with suppress(ConnectionError):
            assert await soon(reader.read()) == b""
        writer.close()
        assert (await soon(limiter.acquire(Ask()))).lane == 0


async def test_a_hub_that_cannot_be_understood_is_dialled_again(socket_path):
    paths = [socket_path.with_name("bad.sock"), socket_path]

    async def babble(reader, writer):
        writer.write(b'[["lent",1,true,0]]\n')
        await reader.read()
        writer.close()

    async def dial():
        return await asyncio.open_unix_connection(paths.pop(0))

    server = await asyncio.start_unix_server(babble, paths[0])
    async with server, Hub().serving(socket_path), HubLimiters(dial).talking() as hub:
        assert (await soon(hub.of(PROVIDER, OPTIONS).acquire(Ask()))).lane == 0


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


async def test_a_hub_that_comes_back_is_found(socket_path):
    first, second = await asyncio.create_subprocess_exec(*HUB, str(socket_path)), None
    try:
        await until_there(socket_path)
        async with HubLimiters.connect(socket_path) as limiters:
            limiter = limiters.of(PROVIDER, OPTIONS)
            for _ in range(3):
                await soon(limiter.acquire(Ask()))
            waiting = asyncio.create_task(limiter.acquire(Ask()))
            await asyncio.sleep(0.05)
            first.kill()
            await first.wait()
            await asyncio.sleep(0.2)
            assert not waiting.done()
            second = await asyncio.create_subprocess_exec(*HUB, str(socket_path))
            (await asyncio.wait_for(waiting, 30)).end("ok")
            assert (await soon(limiter.to_json()))["ok"] == 1
    finally:
        for process in (first, second):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
