"""A run's files: every rollout once, whatever happens."""

import asyncio
import dataclasses
import datetime
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy
import orjson
import pytest

from gymlet.rollout.collect import Counts, Job, Run
from gymlet.rollout.episode import Success
from gymlet.rollout.executor import LocalExecutor, Node, NodeLost
from gymlet.rollout.files import RunFiles, repair_tail
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.sources import open_source
from gymlet.rollout.tasks import Expansion
from gymlet.wire.errors import AgentError, ProviderError, RequestError


@pytest.fixture
def job(tmp_path):
    """A job over so many rows: ``job(3, num_repeats=2)``."""

    def make(rows, **options):
        lines = [orjson.dumps({"responses_create_params": {"input": []}, "x": number}) for number in range(rows)]
        (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        repeats = options.pop("num_repeats", None)
        prompt, overrides = options.pop("prompt", None), options.pop("overrides", {})
        expansion = Expansion(agent_name="a", num_repeats=repeats, prompt=prompt, overrides=overrides)
        return Job(open_source(tmp_path / "rows.jsonl"), RunFiles(tmp_path / "out" / "run.jsonl"), expansion, **options)

    return make


async def right(_agent, row):
    return {"reward": 1.0, "responses_create_params": row["responses_create_params"], "response": {}}


async def collect(job, run_agent=right, *, parallel=8, timeout_s=None):
    with Run(job) as run:
        await run.collect(LocalExecutor(run_agent, parallel=parallel, timeout_s=timeout_s), stop=asyncio.Event())
        run.finish()
        return run.counts, run.notes


def stop_after(count, run):
    """An event that is set once so many rollouts have ended."""

    class Stop(asyncio.Event):
        def is_set(self):
            return run.ended >= count or super().is_set()

    return Stop()


def read(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]


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


async def test_a_failing_rollout_is_filed_and_the_others_go_on(job, monkeypatch):
    monkeypatch.setattr("gymlet.rollout.todo.PAUSE_S", 0.05)

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


async def test_a_failure_says_what_when_and_whose(job):
    async def fails(_agent, _row):
        raise ProviderError("gone", status=503, code="down", request_id="req_1")

    with Run(job(1)) as run:
        await run.collect(LocalExecutor(fails, parallel=1), stop=stop_after(1, run))
    (row,) = read(job(1).files.failures)
    when = row["error"].pop("when")
    assert datetime.datetime.fromisoformat(when).tzinfo is not None
    assert row == {
        "_ng_task_index": 0,
        "_ng_rollout_index": 0,
        "responses_create_params": {"input": []},
        "x": 0,
        "agent_ref": {"name": "a"},
        "_ng_failure_class": "provider_unavailable",
        "error": {
            "class": "provider_unavailable",
            "message": "gone",
            "status": 503,
            "code": "down",
            "provider": None,
            "request_id": "req_1",
            "attempt": 0,
        },
    }


def exits():
    raise SystemExit(1)


def cancels():
    raise asyncio.CancelledError


def recurses():
    return recurses()


def runs_out():
    raise TimeoutError


class Breaks(BaseException):
    """Its words cannot be had, and it is none of the exceptions that one expects."""

    def __str__(self):
        raise ValueError


def breaks():
    raise Breaks


def says_too_much():
    raise ValueError("x" * 1_000_000)


def says_half_a_character():
    raise ValueError("\ud83d")


def says_what_is_no_json():
    error = AgentError("odd")
    error.code, error.status = object(), 10**30
    raise error


MISBEHAVING = {
    "leaves": (exits, "SystemExit: 1"),
    "breaks while it says why": (breaks, "Breaks"),
    "says half a character": (says_half_a_character, "ValueError: ?"),
    "says too much": (says_too_much, "xxx… (1000012 characters)"),
    "says what is no JSON": (says_what_is_no_json, "odd"),
    "cancels itself": (cancels, "the agent cancelled itself"),
    "has a timeout of its own": (runs_out, "TimeoutError: "),
    "recurses for ever": (recurses, "RecursionError"),
    "answers with a list": (list, "answered with list, not with an object"),
    "answers with what is no JSON": (lambda: {"reward": 1.0, "x": {1, 2}}, "Type is not JSON serializable: set"),
    "fails with what is no JSON": (lambda: {"_ng_failure_class": "x", "y": object()}, "not JSON serializable: object"),
}


@pytest.mark.parametrize(("behave", "words"), MISBEHAVING.values(), ids=MISBEHAVING)
async def test_whatever_an_agent_does_the_others_go_on(job, behave, words):
    async def first_misbehaves(agent, row):
        row.pop("_ng_task_index")  # nor may it take the key away
        return behave() if row["x"] == 0 else await right(agent, row)

    counts, _ = await collect(job(3), first_misbehaves)
    assert (counts.ok, counts.failed, counts.missing) == (2, 1, 0)
    failures = read(job(3).files.failures)
    assert [row["error"]["class"] for row in failures] == ["agent_error"] * 3
    assert words in failures[0]["error"]["message"]


async def test_what_an_agent_leaves_in_the_row_does_not_end_the_run(job):
    async def leaves_no_json(agent, row):
        if row["x"]:
            return await right(agent, row)
        row["found"] = {1, 2}
        raise ValueError

    counts, _ = await collect(job(2), leaves_no_json)
    assert (counts.ok, counts.failed) == (1, 1)
    assert read(job(2).files.failures)[0]["agent_ref"] == {"name": "a"}


async def test_numpys_numbers_are_numbers(job):
    async def answers(_agent, _row):
        return {"reward": numpy.float32(0.5), "right": numpy.bool_(True)}

    counts, _ = await collect(job(1), answers)
    assert counts.ok == 1
    assert (read(job(1).files.output)[0]["reward"], read(job(1).files.output)[0]["right"]) == (0.5, True)


@pytest.mark.parametrize("reply", [{}, {"reward": None}, {"reward": float("nan")}, {"reward": "1"}], ids=str)
async def test_a_reply_without_a_finite_reward_is_a_failure_not_a_0(job, reply):
    async def no_reward(_agent, _row):
        return reply

    counts, _ = await collect(job(1), no_reward)
    assert (counts.ok, counts.failed, read(job(1).files.failures)[0]["error"]["class"]) == (0, 1, "verifier_error")


@pytest.mark.parametrize("cancels", [True, False], ids=["that is cancelled", "that will not be"])
async def test_a_rollout_has_a_deadline(job, cancels, monkeypatch):
    monkeypatch.setattr("gymlet.rollout.episode.CANCEL_S", 0.05)
    over = asyncio.Event()

    async def hangs(_agent, _row):
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                if cancels:
                    raise

    counts, _ = await collect(job(1), hangs, timeout_s=0.05)
    over.set()
    assert [row["error"]["class"] for row in read(job(1).files.failures)] == ["timeout"] * 3
    assert counts.failed == 1


async def test_an_agent_may_file_or_drop_its_own_rollout(job):
    async def says(_agent, row):
        return [{"_ng_failure_class": "broken_tool", "_ng_failure_terminal": True}, {"_ng_no_persist": True}][row["x"]]

    counts, _ = await collect(job(2), says)
    assert (counts.ok, counts.failed, counts.missing) == (0, 1, 1)
    (row,) = read(job(2).files.failures)
    assert (row["error"]["class"], row["_ng_failure_class"]) == ("broken_tool", "broken_tool")
    asked = []
    await collect(job(2), lambda _agent, row: asked.append(row["x"]) or right("a", row))
    assert asked == [1], "a terminal failure is not tried again, a dropped rollout is"


async def test_failed_rollouts_are_tried_again_up_to_the_limit(job, monkeypatch):
    async def fails(_agent, _row):
        raise ZeroDivisionError

    with Run(job(1)) as run:
        await run.collect(LocalExecutor(fails, parallel=4), stop=stop_after(2, run))
        assert (run.counts.failed, run.given_up) == (1, 0)
    for _ in range(2):
        await collect(job(1), fails)
    failures = read(job(1).files.failures)
    assert [row.get("_ng_attempt_index") for row in failures] == [None, 1, 2]
    assert [row["error"]["attempt"] for row in failures] == [0, 1, 2]
    with Run(job(1)) as run:
        assert (run.counts.failed, run.given_up) == (1, 1)
    monkeypatch.setenv("NEMO_GYM_MAX_ROLLOUT_ATTEMPTS", "4")
    counts, _ = await collect(job(1))
    assert (counts.ok, read(job(1).files.output)[0]["_ng_attempt_index"]) == (1, 3)


async def test_what_failed_comes_after_the_others_and_a_providers_failures_last(job, monkeypatch):
    monkeypatch.setattr("gymlet.rollout.todo.PAUSE_S", 0.05)
    errors = {
        0: ProviderError("slow down", failure_class="provider_rate_limited"),
        1: ZeroDivisionError(),
        2: ProviderError("no", failure_class="provider_rejected"),
        3: RequestError("no"),
    }
    order = []

    async def fails_once(agent, row):
        order.append(row["x"])
        if row["x"] in errors and "_ng_attempt_index" not in row:
            raise errors[row["x"]]
        return await right(agent, row)

    counts, _ = await collect(job(6), fails_once, parallel=1)
    assert order == [0, 1, 2, 3, 4, 5, 1, 0], "what would fail alike waits for the next run"
    assert (counts.ok, counts.failed) == (4, 2)
    await collect(job(6), fails_once, parallel=1)
    assert order[8:] == [2, 3]


async def test_the_same_command_goes_on(job):
    stop = asyncio.Event()

    async def stops(agent, row):
        stop.set()
        return await right(agent, row)

    with Run(job(3, num_repeats=2)) as run:
        await run.collect(LocalExecutor(stops, parallel=1), stop=stop)
        assert (run.counts.ok, run.counts.missing) == (1, 5)
    with Run(job(3, num_repeats=2)) as run:
        assert (run.counts.ok, run.counts.missing) == (1, 5), "a run that goes on begins where it was"
    counts, notes = await collect(job(3, num_repeats=2))
    assert (counts.ok, keys(job(3).files.output), notes) == (6, ALL, ["going on with run.jsonl"])


CHANGES = {
    "num_repeats": ({"num_repeats": 2}, "expansion.num_repeats: was null, is 2"),
    "the overrides": ({"overrides": {"temperature": 0.5}}, "expansion.overrides.temperature: was null, is 0.5"),
    "the prompt": ({"prompt": {"user": "{x}"}}, 'expansion.prompt: was null, is {"user":"{x}"}'),
    "the configuration": ({"config": {"m": {"model": "b"}}}, 'config.m.model: was "a", is "b"'),
    "the data set": ({"rows": 4}, "input.digest: was"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
async def test_another_command_stops_and_says_what_differs(job, change, words):
    before = {"rows": 3, "config": {"m": {"model": "a", "num_concurrent_requests": 1}}}
    await collect(job(**before))
    rows = read(job(**before).files.output)
    with pytest.raises(RequestError) as caught, Run(job(**{**before, **change})):
        pass
    (told,) = [line for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert words in told
    assert read(job(**before).files.output) == rows


async def test_what_only_changes_the_speed_is_no_difference(job):
    await collect(job(1, config={"m": {"num_concurrent_requests": 1}}))
    counts, notes = await collect(job(1, config={"m": {"num_concurrent_requests": 2, "max_retries": 0}}))
    assert (counts.ok, notes) == (1, ["going on with run.jsonl"])


async def test_the_same_rows_elsewhere_are_the_same_run(job, tmp_path):
    await collect(job(1))
    here = job(1)
    moved = (tmp_path / "rows.jsonl").rename(tmp_path / "moved.jsonl")
    counts, notes = await collect(dataclasses.replace(here, source=open_source(moved)))
    assert (counts.ok, notes) == (1, ["going on with run.jsonl"])


async def test_rows_may_be_compressed(job, tmp_path):
    packed = tmp_path / "rows.jsonl.gz"
    whole = job(3)
    packed.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    counts, _ = await collect(dataclasses.replace(whole, source=open_source(packed)))
    assert (counts.ok, keys(whole.files.output)) == (3, [(0, 0), (1, 0), (2, 0)])


async def test_a_run_may_be_gone_on_with_all_the_same(job):
    await collect(job(3))
    counts, _ = await collect(job(3, num_repeats=2, force_resume=True))
    assert (counts.ok, keys(job(3).files.output)) == (6, ALL)
    counts, _ = await collect(job(2, num_repeats=1, force_resume=True))
    assert (counts.expected, counts.ok) == (2, 2), "rows that are no longer wanted are not counted"
    with Run(job(2, num_repeats=1)) as run:
        assert (run.counts, run.remaining) == (Counts(2, 2, 0), 0), "nor by the runs to come"
        score = run.aggregate({"a": MetricsSpec()})[0]["intervals"]["accuracy"]
    assert (score["expected"], score["ok"], score["failed"], score["missing"]) == (2, 2, 0, 0), "nor in the scores"
    assert len(read(job(2).files.output)) == 6, "but they are kept"


async def test_a_manifest_that_is_none_is_told(job):
    await collect(job(1))
    job(1).files.manifest.write_bytes(b"")
    with pytest.raises(RequestError, match=r"is no manifest; \+overwrite=true"), Run(job(1)):
        pass


async def test_failures_of_an_older_run_do_not_count(job):
    async def fails(_agent, _row):
        raise ZeroDivisionError

    await collect(job(1), fails)
    files = job(1).files
    files.manifest.unlink()
    files.output.unlink()
    counts, notes = await collect(job(1))
    assert (counts.ok, notes) == (1, ["moved aside: run_failures.jsonl.old-1"])
    assert "_ng_attempt_index" not in read(files.output)[0]


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


async def test_nemo_gyms_files_are_gone_on_with(job):
    """Its rows have spaces, and their keys at the end; a failed row may be terminal."""
    await collect(job(4))
    files = job(4).files
    inputs, rows = read(files.inputs), read(files.output)
    files.inputs.write_text("".join(json.dumps(moved_last(row)) + "\n" for row in inputs))
    files.output.write_text("".join(json.dumps(moved_last(row)) + "\n" for row in rows if row["x"] == 0))
    files.failures.write_text(
        "".join(
            json.dumps(moved_last(row) | {"_ng_failure_class": "x", "_ng_failure_terminal": row["x"] == 1}) + "\n"
            for row in inputs
            if row["x"] in (1, 2)
        )
    )
    files.manifest.unlink()
    asked = []

    async def asks(agent, row):
        asked.append((row["x"], row.get("_ng_attempt_index")))
        return await right(agent, row)

    counts, _ = await collect(job(4, resume=True), asks)
    assert (counts.expected, counts.ok, counts.failed, sorted(asked)) == (4, 3, 1, [(2, 1), (3, None)])


def moved_last(row):
    return {**{key: row[key] for key in row if not key.startswith("_ng")}, **row}


TAILS = {
    "torn": (b'{"_ng_task_index":2,"_ng', "was torn"),
    "torn, with a newline": (b'{"_ng_task\n', "was torn"),
    "torn, with blank lines": (b'{"_ng_task\n \n\n', "was torn"),
    "torn after a closing brace": (b'{"_ng_task_index":2,"_ng_rollout_index":0,"x":{}\n', "was torn"),
    "zeros, as a power cut leaves them": (b"\0" * 5000, "was torn"),
    "blank": (b"\n  \n\n", "going on"),
    "spaces without a newline": (b"   ", "going on"),
    "whole, without its newline": (b'{"_ng_task_index":2,"_ng_rollout_index":0}', "had no newline"),
    "twice": (b'{"_ng_task_index":0,"_ng_rollout_index":0}\n', "1 row stood there twice"),
    "twice, far apart": (b'{"_ng_rollout_index":0,"_ng_task_index":1}\n' * 2, "2 rows stood there twice"),
}


@pytest.mark.parametrize("which", ["output", "failures"])
@pytest.mark.parametrize(("tail", "words"), TAILS.values(), ids=TAILS)
async def test_a_damaged_end_is_repaired_and_said(job, tail, words, which):
    await collect(job(3))
    files = job(3).files
    rows = [line for line in files.output.read_bytes().splitlines(keepends=True) if b'"_ng_task_index":2' not in line]
    files.output.write_bytes(b"".join(rows))
    with getattr(files, which).open("ab") as file:
        file.write(tail)
    counts, notes = await collect(job(3))
    assert (counts.ok, keys(files.output)) == (3, [(0, 0), (1, 0), (2, 0)])
    assert which == "failures" or any(words in note for note in notes)
    assert [row for row in read(files.output) if row["_ng_task_index"] < 2] == [orjson.loads(row) for row in rows]


async def test_the_tasks_are_made_anew_where_their_file_is_gone(job):
    await collect(job(2))
    job(2).files.inputs.unlink()
    counts, _ = await collect(job(2))
    assert (counts.ok, counts.expected, len(read(job(2).files.inputs))) == (2, 2, 2)
    job(2).files.inputs.unlink()
    job(2).files.manifest.unlink()
    counts, _ = await collect(job(2, resume=True))
    assert (counts.ok, counts.expected) == (2, 2)


async def test_damaged_tasks_are_told(job):
    job = job(2)
    with Run(job):
        pass
    job.files.inputs.write_bytes(job.files.inputs.read_bytes().replace(b'"x":1,', b'"x":,'))
    with pytest.raises(RequestError, match=r"damaged at task 1, rollout 0: .*; without that file, the same command"):
        await collect(job)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("rows.jsonl", "rows.jsonl is the input, and would be written over"),
        ("folder", "folder is a folder; name a file, such as output_jsonl_fpath=.*folder/rollouts.jsonl"),
    ],
)
def test_overwriting_spares_what_is_no_run(job, tmp_path, output, words):
    (tmp_path / "folder").mkdir()
    job = dataclasses.replace(job(2, overwrite=True), files=RunFiles(tmp_path / output))
    with pytest.raises(RequestError, match=words), Run(job):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "rows.jsonl"]


async def test_a_broken_line_in_the_middle_is_named(job):
    await collect(job(3))
    output = job(3).files.output
    output.write_bytes(b'{"_ng_task_index":7,\n' + output.read_bytes())
    with pytest.raises(RequestError, match=r"run\.jsonl at line 1: .*its rollout is run again"), Run(job(3)):
        pass


def test_a_tail_is_found_behind_a_long_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = b'{"x":"' + b"y" * 200_000 + b'"}\n'
    path.write_bytes(whole + b'{"torn')
    assert repair_tail(path)
    assert path.read_bytes() == whole


class Failing:
    """An executor of two nodes; the first breaks half-way through its lease, and answers one task twice."""

    def __init__(self):
        self.ran = []

    async def start(self):
        self.joined = asyncio.Event()

    async def nodes(self):
        yield [Node("first", 1, 4)]
        await self.joined.wait()
        yield [Node("second", 2, 4)]

    async def submit(self, node, lease):
        ended = [Success(task.key, task.line) for task in lease]
        self.ran.append((node.name, [task.key[0] for task in lease]))
        if node.name == "first":
            yield [ended[1], ended[1]]
            self.joined.set()
            raise NodeLost
        yield ended

    async def stop(self):
        pass


async def test_a_node_that_is_lost_loses_nothing(job):
    executor = Failing()
    with Run(job(10)) as run:
        await run.collect(executor, stop=asyncio.Event())
        assert (run.counts.ok, run.ended) == (10, 10)
    assert keys(job(10).files.output) == [(task, 0) for task in range(10)]
    assert executor.ran[:2] == [("first", [0, 1, 2, 3]), ("second", [0, 2, 3, 4])]


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
