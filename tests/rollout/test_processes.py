"""Rollouts in several processes, as the command runs them; providers and verifiers that are held back, and workers that die."""

import asyncio
import os
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from serve import faults

from gymlet.rollout.processes.blame import Marks, marked

until = partial(faults.until, within_s=60.0)
PROVIDER = "responses_api_models/inference_provider/configs/inference_provider.yaml"
LOCAL = "responses_api_models/local_model/configs/local_model.yaml"
ROWS = 24
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}

APP = """
import os, signal, subprocess, time
from pathlib import Path
from gymlet.serve.environment import Environment
from gymlet.wire.errors import GymletError

class Probe(Environment):
    async def start(self):
        words = Path("refuses").read_text() if Path("refuses").exists() else ""
        if words == "in words":
            raise GymletError("it cannot be started here; do something")
        if words == "by itself":
            raise ValueError("a plug-in that is wrong")
        if words == "dies":
            os._exit(7)

    async def stop(self):
        if Path("goes on").exists():
            raise ValueError("it cannot be stopped")

    async def verify(self, session, row):
        match row.get("does"):
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "leave":
                os._exit(3)
            case "leave children":
                if os.fork() == 0:
                    time.sleep(300)
                Path(f"left-{subprocess.Popen(['sleep', '300']).pid}").touch()
                if os.fork() == 0:
                    os.setsid()  # one that is out of reach, and has the worker's end of the link
                    Path(f"stays-{os.getpid()}").touch()
                    os.closerange(0, 3)
                    time.sleep(300)
                os._exit(3)
            case "terminate":
                reading, writing = os.pipe()
                if (pid := os.fork()) == 0:
                    os.write(writing, b"!")
                    time.sleep(300)
                os.read(reading, 1)
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
            case "work":
                Path("works").touch()
                time.sleep(60)
        return {"reward": 1.0, "pid": os.getpid()}
"""

CONFIG = """
probe: {resources_servers: {probe: {entrypoint: app.py}}}
probe_agent:
  responses_api_agents:
    simple_agent:
      entrypoint: app.py
      resources_server: {type: resources_servers, name: probe}
      model_server: {type: responses_api_models, name: policy_model}
"""


class Gate:
    """A provider that answers as many requests as it is let, and counts those that are open."""

    def __init__(self):
        self.free = asyncio.Semaphore(0)
        self.asked = Counter()
        self.open = self.most_open = 0

    def app(self):
        async def completions(request):
            body = orjson.loads(await request.read())
            self.asked[body["messages"][-1]["content"]] += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                await self.free.acquire()
            finally:
                self.open -= 1
            return web.json_response(ANSWER)

        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        return app

    def let(self, count):
        for _ in range(count):
            self.free.release()


@pytest.fixture
async def gate(serve, tmp_path):
    gate = Gate()
    running = await serve(gate.app())
    (tmp_path / "env.yaml").write_text(
        f"policy_api_key: sk-0123456789\npolicy_model_name: m\npolicy_base_url: {running.url}/v1\n"
    )
    folder = tmp_path / "resources_servers" / "probe"
    folder.mkdir(parents=True)
    (folder / "app.py").write_text(APP)
    (tmp_path / "probe.yaml").write_text(CONFIG)
    write_rows(tmp_path)
    return gate


def write_rows(folder, does=None):
    rows = [
        {"responses_create_params": {"input": f"question {number}"}, "does": (does or {}).get(number)}
        for number in range(ROWS)
    ]
    (folder / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


@pytest.fixture
async def collector(spawn):
    """Start the command, with two workers, in a group of its own: ``await collector("+key=value")``."""

    async def start(*arguments, workers=2, model=PROVIDER):
        return await spawn(
            "ng_collect_rollouts",
            *([f"+config_paths=[probe.yaml,{model}]"] if model else []),
            "+agent_name=probe_agent",
            "+input_jsonl_fpath=rows.jsonl",
            "+output_jsonl_fpath=out.jsonl",
            "+num_samples_in_parallel=8",
            *([f"+num_workers={workers}"] if workers else []),
            *arguments,
            start_new_session=True,
        )

    return start


async def end(process):
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def until_line(stream, words):
    async with asyncio.timeout(60):
        while words not in (await stream.readline()).decode():
            pass


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(process):
    (nursery,) = children(process.pid)
    return children(nursery)


def family(process):
    return [*children(process.pid), *workers_of(process)]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def rows_in(folder, name="out.jsonl"):
    path = folder / name
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def keys(rows):
    return sorted(row["_ng_task_index"] for row in rows)


async def test_two_workers_run_every_rollout_once(gate, collector, tmp_path):
    gate.let(ROWS)
    code, out, err = await end(await collector())
    rows = rows_in(tmp_path)
    assert (code, keys(rows), err) == (0, list(range(ROWS)), "")
    assert f"{ROWS} of {ROWS} rollouts in out.jsonl" in out
    assert len({row["pid"] for row in rows}) == 2, "both have run some"
    assert set(gate.asked.values()) == {1}
    alone = await end(await collector(workers=1))
    assert (alone[0], gate.asked.total()) == (0, ROWS), "how many processes ran it makes no other run"


async def test_what_may_run_at_once_holds_for_all_workers_together(gate, collector):
    process = await collector()
    await until(lambda: gate.open == 8)
    gate.let(ROWS)
    assert (await end(process))[0] == 0
    assert gate.most_open == 8


async def test_the_limit_of_a_provider_holds_for_all_workers_together(gate, collector):
    options = "++policy_model.responses_api_models.inference_provider"
    process = await collector(f"{options}.num_concurrent_requests=3", f"{options}.adaptive_concurrency=false")
    await until(lambda: gate.open == 3)
    for count in range(1, ROWS + 1):
        gate.let(1)
        await until(lambda done=count: gate.asked.total() >= min(ROWS, done + 3))
    assert (await end(process))[0] == 0
    assert gate.most_open == 3


async def test_what_a_killed_worker_had_is_run_again_and_nothing_else(gate, collector, tmp_path):
    gate.let(4)
    process = await collector()
    await until(lambda: gate.open == 8 and len(rows_in(tmp_path)) == 4)
    killed, stays = workers_of(process)
    os.kill(killed, signal.SIGKILL)
    await until_line(process.stderr, "ended with signal SIGKILL; another takes its place, and runs what it had")
    await until(lambda: gate.open == 8)
    assert stays in workers_of(process)
    assert len(workers_of(process)) == 2
    gate.let(ROWS)
    code, _, _ = await end(process)
    rows = rows_in(tmp_path)
    assert (code, keys(rows)) == (0, list(range(ROWS)))
    assert gate.asked.total() == ROWS + 4, "the four that it had"
    assert max(gate.asked.values()) == 2


@pytest.mark.parametrize("does", [{5: "die"}, {0: "leave", 7: "die", 8: "leave", 23: "die"}], ids=["one", "four"])
async def test_a_row_that_kills_its_worker_is_filed_and_no_other(gate, collector, tmp_path, does):
    write_rows(tmp_path, does)
    gate.let(1000)
    code, out, err = await end(await collector())
    assert (code, keys(rows_in(tmp_path))) == (3, sorted(set(range(ROWS)) - does.keys()))
    filed = rows_in(tmp_path, "out_failures.jsonl")
    assert keys(filed) == sorted(does)
    assert {row["error"]["class"] for row in filed} == {"agent_error"}
    assert "the process that ran it died, as did two others" in filed[0]["error"]["message"]
    assert f"{ROWS - len(does)} of {ROWS} rollouts" in out
    assert err.count("another takes its place") <= 3 * len(does), "no row counts against another"
    assert "Traceback" not in err
    assert all(gate.asked[f"question {number}"] >= 3 for number in does)


async def test_what_a_worker_leaves_behind_ends_with_it_or_keeps_nobody_waiting(gate, collector, tmp_path):
    write_rows(tmp_path, {2: "leave children", 3: "terminate"})
    gate.let(1000)
    code, _, err = await end(await collector())
    assert (code, keys(rows_in(tmp_path))) == (3, sorted(set(range(ROWS)) - {2}))
    assert "ended with exit code 3; another takes its place" in err
    left = [int(path.name.removeprefix("left-")) for path in tmp_path.glob("left-*")]
    assert len(left) == 3
    assert not any(is_alive(pid) for pid in left)
    for path in tmp_path.glob("stays-*"):
        os.kill(int(path.name.removeprefix("stays-")), signal.SIGKILL)


async def test_workers_do_not_outlive_a_driver_that_is_killed(gate, collector, tmp_path):
    """Neither one that waits nor one that does not come to read; and the same command goes on."""
    write_rows(tmp_path, {4: "work"})
    gate.let(6)
    process = await collector()
    await until((tmp_path / "works").exists)
    pids = family(process)
    process.kill()
    await process.communicate()
    await until(lambda: not any(is_alive(pid) for pid in pids))
    before, done = gate.asked.total(), len(rows_in(tmp_path))
    write_rows(tmp_path)
    gate.let(ROWS)
    code, _, _ = await end(await collector("+force_resume=true"))
    assert (code, keys(rows_in(tmp_path))) == (0, list(range(ROWS)))
    assert gate.asked.total() == before + ROWS - done


async def test_ctrl_c_once_lets_what_is_in_flight_end(gate, collector, tmp_path):
    gate.let(3)
    process = await collector()
    await until(lambda: len(rows_in(tmp_path)) == 3 and gate.open == 8)
    pids = family(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    await until_line(process.stderr, "again to stop at once")
    gate.let(100)
    code, out, err = await end(process)
    assert (code, len(rows_in(tmp_path)), gate.asked.total()) == (130, 11, 11)
    assert "Traceback" not in err
    assert f"11 of {ROWS} rollouts" in out
    assert not any(is_alive(pid) for pid in pids)
    assert (await end(await collector()))[0] == 0
    assert (keys(rows_in(tmp_path)), gate.asked.total()) == (list(range(ROWS)), ROWS)


async def test_twice_stops_now(gate, collector, tmp_path):
    gate.let(3)
    process = await collector()
    await until(lambda: len(rows_in(tmp_path)) == 3 and gate.open == 8)
    pids = family(process)
    os.killpg(process.pid, signal.SIGINT)
    await until_line(process.stderr, "again to stop at once")
    os.killpg(process.pid, signal.SIGTERM)
    code, out, err = await end(process)
    assert (code, len(rows_in(tmp_path))) == (130, 3)
    assert "Traceback" not in err
    assert f"3 of {ROWS} rollouts" in out
    assert not any(is_alive(pid) for pid in pids)
    await until(lambda: gate.open == 0)


REFUSALS = {
    "in words": "error: it cannot be started here; do something\n",
    "by itself": "error: ValueError: a plug-in that is wrong\n",
    "dies": "error: a worker ended with exit code 7 before it could run anything\n",
}


@pytest.mark.parametrize(("refuses", "told"), REFUSALS.items(), ids=REFUSALS)
async def test_what_cannot_be_started_is_told_once(gate, collector, tmp_path, refuses, told):
    (tmp_path / "refuses").write_text(refuses)
    assert await end(await collector()) == (2, "", told)
    assert not (tmp_path / "out_manifest.json").exists(), "there is no run yet"


async def test_what_cannot_be_stopped_is_told_and_spoils_no_run(gate, collector, tmp_path):
    process = await collector()
    await until(lambda: gate.open == 8)
    (tmp_path / "goes on").touch()
    gate.let(ROWS)
    code, _, err = await end(process)
    assert (code, keys(rows_in(tmp_path))) == (0, list(range(ROWS)))
    assert err == 2 * "note: a worker did not stop as it should: ValueError: it cannot be stopped\n"


async def test_a_run_ends_when_none_of_its_workers_can_be_replaced(gate, collector, tmp_path):
    gate.let(3)
    process = await collector("+num_samples_in_parallel=2")
    await until(lambda: len(rows_in(tmp_path)) == 3 and gate.open == 2)
    (tmp_path / "refuses").write_text("in words")
    for pid in workers_of(process):
        os.kill(pid, signal.SIGKILL)
    code, _, err = await end(process)
    assert (code, len(rows_in(tmp_path))) == (2, 3)
    assert "try 4 of 5 to start it failed: it cannot be started here; do something" in err
    assert err.endswith("error: it cannot be started here; do something\n")
    (tmp_path / "refuses").unlink()
    gate.let(ROWS)
    assert (await end(await collector()))[0] == 0
    assert keys(rows_in(tmp_path)) == list(range(ROWS))


async def test_a_file_may_say_how_many_workers_the_server_has(gate, collector, tmp_path, free_port):
    with (tmp_path / "env.yaml").open("a") as file:
        file.write("num_workers: 2\n")
    code, _, err = await end(await collector(f"head_server.port={free_port}", model=None, workers=None))
    assert (code, "no server answers" in err) == (2, True), err


MISTAKES = {
    "a model that is started once": (
        {"model": LOCAL},
        "the command line: num_workers: policy_model (local_model) would be started by each of the workers",
    ),
    "a server that runs": ({"model": None}, "the command line: num_workers: is of what is served here"),
    "a cluster": ({"arguments": ["+executor=ray"]}, "num_workers is of executor=local"),
}


@pytest.mark.parametrize(("given", "told"), MISTAKES.values(), ids=MISTAKES)
async def test_where_it_cannot_be(gate, collector, given, told):
    given = dict(given)
    code, out, err = await end(await collector(*given.pop("arguments", []), **given))
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


DRIVER = """
import asyncio, os, sys
from contextlib import asynccontextmanager
from gymlet.config.schema import ModelOptions
from gymlet.rollout.processes.nursery import Nursery
from gymlet.rollout.processes.executor import ProcessExecutor
from gymlet.rollout.processes.worker import work
from gymlet.rollout.todo import Task
from gymlet.upstream.pool import Ask
from gymlet.upstream.provider import Endpoint, Provider

PROVIDER = Provider((Endpoint("http://127.0.0.1:1/v1"),), num_concurrent_requests=5)
OPTIONS = ModelOptions(model="m", adaptive_concurrency=False)

class Served:
    def __init__(self, limiter):
        self.limiter = limiter

    async def run_agent(self, name, row):
        await self.limiter.acquire(Ask())
        if row.get("dies"):
            await asyncio.sleep(1.5)
            os._exit(3)
        await asyncio.sleep(60)

    async def limits(self):
        return {"a": {**await self.limiter.to_json(), "retries": 2}, "b": {"cached": 1}}

@asynccontextmanager
async def serve(limiters):
    yield Served(limiters.of(PROVIDER, OPTIONS))

def live(link, mark):
    asyncio.run(work(link, serve, mark))
    return 0

def added(states):
    return {name: sum(state.get(name, 0) for state in states.values()) for name in ("limit", "in_flight", "retries", "cached")}

async def main(nursery):
    async with ProcessExecutor(nursery, 2, tell=print) as executor:
        await executor.start()
        async for nodes in executor.nodes():
            if len(nodes) == 2:
                break
        line = b'{"_ng_task_index":%d,"_ng_rollout_index":0,"agent_ref":{"name":"a"},"dies":%s}'
        tasks = [Task((at, 0), 0, line % (at, b"true" if at == 0 else b"false"), 0) for at in range(2)]
        leases = [executor.submit(node, [task]) for node, task in zip(nodes, tasks)]
        running = [asyncio.ensure_future(anext(lease)) for lease in leases]
        async with asyncio.timeout(20):
            while added(await executor.limits()) != {"limit": 5, "in_flight": 2, "retries": 4, "cached": 2}:
                await asyncio.sleep(0.05)
            print("both")
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            print(repr(running[0].exception()))
            while added(await executor.limits()) != {"limit": 5, "in_flight": 1, "retries": 6, "cached": 3}:
                await asyncio.sleep(0.05)
            running[1].cancel()

with Nursery(live) as nursery:
    asyncio.run(main(nursery))
"""


async def test_what_is_shown_is_of_all_workers_and_of_those_that_died():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRIVER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    code, out, err = await end(process)
    told = "both\nNodeLost((0, 0))\nworker 0 ended with exit code 3; another takes its place, and runs what it had\n"
    assert (code, out, err) == (0, told, "")


async def test_a_turn_of_a_rollout_is_marked_and_no_other():
    mark = Marks(2).of(1)
    seen = []

    async def rollout():
        try:
            for number in range(3):
                await asyncio.sleep(0)
                seen.append((number, mark.key))
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(("cancelled", mark.key))
            raise
        finally:
            seen.append(("last", mark.key))

    task = asyncio.create_task(marked(rollout(), mark, (2**40, 7)))
    while len(seen) < 3:
        await asyncio.sleep(0)
        assert mark.key is None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [(each, (2**40, 7)) for each in (0, 1, 2, "cancelled", "last")]
    assert await marked(asyncio.sleep(0, "value"), mark, (1, 1)) == "value"
    with pytest.raises(KeyError):
        await marked(asyncio.wait_for(raising(), 5), mark, (1, 1))
    assert mark.key is None


async def raising():
    await asyncio.sleep(0)
    raise KeyError
