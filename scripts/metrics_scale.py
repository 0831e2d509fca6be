"""What scores cost as rollouts grow: time and the whole process's memory, from the run's files to the metrics file.

    python scripts/metrics_scale.py [ROLLOUTS …]

Each size runs in a process of its own, over files that it makes in a scratch folder: ten numbers a row, four rollouts a
task, one rollout in a hundred failed.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from gymlet.rollout.files import read_rows
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.scores import score_run, write_scores

SIZES = (125_000, 250_000, 500_000, 1_000_000)
REPEATS = 4


def main() -> None:
    """Print a line for each size, or measure the one that ``--measure FOLDER`` holds."""
    if sys.argv[1:2] == ["--measure"]:
        _measure(Path(sys.argv[2]))
        return
    print("rollouts   seconds  us a rollout  MB at most")
    for size in [int(text) for text in sys.argv[1:]] or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder), size)
            command = [sys.executable, __file__, "--measure", folder]
            seconds, megabytes = map(float, subprocess.check_output(command, text=True).split())  # noqa: S603
            print(f"{size:8}  {seconds:8.1f}  {seconds / size * 1e6:12.1f}  {megabytes:10.0f}", flush=True)


def write_run(folder: Path, size: int) -> None:
    """The files of a run of so many rollouts, its rows in the order in which they might have ended."""
    chance = random.Random(size)  # noqa: S311
    with (
        (folder / "inputs").open("wb") as inputs,
        (folder / "rows").open("wb") as rows,
        (folder / "failures").open("wb") as failures,
    ):
        for row in _rows(size, chance):
            inputs.write(orjson.dumps({key: row[key] for key in list(row)[:3]}) + b"\n")
            (failures if chance.random() < 0.01 else rows).write(orjson.dumps(row) + b"\n")


def _rows(size: int, chance: random.Random) -> Iterator[dict[str, object]]:
    for number in range(size):
        right = chance.random() < 0.6
        yield {
            "_ng_task_index": number // REPEATS,
            "_ng_rollout_index": number % REPEATS,
            "agent_ref": {"name": "agent"},
            "reward": float(right),
            "answer": chance.choice("ABCD"),
            **{f"measure_{at}": chance.random() for at in range(6)},
            "response": {"usage": {f"{kind}_tokens": chance.randrange(1000) for kind in ("input", "output", "total")}},
        }


def _measure(folder: Path) -> None:
    started = time.perf_counter()
    spec = MetricsSpec(answer_key="answer")
    files = {name: read_rows(folder / name) for name in ("inputs", "rows", "failures")}
    write_scores(folder / "metrics.json", score_run({"agent": spec}, **files))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.perf_counter() - started, peak_mb)


if __name__ == "__main__":
    main()
