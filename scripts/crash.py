"""Kills the collector at random moments, damages its files in between, and counts what became of every rollout.

    make crash        or: python scripts/crash.py [--kills 200] [--seed 1] [--workers 2]

Real processes: a provider that answers after a few hundredths of a second, and ``ng_collect_rollouts`` over it, killed
with SIGKILL after a random time, again and again. After a kill, at random, the output (or the failures file) gets a
torn last line, blank lines, a row twice, or loses its last newline. With several workers one of them is killed before,
at a random moment too. Then one run to the end. It ends with 1 unless every key is there exactly once, no more requests
were repeated than can have been in flight at the kills, and the metrics are those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.files import RunFiles, read_rows, repair_tail
from gymlet.rollout.keys import key_of

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
CONFIGS = (
    "resources_servers/mcqa/configs/mcqa.yaml,responses_api_models/inference_provider/configs/inference_provider.yaml"
)
PARALLEL = 16
REPEATS = 2
TASKS_A_KILL = 150
"""So many tasks for each kill that they last: 270 rollouts at most are run in a second."""

LIVES_S = 0.8
"""How long a run goes on, at most, behind its first row."""

START_S = 60.0
"""A run that has written nothing for so long is killed all the same."""

EARLY = 0.3
"""The share of kills that may come before the first row, while files are read."""


@dataclass
class Tally:
    """What was done to the run."""

    kills: int = 0
    of_workers: int = 0
    in_a_run: int = 0
    """Kills that came after the run had begun to write."""

    planted: Counter[str] = field(default_factory=Counter)
    is_over: bool = False
    """Whether the run was complete before all kills were done."""


async def main() -> int:
    """Kill, go on, check; 1 if anything is not as it must be."""
    given = _arguments()
    chance = random.Random(given.seed)  # noqa: S311  no secret
    started = time.perf_counter()
    print(f"command: python scripts/crash.py {' '.join(sys.argv[1:])}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks, words = TASKS_A_KILL * given.kills, [f"+num_workers={given.workers}"]
        _write_rows(folder / "rows.jsonl", tasks)
        async with _provider(folder):
            first_row_s = await _run_undisturbed(folder, words)
        async with _provider(folder, "--delay-s", "0.02", "--jitter-s", "0.08") as port:
            tally = await _kill_often(folder, given.kills, first_row_s, chance, words)
            killed = await _counts(port)
        wrong = _told(folder, tasks, tally, killed)
    print(f"{time.perf_counter() - started:.0f} s")
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="the processes that run the rollouts")
    return parser.parse_args()


def _write_rows(path: Path, count: int) -> None:
    options = [{letter: f"option {letter}"} for letter in "ABCD"]
    with path.open("wb") as file:
        for number in range(count):
            params = {"input": f"Question {number}: which one? " + "Think well. " * 20}
            row = {"responses_create_params": params, "options": options, "expected_answer": "ABCD"[number % 4]}
            file.write(orjson.dumps({**row, "uuid": str(number)}) + b"\n")


@asynccontextmanager
async def _provider(folder: Path, *words: str) -> AsyncIterator[int]:
    """A provider of its own, and the env.yaml that names it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    script = ROOT / "scripts" / "lean_provider.py"
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), "--port", str(port), *words)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    await _counts(port)
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
        (folder / "env.yaml").write_text(
            f"policy_api_key: none\npolicy_model_name: lean\npolicy_base_url: http://127.0.0.1:{port}/v1\n"
        )
        yield port
    finally:
        process.kill()
        await process.wait()


async def _counts(port: int) -> dict[str, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /counts HTTP/1.1\r\nHost: here\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
    counts: dict[str, int] = orjson.loads(await reader.readexactly(size))
    writer.close()
    return counts


async def _collector(folder: Path, output: str, words: Sequence[str]) -> asyncio.subprocess.Process:
    with (folder / f"{output}.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("ng_collect_rollouts")),
            f"+config_paths=[{CONFIGS}]",
            "+agent_name=mcqa_simple_agent",
            "+input_jsonl_fpath=rows.jsonl",
            f"+output_jsonl_fpath={output}",
            f"+num_samples_in_parallel={PARALLEL}",
            f"+num_repeats={REPEATS}",
            # the same task twice is told apart by its seed
            "+num_repeats_add_seed=true",
            *words,
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "COLUMNS": "200"},
        )


async def _run_undisturbed(folder: Path, words: Sequence[str]) -> float:
    """Run to the end; the seconds to the first row."""
    started, first_row_s = time.perf_counter(), 0.0
    process = await _collector(folder, "plain.jsonl", words)
    ended = asyncio.create_task(process.wait())
    while not ended.done():
        if not first_row_s and _size(folder / "plain.jsonl"):
            first_row_s = time.perf_counter() - started
        await asyncio.sleep(0.01)
    _must_end_well(ended.result())
    return first_row_s


async def _kill_often(
    folder: Path, kills: int, first_row_s: float, chance: random.Random, words: Sequence[str]
) -> Tally:
    tally, files = Tally(), RunFiles(folder / "killed.jsonl")
    while tally.kills < kills:
        size = _size(files.output)
        process = await _collector(folder, files.output.name, words)
        early_s = chance.uniform(0.3, 1.0) * first_row_s if chance.random() < EARLY else None
        lives_s = chance.uniform(0, LIVES_S)
        await _live(files.output, size, early_s, lives_s / 2)
        tally.of_workers += _kill_worker(process, chance)
        await asyncio.sleep(lives_s / 2)
        if process.returncode is not None:
            _must_end_well(process.returncode)
            tally.is_over = True
            return tally
        process.send_signal(signal.SIGKILL)
        await process.wait()
        tally.kills += 1
        tally.in_a_run += _size(files.output) > size
        what = chance.choice(list(DAMAGES))
        if DAMAGES[what](files, chance):
            tally.planted[what] += 1
    _must_end_well(await (await _collector(folder, files.output.name, words)).wait())
    return tally


async def _live(output: Path, size: int, early_s: float | None, lives_s: float) -> None:
    """Let a run live for ``lives_s`` behind its first row, but not beyond ``early_s``."""
    with suppress(TimeoutError):
        async with asyncio.timeout(START_S if early_s is None else early_s):
            while _size(output) <= size:  # noqa: ASYNC110  a file has no event
                await asyncio.sleep(0.005)
            await asyncio.sleep(lives_s)


def _kill_worker(process: asyncio.subprocess.Process, chance: random.Random) -> bool:
    """Whether there was one: they are the grandchildren of the command."""
    workers = [each for child in _children(process.pid) for each in _children(child)]
    if workers:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
    return bool(workers)


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _must_end_well(code: int) -> None:
    if code != 0:
        raise SystemExit(f"the collector ended with {code}")


def _torn(files: RunFiles, chance: random.Random) -> bool:
    """The last row once more, torn: it is not cut off itself, for then its rollout would rightly be run again."""
    rows = _rows(files)
    return bool(rows) and _append(files, rows[-1][: chance.randrange(1, len(rows[-1]) - 1)])


def _blank(files: RunFiles, chance: random.Random) -> bool:
    return bool(_rows(files)) and _append(files, b"\n" * chance.randrange(1, 4))


def _twice(files: RunFiles, chance: random.Random) -> bool:
    rows = _rows(files)
    return bool(rows) and _append(files, chance.choice(rows))


def _rows(files: RunFiles) -> list[bytes]:
    """The whole rows of the output; what the kill tore is cut off."""
    repair_tail(files.output)
    lines = files.output.read_bytes().splitlines(keepends=True) if _size(files.output) else []
    return [line for line in lines if line.strip()]


def _append(files: RunFiles, tail: bytes) -> bool:
    with files.output.open("ab") as file:
        file.write(tail)
    return True


def _no_newline(files: RunFiles, _chance: random.Random) -> bool:
    if not _size(files.output) or not files.output.read_bytes().endswith(b"}\n"):
        return False
    os.truncate(files.output, _size(files.output) - 1)
    return True


def _torn_failure(files: RunFiles, _chance: random.Random) -> bool:
    with files.failures.open("ab") as file:
        file.write(b'{"_ng_task_index":0,"_ng_roll')
    return True


DAMAGES = {
    "nothing": lambda _files, _chance: True,
    "a torn last row": _torn,
    "blank lines": _blank,
    "a row twice": _twice,
    "a last row without newline": _no_newline,
    "a torn failure": _torn_failure,
}


def _told(folder: Path, tasks: int, tally: Tally, killed: dict[str, int]) -> list[str]:
    """Print the counts; returns what is wrong with them."""
    files, plain = RunFiles(folder / "killed.jsonl"), RunFiles(folder / "plain.jsonl")
    expected = tasks * REPEATS
    keys = Counter(key_of(row) for row in read_rows(files.output))
    print(f"{tally.kills} kills, {tally.in_a_run} of them after rows were written; planted: {_list(tally.planted)}")
    if tally.of_workers:
        print(f"before that, {tally.of_workers} workers were killed")
    print(f"{expected} rollouts expected, {len(keys)} keys in the output, {max(keys.values())} row for each at most")
    wanted = dict.fromkeys(itertools.product(range(tasks), range(REPEATS)), 1)
    most = (tally.kills + tally.of_workers) * PARALLEL
    repeated = killed["requests"] - expected
    print(f"{killed['requests']} requests: {repeated} were repeated, of {most} that can have been in flight")
    mine, theirs = orjson.loads(files.metrics.read_bytes()), orjson.loads(plain.metrics.read_bytes())
    print(f"metrics: {mine[0]['key_metrics']}")
    checks = {
        f"the run was complete after {tally.kills} kills": not tally.is_over,
        "most kills came before the first row": tally.in_a_run >= tally.kills // 3,
        "a key is not there, or is there twice": keys == wanted,
        "a request was not asked at all": killed["distinct"] == expected,
        "more was repeated than can have been in flight": repeated <= most,
        "the metrics differ from an undisturbed run's": mine == theirs,
        "a failure was filed": _size(files.failures) == 0,
    }
    return [what for what, is_right in checks.items() if not is_right]


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
