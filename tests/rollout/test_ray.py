"""What Ray is needed for is tested by make ray; here, all that it rests on."""

import asyncio
import importlib.util
from pathlib import Path

import msgspec
import orjson
import pytest

from gymlet.config.compose import compose
from gymlet.rollout.cluster.executor import Host, RayExecutor, Service
from gymlet.rollout.cluster.limiters import EXPIRES_S, Lender
from gymlet.rollout.collect import Job, Run
from gymlet.rollout.episode import Success
from gymlet.rollout.executor import Node, NodeGone, NodeLost
from gymlet.rollout.files import RunFiles
from gymlet.rollout.sources import open_source
from gymlet.rollout.tasks import Expansion
from gymlet.rollout.todo import Task
from gymlet.serve.cluster import pack, serve_agents
from gymlet.upstream.lane import LaneLimits
from gymlet.upstream.limiters import LocalLimiters, PoolSpec
from gymlet.upstream.messages import Asked, Ended, Lent, Opened, from_hub
from gymlet.upstream.pool import Ask
from gymlet.wire.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]
MCQA = "resources_servers/mcqa/configs/mcqa.yaml"
PROVIDER = "responses_api_models/inference_provider/configs/inference_provider.yaml"


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
async def test_without_ray_it_is_told_what_to_install():
    executor = RayExecutor(Service(serve_agents, b"", 1), address="auto", tell=print)
    with pytest.raises(RequestError, match=r"executor=ray needs ray: pip install 'gymlet\[ray\]'"):
        await executor.start()


async def test_before_the_cluster_is_joined_there_are_no_limits():
    """The line that shows how it goes is drawn before; an error would end it for the whole run."""
    assert await RayExecutor(Service(serve_agents, b"", 1), address="auto", tell=print).limits() == {}


class Breaking:
    """Nodes that end as soon as they run one of the rows that break them."""

    def __init__(self, breaks):
        self.breaks = breaks
        self.lost = []
        self.leases = []
        self._changed = asyncio.Event()
        self._nodes = []

    async def start(self):
        self._join()

    def _join(self):
        self._nodes.append(Node(f"node {len(self._nodes)}", 2, 4))
        self._changed.set()

    async def nodes(self):
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield [node for node in self._nodes if node.name not in self.lost]

    async def submit(self, node, lease):
        await asyncio.sleep(0)
        if node.name in self.lost:
            raise NodeGone
        self.leases.append([task.key[0] for task in lease])
        for task in lease:
            await asyncio.sleep(0)
            if node.name in self.lost or task.key[0] in self.breaks:
                if node.name not in self.lost:
                    self.lost.append(node.name)
                    self._join()
                raise NodeLost
            yield [Success(task.key, task.line)]

    async def stop(self):
        pass


@pytest.mark.parametrize("breaks", [set(), {0}, {5}, {19}, {3, 4}, {0, 7, 13}], ids=str)
async def test_rows_that_break_nodes_are_filed_and_no_others(breaks, tmp_path):
    rows = [orjson.dumps({"responses_create_params": {}, "x": number}) for number in range(20)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(rows))
    files = RunFiles(tmp_path / "run.jsonl")
    executor = Breaking(breaks)
    async with asyncio.timeout(30):
        with Run(Job(open_source(tmp_path / "rows.jsonl"), files, Expansion(agent_name="a"))) as run:
            await run.collect(executor, stop=asyncio.Event())
    done = [orjson.loads(line)["x"] for line in files.output.read_bytes().splitlines()]
    filed = [orjson.loads(line) for line in files.failures.read_bytes().splitlines()]
    assert sorted(done) == sorted(set(range(20)) - breaks)
    assert sorted(row["x"] for row in filed) == sorted(breaks)
    assert {row["error"]["class"] for row in filed} <= {"agent_error"}
    assert len(executor.lost) <= 3 * len(breaks)


def said(*messages):
    return msgspec.json.encode([*messages]) + b"\n"


async def heard(answers):
    (answer,) = from_hub.decode(await asyncio.wait_for(anext(answers), 5))
    return answer


async def test_permits_of_a_node_that_is_silent_come_back():
    now = [0.0]
    lender = Lender(clock=lambda: now[0])
    opening = said(Opened(PoolSpec("p", (("here", 1.0),), LaneLimits(1, adaptive=False), 10)))
    first, second = lender.listen("first"), lender.listen("second")
    await lender.post("first", opening + said(Asked.of("p", 1, Ask())))
    assert await heard(first) == Lent(1, 0, 0)
    await lender.post("second", opening + said(Asked.of("p", 1, Ask())))
    waiting = asyncio.ensure_future(heard(second))
    now[0] = EXPIRES_S - 1
    await lender.post("second", b"")
    await asyncio.sleep(0.01)
    assert not waiting.done(), "the first may still use its permit"
    now[0] = EXPIRES_S + 1
    await lender.post("second", b"")
    assert await waiting == Lent(1, 0, 1)
    assert (await lender.states())["p"]["in_flight"] == 1
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(first), 5)
    await lender.post("first", said(Asked.of("p", 2, Ask())))
    again = lender.listen("first")
    await lender.post("first", opening + said(Asked.of("p", 3, Ask())))
    await lender.post("second", said(Ended("p", 1, "ok", 0.0, None)))
    assert await heard(again) == Lent(3, 0, 2), "it begins anew, and what it asked before is forgotten"


async def test_a_host_gives_back_what_ended_some_at_a_time(monkeypatch):
    monkeypatch.setattr("gymlet.rollout.cluster.executor.BATCH_S", 0.05)
    host = Host(parallel=100, timeout_s=None)
    slow = asyncio.Event()

    async def run_agent(_name, row):
        if row["_ng_task_index"] >= 40:
            await slow.wait()
        return {"reward": 1.0}

    host._run_agent = run_agent
    rows = [{"_ng_task_index": at, "_ng_rollout_index": 0, "agent_ref": {"name": "a"}} for at in range(41)]
    lease = [Task((at, 0), 0, orjson.dumps(row), 0) for at, row in enumerate(rows)]
    sizes = []
    async for batch in host.run(lease):
        sizes.append(len(batch))
        if sum(sizes) == 40:
            slow.set()
    assert (sum(sizes), sizes[-1]) == (41, 1)


async def test_a_configuration_goes_to_another_machine_and_serves_there(provider, tmp_path):
    (tmp_path / "env.yaml").write_text(
        f"policy_api_key: sk-0123456789\npolicy_model_name: boxed-A\npolicy_base_url: {provider.url}/v1\n"
    )
    composition = compose("ng_run", [f"+config_paths=[{MCQA},{PROVIDER}]"], cwd=tmp_path)
    packed = pack(composition.instances, [tmp_path, ROOT])
    assert "sk-0123456789" not in repr(Service(serve_agents, packed, 1))
    row = {"responses_create_params": {"input": "?"}, "options": [{"A": "a"}], "expected_answer": "A"}
    async with serve_agents(packed, LocalLimiters()) as run_agent:
        assert (await run_agent("mcqa_simple_agent", row))["reward"] == 1.0
