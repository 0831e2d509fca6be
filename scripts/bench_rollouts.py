"""Measures what the collector costs beside a bare aiohttp loop that makes the same calls.

    make bench        or: python scripts/bench_rollouts.py [--rounds 5] [--rollouts 10000] [--rows 1000000] [--assert]

Provider, loop and ``ng_collect_rollouts`` are each a process of their own; rounds take turns. Rollouts a second are the
provider's count from its first request to its last answer. CPU is a process's user and system time, less that of a run
of 64 rollouts: start and end do not count, reading, verifying, writing and scoring do. Quote ratios: absolute times are
this machine's, and noise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

ROOT = Path(__file__).resolve().parent.parent
MCQA = "resources_servers/mcqa/configs/mcqa.yaml"
PROVIDER = "responses_api_models/inference_provider/configs/inference_provider.yaml"
PARALLEL = 64
FEW = 64
"""Rollouts of a run whose CPU is its start and its end."""

SLOW_S = 0.2
TURNS = 120
"""How often each of those at once asks the slow provider. It answers all in step at first, and who processes an answer
keeps the others waiting; after some tens of turns they have spread, as they have from the start with real ones."""

TWO = "+num_workers=2"
KNOWN_LIMIT = "++policy_model.responses_api_models.inference_provider.adaptive_concurrency=false"
"""With the slow provider, the limit is not looked for: that takes some rounds at the start, whoever collects."""

QUESTION = "Question {}: which of the four is right? " + "Think about each of them, then answer. " * 20

IN_PROCESS = """
from gymlet.serve.model import ModelServer

RESPONSE = {
    "id": "resp_1", "object": "response", "status": "completed", "incomplete_details": None,
    "output": [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "\\\\boxed{A}", "annotations": []}]}],
    "usage": {"input_tokens": 200, "output_tokens": 5, "total_tokens": 205,
              "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
}


class InProcess(ModelServer):
    async def start(self): pass

    async def stop(self): pass

    async def respond(self, request):
        return RESPONSE
"""


BUSY_MS = 5
BUSY = f"""
import time

from gymlet.serve.environment import Environment


class Busy(Environment):
    async def verify(self, session, row):
        until = time.process_time() + {BUSY_MS / 1000}
        while time.process_time() < until:
            pass
        return {{"reward": 1.0}}
"""
BUSY_CONFIG = """
busy: {resources_servers: {busy: {entrypoint: app.py}}}
busy_simple_agent:
  responses_api_agents:
    simple_agent:
      entrypoint: app.py
      resources_server: {type: resources_servers, name: busy}
      model_server: {type: responses_api_models, name: policy_model}
"""


class Asserted(NamedTuple):
    """A figure, what it must not pass, and in which direction."""

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def holds(self) -> bool:
        """Whether it is as it must be."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Round:
    """One run of one of the two."""

    per_s: float
    cpu_ms: float
    start_s: float


RunRows = Callable[[int], Awaitable[tuple[Round, float]]]


@dataclass(frozen=True, slots=True)
class Bench:
    """A provider that runs, and a folder with rows and an env.yaml that names it."""

    folder: Path
    port: int

    async def run_loop(self, rows: int, event_loop: str = "uvloop") -> tuple[Round, float]:
        """The bare loop over so many rows; the CPU of its process, in seconds, comes second."""
        script = str(ROOT / "scripts" / "bare_loop.py")
        url = f"http://127.0.0.1:{self.port}/v1"
        return await self._measured([sys.executable, script, f"rows_{rows}.jsonl", url, str(PARALLEL), event_loop])

    async def run_collector(self, rows: int, *words: str, environment: str = MCQA) -> tuple[Round, float]:
        """The collector over so many rows; the CPU of all its processes, in seconds, comes second."""
        for path in self.folder.glob("out*"):
            path.unlink()
        command = _collector(environment, PROVIDER)
        return await self._measured([*command, f"+input_jsonl_fpath=rows_{rows}.jsonl", *words])

    async def _measured(self, command: Sequence[str]) -> tuple[Round, float]:
        await _counts(self.port)
        started = time.perf_counter()
        cpu_s = await asyncio.to_thread(_cpu_of, command, self.folder)
        counts = await _counts(self.port)
        per_s = counts["requests"] / counts["busy_s"] if counts["busy_s"] else 0.0
        return Round(per_s, 1000 * cpu_s / counts["requests"], counts["first_s"] - started), cpu_s


async def main() -> int:
    """Measure and print; 1 if a figure is not as asserted."""
    given = _arguments()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"command: python scripts/bench_rollouts.py {' '.join(sys.argv[1:])}")
    asserted: list[Asserted] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with _provider(folder) as bench:
            asserted += await _compare_instant(bench, given.rounds, given.rollouts)
            await _compare_processes(bench, given.rounds, given.rollouts)
            await _compare_busy(bench, max(1, given.rounds // 2), given.rollouts // 10)
        async with _provider(folder, "--delay-s", str(SLOW_S)) as bench:
            asserted += await _compare_slow(bench, max(1, given.rounds // 2))
        if given.rows:
            asserted.append(_memory(folder, given.rows))
    wrong = [each for each in asserted if not each.holds]
    for each in wrong:
        bound = f"{'at least' if each.at_least else 'at most'} {each.bound:g}"
        print(f"{'WRONG' if given.asserted else 'missed'}: {each.name} is {each.value:.3g}, and should be {bound}")
    return 1 if wrong and given.asserted else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=10_000, help="in a round with an instant provider")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the run whose memory is measured; 0: none")
    parser.add_argument("--assert", dest="asserted", action="store_true", help="exit with 1 if a figure is not met")
    return parser.parse_args()


async def _compare_instant(bench: Bench, rounds: int, rollouts: int) -> list[Asserted]:
    _write_rows(bench.folder, FEW)
    _write_rows(bench.folder, rollouts)
    loops, plain, ours = await _take_turns(
        [bench.run_loop, lambda rows: bench.run_loop(rows, "asyncio"), bench.run_collector], rounds, rollouts
    )
    ratios = _ratios(ours, loops)
    above = [mine.cpu_ms - theirs.cpu_ms for theirs, mine in zip(loops, ours, strict=True)]
    per_minute = [60 * each.per_s for each in ours]
    starts = [each.start_s for each in ours]
    print(f"instant provider, {PARALLEL} in parallel, {rounds} rounds of {rollouts} rollouts:")
    print(f"  rollouts a second: bare loop {_spread([each.per_s for each in loops], 0)}")
    print(f"                     collector {_spread([each.per_s for each in ours], 0)}")
    print(f"  collector / loop: {_spread(ratios)}; rollouts a minute: {_spread(per_minute, 0)}")
    print(f"  collector / the same loop on asyncio's own event loop: {_spread(_ratios(ours, plain))}")
    print(f"  CPU a rollout above the bare call: {_spread(above)} ms")
    print(f"  from the command to the first request: {_spread(starts)} s")
    return [
        Asserted("collector / loop, instant provider", statistics.median(ratios), 0.5, True),
        Asserted("CPU a rollout above the bare call, in ms", statistics.median(above), 1.0, False),
        Asserted("rollouts a minute", statistics.median(per_minute), 30_000, True),
        Asserted("start-up, in s", statistics.median(starts), 1.5, False),
    ]


async def _compare_slow(bench: Bench, rounds: int) -> list[Asserted]:
    rollouts = PARALLEL * TURNS
    _write_rows(bench.folder, rollouts)
    loops, ours = await _take_turns(
        [bench.run_loop, lambda rows: bench.run_collector(rows, KNOWN_LIMIT)], rounds, rollouts
    )
    ratios = _ratios(ours, loops)
    print(f"provider of {1000 * SLOW_S:g} ms, {PARALLEL} in parallel, {rounds} rounds of {rollouts} rollouts:")
    print(f"  collector / loop: {_spread(ratios)}, with adaptive_concurrency=false")
    searching, _ = await bench.run_collector(rollouts)
    print(f"  and while it looks for the limit: {searching.per_s / loops[-1].per_s:.2f}")
    return [Asserted("collector / loop, slow provider", statistics.median(ratios), 0.97, True)]


async def _compare_processes(bench: Bench, rounds: int, rollouts: int) -> None:
    loops, plain, one, two = await _take_turns(
        [
            bench.run_loop,
            lambda rows: bench.run_loop(rows, "asyncio"),
            bench.run_collector,
            lambda rows: bench.run_collector(rows, TWO),
        ],
        rounds,
        rollouts,
    )
    above = [both.cpu_ms - alone.cpu_ms for alone, both in zip(one, two, strict=True)]
    print(f"the same in 2 processes; they, the one that writes and the provider share {os.cpu_count()} cores:")
    print(f"  rollouts a second: {_spread([each.per_s for each in two], 0)}; with one process: ", end="")
    print(f"{_spread(_ratios(two, one))} times")
    print(f"  collector / loop: {_spread(_ratios(two, loops))}; on asyncio's own: {_spread(_ratios(two, plain))}")
    print(f"  from the command to the first request: {_spread([each.start_s for each in two])} s")
    print(f"  CPU a rollout above one process: {_spread(above)} ms")


async def _compare_busy(bench: Bench, rounds: int, rollouts: int) -> None:
    plugin = bench.folder / "resources_servers" / "busy"
    plugin.mkdir(parents=True)
    (plugin / "app.py").write_text(BUSY)
    (bench.folder / "busy.yaml").write_text(BUSY_CONFIG)
    _write_rows(bench.folder, rollouts)
    runs: list[RunRows] = [
        lambda rows: bench.run_collector(rows, environment="busy.yaml"),
        lambda rows: bench.run_collector(rows, TWO, environment="busy.yaml"),
    ]
    one, two = await _take_turns(runs, rounds, rollouts)
    gain = _ratios(two, one)
    print(f"a verifier of {BUSY_MS} ms of CPU, {rounds} rounds of {rollouts} rollouts:")
    print(f"  rollouts a second: {_spread([each.per_s for each in one], 0)}, in 2 processes {_spread(gain)} times that")


def _ratios(ours: Sequence[Round], theirs: Sequence[Round]) -> list[float]:
    return [mine.per_s / other.per_s for mine, other in zip(ours, theirs, strict=True)]


async def _take_turns(runs: Sequence[RunRows], rounds: int, rollouts: int) -> list[list[Round]]:
    """The rounds of each; the first of each warms up, and is left out."""
    results: list[list[Round]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, kept in zip(runs, results, strict=True):
            _, start_cpu_s = await run(FEW)
            measured, cpu_s = await run(rollouts)
            if number:
                kept.append(Round(measured.per_s, 1000 * (cpu_s - start_cpu_s) / (rollouts - FEW), measured.start_s))
    return results


def _memory(folder: Path, rows: int) -> Asserted:
    """The peak of resident memory of a run with the provider in its own process."""
    plugin = folder / "responses_api_models" / "in_process"
    plugin.mkdir(parents=True)
    (plugin / "app.py").write_text(IN_PROCESS)
    (folder / "in_process.yaml").write_text(
        "policy_model: {responses_api_models: {in_process: {entrypoint: app.py, model: in_process}}}\n"
    )
    _write_rows(folder, rows)
    started = time.perf_counter()
    command = [*_collector(MCQA, "in_process.yaml"), f"+input_jsonl_fpath=rows_{rows}.jsonl", "+overwrite=true"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run of {rows} rows ended with {process.returncode}")
    peak_mb = usage.ru_maxrss / 1024
    print(f"{rows} rows, provider in process: {peak_mb:.0f} MB at most, {time.perf_counter() - started:.0f} s")
    return Asserted("resident memory, in MB", peak_mb, 300, False)


def _collector(environment: str, model: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("ng_collect_rollouts")),
        f"+config_paths=[{environment},{model}]",
        f"+agent_name={Path(environment).stem}_simple_agent",
        "+output_jsonl_fpath=out.jsonl",
        f"+num_samples_in_parallel={PARALLEL}",
    ]


def _cpu_of(command: Sequence[str], folder: Path) -> float:
    """Run a command to its end; its user and system time in seconds."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)  # noqa: S603  our own commands
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}:\n{(folder / 'log').read_text()}")
    return usage.ru_utime + usage.ru_stime


@asynccontextmanager
async def _provider(folder: Path, *words: str) -> AsyncIterator[Bench]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    (folder / "env.yaml").write_text(
        f"policy_api_key: none\npolicy_model_name: lean\npolicy_base_url: http://127.0.0.1:{port}/v1\n"
    )
    script = str(ROOT / "scripts" / "lean_provider.py")
    process = await asyncio.create_subprocess_exec(sys.executable, script, "--port", str(port), *words)
    try:
        async with asyncio.timeout(20):
            while not await _answers(port):  # noqa: ASYNC110  another process begins to listen
                await asyncio.sleep(0.05)
        yield Bench(folder, port)
    finally:
        process.kill()
        await process.wait()


async def _answers(port: int) -> bool:
    try:
        await _counts(port)
    except ConnectionRefusedError:
        return False
    return True


async def _counts(port: int) -> dict[str, float]:
    """What the provider was asked since this was asked last."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /new_counts HTTP/1.1\r\nHost: here\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
    counts: dict[str, float] = orjson.loads(await reader.readexactly(size))
    writer.close()
    return counts


def _write_rows(folder: Path, count: int) -> None:
    options = [{letter: f"option {letter}"} for letter in "ABCD"]
    with (folder / f"rows_{count}.jsonl").open("wb") as file:
        for number in range(count):
            params = {"input": [{"role": "user", "content": QUESTION.format(number)}]}
            row = {"responses_create_params": params, "options": options, "expected_answer": "ABCD"[number % 4]}
            file.write(orjson.dumps({**row, "uuid": str(number)}) + b"\n")


def _spread(values: Sequence[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} (min {low:.{digits}f}, max {high:.{digits}f})"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
