"""A run's files: every rollout once, whatever happens."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest

from gymlet.rollout.collect import Job, Run
from gymlet.rollout.executor import LocalExecutor
from gymlet.rollout.files import RunFiles, repair_tail
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.tasks import Expansion
from gymlet.wire.errors import ProviderError, RequestError


@pytest.fixture
def job(tmp_path):
    """A job over so many rows: ``job(3, num_repeats=2)``."""

    def make(rows, **options):
        lines = [orjson.dumps({"responses_create_params": {"input": []}, "x": number}) for number in range(rows)]
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        repeats = options.pop("num_repeats", None)
        expansion = Expansion(agent_name="a", num_repeats=repeats)
        return Job(tmp_path / "rows.jsonl", RunFiles(tmp_path / "out" / "run.jsonl"), expansion, **options)

    return make


async def right(_agent, row):
    return {"reward": 1.0, "responses_create_params": row["responses_create_params"], "response": {}}


async def collect(job, run_agent=right, *, parallel=8, timeout_s=None):
    with Run(job) as run:
        await run.collect(LocalExecutor(run_agent, parallel=parallel, timeout_s=timeout_s), stop=asyncio.Event())
        run.finish()
        return run.counts, run.notes


def read(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def keys(path):
    return sorted((row["_ng_task_index"], row["_ng_rollout_index"]) for row in read(path))


ALL = [(task, rollout) for task in range(3) for rollout in range(2)]


async def test_every_rollout_is_a_row_with_its_input(job):
    counts, _ = await collect(job(3, num_repeats=2))
    files = job(3).files
    assert (counts.ok, counts.failed, counts.missing, keys(files.output)) == (6, 0, 0, ALL)
    row = read(files.output)[0]
    assert (row["x"], row["agent_ref"], row["_ng_schema_version"]) == (0, {"name": "a"}, 1)
    assert row["_ng_timings"]["total_s"] >= 0
    assert keys(files.inputs) == ALL
    assert orjson.loads(files.manifest.read_bytes())["counts"] == {"expected": 6, "ok": 6, "failed": 0, "missing": 0}


async def test_a_failing_rollout_is_filed_and_the_others_go_on(job):
    async def second_fails(_agent, row):
        if row["x"] == 1:
            raise ProviderError("slow down", status=429, failure_class="provider_rate_limited")
        if row["x"] == 2:
            raise ZeroDivisionError
        return {"reward": 1.0}

    counts, _ = await collect(job(3), second_fails)
    failures = read(job(3).files.failures)
    assert (counts.ok, counts.failed) == (1, 2)
    assert Counter((row["error"]["class"], row["error"]["status"]) for row in failures) == {
        ("provider_rate_limited", 429): 3,
        ("agent_error", 500): 3,
    }
    assert failures[0]["responses_create_params"] == {"input": []}


@pytest.mark.parametrize("reply", [{}, {"reward": None}, {"reward": float("nan")}, {"reward": "1"}], ids=str)
async def test_a_reply_without_a_finite_reward_is_a_failure_not_a_0(job, reply):
    async def no_reward(_agent, _row):
        return reply

    counts, _ = await collect(job(1), no_reward)
    assert (counts.ok, counts.failed, read(job(1).files.failures)[0]["error"]["class"]) == (0, 1, "verifier_error")


async def test_a_rollout_has_a_deadline(job):
    async def hangs(_agent, _row):
        await asyncio.sleep(60)

    counts, _ = await collect(job(1), hangs, timeout_s=0.05)
    assert (counts.failed, read(job(1).files.failures)[0]["error"]["class"]) == (1, "timeout")


async def test_an_agent_may_file_or_drop_its_own_rollout(job):
    async def says(_agent, row):
        return [{"_ng_failure_class": "broken_tool", "_ng_failure_terminal": True}, {"_ng_no_persist": True}][row["x"]]

    counts, _ = await collect(job(2), says)
    assert (counts.ok, counts.failed, counts.missing) == (0, 1, 1)
    asked = []
    await collect(job(2), lambda _agent, row: asked.append(row["x"]) or right("a", row))
    assert asked == [1], "a terminal failure is not tried again, a dropped rollout is"


async def test_failed_rollouts_are_tried_again_up_to_the_limit(job, monkeypatch):
    async def fails(_agent, _row):
        raise ProviderError("no")

    for _ in range(5):
        await collect(job(1), fails)
    assert len(read(job(1).files.failures)) == 3
    assert [row.get("_ng_attempt_index") for row in read(job(1).files.failures)] == [None, 1, 2]
    monkeypatch.setenv("NEMO_GYM_MAX_ROLLOUT_ATTEMPTS", "4")
    counts, _ = await collect(job(1))
    assert (counts.ok, read(job(1).files.output)[0]["_ng_attempt_index"]) == (1, 3)


async def test_the_same_command_goes_on(job):
    stop = asyncio.Event()

    async def stops(agent, row):
        stop.set()
        return await right(agent, row)

    with Run(job(3, num_repeats=2)) as run:
        await run.collect(LocalExecutor(stops, parallel=1), stop=stop)
        assert (run.counts.ok, run.counts.missing) == (1, 5)
    counts, notes = await collect(job(3, num_repeats=2))
    assert (counts.ok, keys(job(3).files.output), notes) == (6, ALL, ["going on with run.jsonl"])


async def test_another_command_stops_and_says_what_differs(job):
    await collect(job(3))
    with pytest.raises(RequestError) as caught, Run(job(3, num_repeats=2)):
        pass
    assert "expansion.num_repeats: was null, is 2" in str(caught.value)
    counts, _ = await collect(job(3, num_repeats=2, force_resume=True))
    assert (counts.ok, keys(job(3).files.output)) == (6, ALL)


async def test_overwrite_moves_the_old_files_aside(job):
    await collect(job(3))
    await collect(job(2, overwrite=True))
    files = job(2).files
    assert (len(read(files.output)), len(read(files.output.with_name("run.jsonl.old-1")))) == (2, 3)


async def test_files_of_others_are_gone_on_with_only_when_asked(job):
    await collect(job(3))
    job(3).files.manifest.unlink()
    with pytest.raises(RequestError, match=r"\+resume_from_cache=true goes on with it"), Run(job(3)):
        pass
    counts, _ = await collect(job(3, resume=True))
    assert counts.ok == 3


TAILS = {
    "torn": (b'{"_ng_task_index":2,"_ng', "was torn"),
    "torn, with a newline": (b'{"_ng_task\n', "was torn"),
    "whole, without its newline": (b'{"_ng_task_index":2,"_ng_rollout_index":0}', "had no newline"),
    "twice": (b'{"_ng_task_index":0,"_ng_rollout_index":0}\n', "1 row stood there twice"),
}


@pytest.mark.parametrize(("tail", "words"), TAILS.values(), ids=TAILS)
async def test_a_damaged_end_is_repaired_and_said(job, tail, words):
    await collect(job(3))
    output = job(3).files.output
    lines = [line for line in output.read_bytes().splitlines(keepends=True) if b'"_ng_task_index":2' not in line]
    output.write_bytes(b"".join(lines) + tail)
    counts, notes = await collect(job(3))
    assert (counts.ok, keys(output)) == (3, [(0, 0), (1, 0), (2, 0)])
    assert any(words in note for note in notes)


def test_a_tail_is_found_behind_a_long_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = b'{"x":"' + b"y" * 200_000 + b'"}\n'
    path.write_bytes(whole + b'{"torn')
    assert repair_tail(path)
    assert path.read_bytes() == whole


async def test_two_collectors_do_not_write_the_same_files(job):
    with Run(job(1)), pytest.raises(RequestError, match="another collector is writing"), Run(job(1)):
        pass


async def test_no_row_is_run_by_two_workers_and_no_more_run_than_allowed(job):
    running, most, seen = 0, 0, Counter()

    async def counts_itself(agent, row):
        nonlocal running, most
        running += 1
        most = max(most, running)
        seen[row["x"]] += 1
        await asyncio.sleep(0.001)
        running -= 1
        return await right(agent, row)

    await collect(job(200), counts_itself, parallel=16)
    assert (most, set(seen.values()), len(seen)) == (16, {1}, 200)


async def test_the_aggregate_counts_old_and_new_rows(job):
    await collect(job(3))
    with Run(job(3)) as run:
        (entry,) = run.aggregate({"a": MetricsSpec()})
    assert (entry["agent_ref"], entry["agent_metrics"]["mean/reward"]) == ({"name": "a"}, 1)
    (written,) = read_json(job(3).files.metrics)
    assert len(written.pop("group_level_metrics")) == 3
    assert written == entry


def read_json(path):
    return orjson.loads(path.read_bytes())


ROWS = 400


def test_kill_9_at_any_moment_loses_and_repeats_nothing(tmp_path):
    """Fifteen kills, each at a random moment, half of them with a torn line planted; then one run to the end."""
    random.seed(11)
    lines = [orjson.dumps({"responses_create_params": {"input": []}, "x": number}) for number in range(ROWS)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    output = tmp_path / "run.jsonl"
    for attempt in range(15):
        process = _collector(tmp_path)
        time.sleep(random.uniform(0.15, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if attempt % 2 and output.exists():
            with output.open("ab") as file:
                file.write(b'{"_ng_task_index":1,"_ng_roll')
    assert _collector(tmp_path).wait() == 0
    assert keys(output) == [(task, 0) for task in range(ROWS)]


def _collector(folder):
    script = Path(__file__).with_name("collector.py")
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen([sys.executable, str(script), str(folder)], env={**os.environ, "PYTHONPATH": str(root)})
