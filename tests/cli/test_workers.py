"""Several workers on one port, as processes."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import orjson
import pytest
from cli.asking import STREAM, WHOLE, ask, asking, closed, ended
from wire.pipeline import parse_events

WORKERS = "num_workers=3"
MADE = 16
"""Connections, so that it is all but sure that two workers got some."""

COUNTER = """
import os
from gymlet.serve.environment import Environment, tool
from gymlet.wire.errors import GymletError

class Counter(Environment):
    async def start(self):
        if "DIES" in os.environ:
            os._exit(3)
        if "REFUSES" in os.environ:
            raise GymletError("it cannot be started here; do something")

    async def seed_session(self, session, row):
        session["count"] = row["from"]

    @tool
    async def count(self, session):
        session["count"] += 1
        return str(session["count"])

    async def verify(self, session, row):
        return {"reward": session.get("count", -1)}
"""
COUNT = "++counter.resources_servers.counter.entrypoint=app.py"


@pytest.fixture
def counter(tmp_path):
    """An environment that has state."""
    folder = tmp_path / "resources_servers" / "counter"
    folder.mkdir(parents=True)
    (folder / "app.py").write_text(COUNTER)
    return COUNT


def children(process):
    """The processes that it has started."""
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(pid) for pid in tasks.split()}


def workers_of(told):
    """The pids that it tells; what it has started besides is the hub."""
    return {int(pid) for pid in told.split("3 workers share the port; their pids: ")[1].partition("\n")[0].split(", ")}


async def pids(client, url, count=40):
    """The workers that answer so many connections."""
    replies = await asyncio.gather(*(ask(client, url, None, "/server_instances", "GET") for _ in range(count)))
    return {orjson.loads(raw)[0]["pid"] for _, _, raw in replies}


async def gone(pid):
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110  another process has no event for us
            await asyncio.sleep(0.05)


async def test_all_workers_answer(provider, start, client):
    process, url, told = await start(provider.url, WORKERS)
    assert await pids(client, url) == workers_of(told)
    assert len(workers_of(told)) == 3
    assert len(children(process) - workers_of(told)) == 1, "the hub"
    for status, _, raw in await asyncio.gather(*asking(client, url, STREAM, count=30)):
        assert (status, parse_events(raw)[-1]["type"]) == (200, "response.completed")
    process.terminate()
    assert await ended(process) == (0, "stopped\n", "")


async def test_a_killed_worker_comes_back(provider, start, client):
    process, url, told = await start(provider.url, WORKERS)
    before = workers_of(told)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    await gone(killed)
    replies = await asyncio.gather(*asking(client, url, WHOLE, count=30))  # some wait until it is back
    assert [status for status, _, _ in replies] == [200] * 30
    after = await pids(client, url, 60)
    assert (len(after), len(after & before)) == (3, 2)
    process.terminate()
    code, _, err = await ended(process)
    assert (code, err.count("\n")) == (0, 1)
    assert "worker 0 ended with signal SIGKILL; it is started again in 0.1 s" in err


async def test_a_worker_that_is_told_to_stop_ends_its_work_and_comes_back(held, start, client):
    _, url, told = await start(held.url, WORKERS)
    tasks = asking(client, url, WHOLE, count=30)
    await held.reached(30)
    before = workers_of(told)
    os.kill(min(before), signal.SIGTERM)
    held.let_go()
    assert [status for status, _, _ in await asyncio.gather(*tasks)] == [200] * 30
    await gone(min(before))
    assert len(await pids(client, url, 60) - before) == 1


async def test_a_response_is_found_from_every_worker(provider, start, client):
    _, url, _ = await start(provider.url, WORKERS)
    made = [orjson.loads(raw) for _, _, raw in await asyncio.gather(*asking(client, url, WHOLE, count=MADE))]
    assert len({response["id"][5:7] for response in made}) > 1, "several workers made them"
    for response in made:
        read = await asyncio.gather(
            *(ask(client, url, None, f"/v1/responses/{response['id']}", "GET") for _ in range(8))
        )
        assert [(status, orjson.loads(raw)) for status, _, raw in read] == [(200, response)] * 8
    references = [{"type": "item_reference", "id": response["output"][0]["id"]} for response in made]
    follow_ups = [
        {"input": [*references, {"role": "user", "content": "two"}], "previous_response_id": made[0]["id"]},
        {"input": [*references, {"role": "user", "content": "two"}], "stream": True},
        {"input": "two", "previous_response_id": made[1]["id"], "stream": True},
    ]
    for body, messages in zip(follow_ups, (MADE + 3, MADE + 1, 3), strict=True):
        for status, _, raw in await asyncio.gather(*asking(client, url, body, count=8)):
            assert (status, b'"status":"completed"' in raw) == (200, True)
            assert len(provider.requests[-1]["messages"]) == messages
    third = orjson.loads((await ask(client, url, {"input": "x", "previous_response_id": made[2]["id"]}))[2])
    for _ in range(8):
        status, _, _ = await ask(client, url, {"input": "y", "previous_response_id": third["id"]})
        assert (status, len(provider.requests[-1]["messages"])) == (200, 5)
    assert (await ask(client, url, None, f"/v1/responses/{made[0]['id']}", "DELETE"))[0] == 200
    for path, method in ((f"/v1/responses/{made[0]['id']}", "GET"), ("/v1/responses/resp_" + "0" * 32, "GET")):
        for _ in range(6):
            assert (await ask(client, url, None, path, method))[0] == 404
    for _ in range(6):
        status, _, raw = await ask(client, url, {"input": "y", "previous_response_id": made[0]["id"]})
        assert (status, orjson.loads(raw)["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_session_is_found_from_every_worker(provider, start, client, counter):
    _, url, _ = await start(provider.url, WORKERS, counter, "head_server.api_key=the-key-of-all")
    key = {"Authorization": "Bearer the-key-of-all"}

    async def post(endpoint, body, cookie=""):
        headers = key | ({"Cookie": cookie} if cookie else {})
        async with client.post(f"{url}/counter/{endpoint}", json=body, headers=headers) as response:
            return response.status, response.headers, await response.read()

    for start_at in (10, 20, 30):
        _, headers, _ = await post("seed_session", {"from": start_at})
        cookie = headers["Set-Cookie"].partition(";")[0]
        counted = [(await post("count", {}, cookie))[2] for _ in range(12)]
        assert counted == [str(start_at + 1 + number).encode() for number in range(12)]
        status, _, raw = await post("verify", {"response": {}}, cookie)
        assert (status, orjson.loads(raw)["reward"]) == (200, start_at + 12)
        status, headers, _ = await post("verify", {}, cookie)
        assert (status, headers["x-gymlet-failure-class"]) == (400, "invalid_row")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
async def test_a_signal_to_the_whole_group_ends_all_in_order(held, start, client, number):
    process, url, _ = await start(held.url, WORKERS)
    workers = children(process)  # and the hub, which stays until they have ended
    tasks = [*asking(client, url, STREAM, count=15), *asking(client, url, WHOLE, count=15)]
    await held.reached(30)
    folders = {
        Path(line.split()[-1]).parent for line in Path("/proc/net/unix").read_text().splitlines() if "gymlet-" in line
    }
    mine = [folder for folder in folders if folder.exists()]
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in mine)
    os.killpg(process.pid, number)
    await closed(url)
    assert children(process) == workers, "they have work"
    held.let_go()
    for status, _, raw in await asyncio.gather(*tasks):
        assert (status, b'"status":"completed"' in raw) == (200, True)
    assert await ended(process) == (0, "stopped\n", "")
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


async def test_what_does_not_end_in_time_fails_in_every_worker(held, start, client):
    process, url, _ = await start(held.url, WORKERS, "head_server.shutdown_timeout_s=0.3")
    streams = asking(client, url, STREAM, count=12)
    await held.reached(12)
    process.terminate()
    assert (await ended(process))[0] == 0
    for _, _, raw in await asyncio.gather(*streams):
        assert parse_events(raw)[-1]["type"] == "response.failed"
        assert raw.endswith(b"data: [DONE]\n\n")


async def test_workers_do_not_outlive_their_parent(provider, start):
    process, _, _ = await start(provider.url, WORKERS)
    workers = children(process)
    process.kill()
    for pid in workers:
        await gone(pid)


async def finished(start, provider, *overrides, env):
    """What a server tells that never comes to serve, and its exit code."""
    with pytest.raises(AssertionError) as caught:
        await start(provider.url, WORKERS, *overrides, env=env)
    return str(caught.value)


async def test_a_worker_that_dies_again_and_again_ends_the_server(provider, start, counter):
    told = await finished(start, provider, counter, env={"DIES": "1"})
    assert told.startswith("exit code 1: ")
    assert "died 5 times before it could serve; the server ends" in told
    assert "it is started again in 0.8 s" in told
    assert "Traceback" not in told


async def test_a_mistake_that_each_worker_would_make_is_not_repeated(provider, start, counter):
    told = await finished(start, provider, counter, env={"REFUSES": "1"})
    assert told.startswith("exit code 2: ")
    assert "error: it cannot be started here; do something" in told
    assert "started again" not in told


async def test_two_servers_do_not_share_a_port(provider, start):
    _, url, _ = await start(provider.url, WORKERS)
    port = url.rpartition(":")[2]
    with pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}"):
        await start(provider.url, WORKERS, f"head_server.port={port}")


async def test_a_local_model_is_not_started_by_each_worker(provider, start):
    local = "responses_api_models/local_model/configs/local_model.yaml"
    with pytest.raises(
        AssertionError, match=r"the command line: num_workers: policy_model \(local_model\) would be started"
    ):
        await start(provider.url, WORKERS, configs=local)


HUB = """
import asyncio, signal, sys
from contextlib import asynccontextmanager
from gymlet.serve.workers import Fleet, Plan

def say(words):
    sys.stdout.write(words + "\\n")  # one write, whatever the buffering: others write to it too
    sys.stdout.flush()

@asynccontextmanager
async def hub(folder):
    server = await asyncio.start_unix_server(lambda reader, writer: writer.write(b"shared\\n"), folder / "hub.sock")
    await asyncio.sleep(0.3)
    say("hub entered")
    yield
    say("hub left")

async def work(worker, stop, ready):
    reader, _ = await asyncio.open_unix_connection(worker.hub_socket)
    say(f"worker {worker.index} of {worker.count} read {(await reader.readline()).decode().strip()}")
    ready()
    await stop.soon.wait()
    say("worker left")

def run(coroutine):
    asyncio.run(coroutine)
    return 0

plan = Plan(work, run, on_ready=lambda pids: say(f"ready with {len(pids)}"), close=lambda: say("closed"), stop_timeout_s=5, hub=hub)
sys.exit(Fleet(2, plan).run())
"""


async def test_the_hub_is_there_before_the_workers_and_after_them():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HUB, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    lines = [(await asyncio.wait_for(process.stdout.readline(), 20)).decode() for _ in range(5)]
    assert lines[:2] == ["closed\n", "hub entered\n"]
    assert sorted(lines[2:4]) == ["worker 0 of 2 read shared\n", "worker 1 of 2 read shared\n"]
    assert lines[4] == "ready with 2\n"
    os.kill(min(children(process)), signal.SIGKILL)
    for line in (b"closed\n", b"hub entered\n"):
        assert await asyncio.wait_for(process.stdout.readline(), 20) == line
    process.terminate()
    code, out, err = await ended(process)
    assert "the hub ended with signal SIGKILL; it is started again" in err
    assert (code, out) == (0, "closed\nworker left\nworker left\nhub left\n")
