"""A run's scores from its files: counted right, written as they come, in little memory."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.scores import score_run, write_scores
from gymlet.wire.errors import RequestError
from scripts.metrics_scale import write_run


def row(task, rollout, agent="a", **fields):
    return {"_ng_task_index": task, "_ng_rollout_index": rollout, "agent_ref": {"name": agent}, **fields}


TASKS = [row(task, rollout) for task in range(3) for rollout in range(2)] + [row(3, 0, "b")]
DONE = [row(0, 0, reward=1.0), row(0, 1, reward=0.0), row(1, 0, reward=1.0)]
FAILED = [row(0, 1), row(1, 1), row(1, 1), row(3, 0, "b")]
SPECS = {"a": MetricsSpec(), "b": MetricsSpec()}


def scored():
    return score_run(SPECS, inputs=TASKS, rows=DONE, failures=FAILED)


def test_what_failed_is_what_has_no_row():
    first, second = (each.summary() for each in scored())
    counted = {key: first["intervals"]["accuracy"][key] for key in ("expected", "ok", "failed", "missing")}
    assert counted == {"expected": 6, "ok": 3, "failed": 1, "missing": 2}
    assert second["intervals"]["accuracy"]["failed"] == 1
    assert (first["agent_ref"], second["agent_ref"]) == ({"name": "a"}, {"name": "b"})


def test_the_file_is_an_array_with_an_object_per_agent(tmp_path):
    summaries = write_scores(tmp_path / "m.json", scored())
    entries = orjson.loads((tmp_path / "m.json").read_bytes())
    assert [
        {key: value for key, value in entry.items() if key != "group_level_metrics"} for entry in entries
    ] == summaries
    groups = entries[0]["group_level_metrics"]
    assert [(group["_ng_task_index"], group["missing_num_rollouts"]) for group in groups] == [(0, 0), (1, 1), (2, 2)]
    assert groups[0]["rollout_infos"] == [
        {"_ng_rollout_index": 0, "reward": 1},
        {"_ng_rollout_index": 1, "reward": 0},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize("specs", [{}, {"a": MetricsSpec()}], ids=["no agent", "an agent without rows"])
def test_little_is_an_array_too(tmp_path, specs):
    write_scores(tmp_path / "m.json", score_run(specs, inputs=[], rows=[], failures=[]))
    assert len(orjson.loads((tmp_path / "m.json").read_bytes())) == len(specs)


def test_a_file_that_breaks_leaves_the_old_one(tmp_path):
    (tmp_path / "m.json").write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_scores(tmp_path / "m.json", (1 // 0 for _ in range(1)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.json": "old"}


def test_an_agent_that_nobody_knows_is_told():
    with pytest.raises(RequestError, match="no agent 'c' is known here; there are: a, b"):
        score_run(SPECS, inputs=None, rows=[row(0, 0, "c")], failures=[])


@pytest.mark.parametrize("index", ["1", 1.5, True, None, 2**63], ids=str)
def test_an_index_must_be_a_whole_number(index):
    with pytest.raises(RequestError, match="'_ng_task_index' must be a whole number"):
        score_run(SPECS, inputs=None, rows=[row(index, 0)], failures=[])


def peak_mb(folder, size):
    write_run(folder, size)
    script = Path(__file__).resolve().parents[2] / "scripts" / "metrics_scale.py"
    told = subprocess.run([sys.executable, script, "--measure", folder], capture_output=True, text=True, check=True)
    return float(told.stdout.split()[1])


def test_memory_grows_by_the_numbers_alone(tmp_path):
    """Ten numbers a rollout are 80 bytes; with keys, order and a column being sorted, 200 a rollout are plenty."""
    small, large = (peak_mb(tmp_path, size) for size in (20_000, 100_000))
    assert (large - small) * 2**20 < 200 * 80_000
