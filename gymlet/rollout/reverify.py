"""Rewards again, from rollouts that are stored: what was answered is verified anew, nothing is asked.

A verifier that fails makes a line in the failures file, never a reward of 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gymlet.rollout.episode import Failure, RunAgent, Success, run
from gymlet.rollout.files import RunFiles, read_rows
from gymlet.rollout.metrics import ROLLOUT, TASK
from gymlet.rollout.prepare import Part, prepared_rows
from gymlet.rollout.row_index import RowIndex
from gymlet.rollout.scores import agent_of
from gymlet.rollout.whole_file import whole_file
from gymlet.wire.errors import GymletError, RequestError

Json = dict[str, Any]
NO_WORDS: Json = {"object": "response", "status": "completed", "output": [], "usage": None}
"""A response that says nothing."""

PREVIOUS_REWARD = "_ng_previous_reward"


@dataclass(frozen=True, slots=True)
class Reverification:
    """What to verify again, and how. ``inputs``: the tasks, for rows that do not hold their own fields."""

    rollouts: Path
    output: RunFiles
    inputs: Path | None = None
    parallel: int = 64
    timeout_s: float | None = None


@dataclass(slots=True)
class Changes:
    """How the new rewards differ from the old: rows verified, failed, and with another reward, higher or lower."""

    verified: int = 0
    failed: int = 0
    higher: int = 0
    lower: int = 0

    @property
    def changed(self) -> int:
        """Rows with another reward."""
        return self.higher + self.lower


async def reverify(job: Reverification, verify: RunAgent) -> Changes:
    """Verify every row once more; the rows, and the failures, appear whole at the end. Raises RequestError."""
    changes = Changes()
    with ExitStack() as stack:
        index = stack.enter_context(RowIndex(job.inputs)) if job.inputs is not None else None
        rows = stack.enter_context(whole_file(job.output.output))
        failures = stack.enter_context(whole_file(job.output.failures))
        todo = _rows(job.rollouts, index)

        async def worker() -> None:
            for row in todo:
                ended = await run(row, verify, timeout_s=job.timeout_s)
                _commit(ended, row, changes, rows, failures)

        await _all(worker() for _ in range(job.parallel))
    return changes


async def check_rows(part: Part, verify: RunAgent) -> tuple[int, list[str]]:
    """Have each row verified with a response that says nothing: how many rows there are, and which cannot be."""
    problems: list[str] = []
    count = 0
    for count, row in enumerate(prepared_rows(replace(part, repeats=1)), start=1):
        ended = await run({**row, TASK: count, ROLLOUT: 0, "response": dict(NO_WORDS)}, verify)
        if isinstance(ended, Failure):
            problems.append(f"{part.source.label}, row {count}: {orjson.loads(ended.line)['error']['message']}")
    return count, problems


async def _all(workers: Iterable[Coroutine[None, None, None]]) -> None:
    """Run workers to their end. Raises the GymletError of the first that raises one."""
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker)
    except* GymletError as errors:
        first = errors.exceptions[0]
    if first is not None:
        raise first


def _rows(path: Path, index: RowIndex | None) -> Iterator[Json]:
    """The stored rows, with the fields of their tasks beneath. Raises RequestError for a row without an agent."""
    for row in read_rows(path):
        if not agent_of(row):
            raise RequestError(f"{path}: the rollout of task {row[TASK]} names no agent")
        task = (index.get(row[TASK]) if index is not None else None) or {}
        yield {**task, **row}


def _commit(ended: object, row: Json, changes: Changes, rows: BinaryIO, failures: BinaryIO) -> None:
    match ended:
        case Success(_, line):
            changes.verified += 1
            rows.write(_compared(orjson.loads(line), row, changes))
        case Failure(_, line):
            changes.failed += 1
            failures.write(line)


def _compared(verified: Json, before: Json, changes: Changes) -> bytes:
    """The line of a row: its times as they were but for the verifier's, its previous reward if that was another."""
    verify_s = verified["_ng_timings"]["total_s"]
    times = before.get("_ng_timings")
    verified["_ng_timings"] = {**(times if isinstance(times, dict) else {}), "verify_s": verify_s}
    reward = before.get("reward")
    if isinstance(reward, int | float) and reward != verified["reward"]:
        verified[PREVIOUS_REWARD] = reward
        changes.higher += verified["reward"] > reward
        changes.lower += verified["reward"] < reward
    return orjson.dumps(verified) + b"\n"
