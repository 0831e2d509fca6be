"""Shards that were really collected, put together, are the run that one machine would have made."""

import asyncio
import dataclasses
import random

import orjson
import pytest

from gymlet.rollout.collect import Job, Run
from gymlet.rollout.executor import LocalExecutor
from gymlet.rollout.files import RunFiles
from gymlet.rollout.merge import agents_in, find_shards, merge
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.sources import open_source
from gymlet.rollout.tasks import Expansion
from gymlet.wire.errors import AgentError, RequestError

ROWS, SHARDS, REPEATS = 23, 3, 4
SPECS = {"a": MetricsSpec(answer_key="answer"), "b": MetricsSpec()}


@pytest.fixture
def job(tmp_path):
    """The same job over the same rows, whole or as a shard: ``job("run-1", 1)``."""
    lines = [
        orjson.dumps(
            {
                "responses_create_params": {},
                "x": number % 19,
                **({"agent_ref": {"name": "b"}} if number % 5 == 0 else {}),
            }
        )
        for number in range(ROWS)
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    def make(name, index=0, of=1):
        expansion = Expansion(agent_name="a", num_repeats=REPEATS, shard_index=index, num_shards=of)
        return Job(open_source(tmp_path / "rows.jsonl"), RunFiles(tmp_path / f"{name}.jsonl"), expansion)

    return make


async def answer(_agent, row):
    """As good as chance, but the same wherever it is asked; one in ten fails."""
    chance = random.Random(f"{row['_ng_task_index']} {row['_ng_rollout_index']}")
    await asyncio.sleep(chance.uniform(0, 0.003))
    if chance.random() < 0.1:
        raise AgentError("no")
    return {"reward": float(chance.random() < 0.5), "answer": chance.choice(["A", "B", None])}


async def collect(job):
    with Run(job) as run:
        await run.collect(LocalExecutor(answer, parallel=8), stop=asyncio.Event())
        run.finish()
        return run.aggregate(SPECS), run.counts


def read(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def keys(path):
    return [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in read(path)]


async def test_shards_are_the_run_that_one_machine_would_have_made(job, tmp_path):
    scored, counts = await collect(job("whole"))
    for index in range(SHARDS):
        await collect(job(f"run-{index}", index, SHARDS))
    output = RunFiles(tmp_path / "merged.jsonl")
    shards = find_shards(f"{tmp_path}/run-*.jsonl", output)
    assert [shard.output.name for shard in shards] == ["run-0.jsonl", "run-1.jsonl", "run-2.jsonl"]
    assert agents_in(shards) == ["a", "b"]
    merged = merge(shards, output, SPECS, rows=True)
    assert (merged.summaries, merged.missing, merged.notes) == (scored, (), ())
    assert (merged.ok, merged.expected, merged.complete) == (counts.ok, ROWS * REPEATS, False)
    whole = RunFiles(tmp_path / "whole.jsonl")
    assert sorted(keys(output.output)) == sorted(keys(whole.output))
    assert sorted(keys(output.failures)) == sorted(keys(whole.failures))
    assert sorted(keys(output.inputs)) == sorted(keys(whole.inputs))
    assert orjson.loads(output.metrics.read_bytes()) == orjson.loads(whole.metrics.read_bytes())


async def test_the_merged_run_can_be_gone_on_with(job, tmp_path):
    for index in range(SHARDS):
        await collect(job(f"run-{index}", index, SHARDS))
    output = RunFiles(tmp_path / "merged.jsonl")
    merge(find_shards(f"{tmp_path}/run-*.jsonl", output), output, SPECS, rows=True)
    lines = output.output.read_bytes().splitlines(keepends=True)
    output.output.write_bytes(b"".join(lines[:-5]))
    lost = {(row["_ng_task_index"], row["_ng_rollout_index"]) for row in map(orjson.loads, lines[-5:])}
    asked = []

    async def right(_agent, row):
        asked.append((row["_ng_task_index"], row["_ng_rollout_index"]))
        return {"reward": 1.0}

    with Run(job("merged")) as run:
        await run.collect(LocalExecutor(right, parallel=8), stop=asyncio.Event())
        assert run.counts.ok == len(lines)
    assert set(asked) == lost


def begin(job):
    with Run(job):
        pass


def test_what_lacks_a_shard_is_not_taken_for_the_whole_run(job, tmp_path):
    for index in range(SHARDS - 1):
        begin(job(f"run-{index}", index, SHARDS))
    output = RunFiles(tmp_path / "merged.jsonl")
    merged = merge(find_shards(f"{tmp_path}/run-*.jsonl", output), output, SPECS, rows=True)
    assert (merged.missing, merged.complete) == ((SHARDS - 1,), False)
    with pytest.raises(RequestError, match=f"expansion.num_shards: was {SHARDS}, is 1"), Run(job("merged")):
        pass
    with Run(dataclasses.replace(job("merged"), force_resume=True)) as run:
        assert run.expected == ROWS * REPEATS


def test_shards_of_another_number_are_told(job, tmp_path):
    """0 of 2, 1 of 3 and 2 of 3 lack each second task of shard 0 of 3, and nobody would miss them."""
    for index, of in ((0, 2), (1, 3), (2, 3)):
        begin(job(f"run-{index}", index, of))
    output = RunFiles(tmp_path / "merged.jsonl")
    with pytest.raises(RequestError, match=r"it differs in:\n +expansion.num_shards: was 2, is 3"):
        merge(find_shards(f"{tmp_path}/run-*.jsonl", output), output, SPECS, rows=True)
