"""Rewards again, from rollouts that are stored: what was answered is verified anew, nothing is asked.

A verifier that fails makes a line in the failures file, never a reward of 0.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gymlet.rollout.episode import Failure, RunAgent, Success, run
from gymlet.rollout.files import RunFiles, read_rows
from gymlet.rollout.metrics import TASK
from gymlet.rollout.row_index import RowIndex
from gymlet.rollout.scores import agent_of
from gymlet.rollout.whole_file import whole_file
from gymlet.wire.errors import RequestError

Json = dict[str, Any]
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

        async with asyncio.TaskGroup() as group:
            for _ in range(job.parallel):
                group.create_task(worker())
    return changes


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
            rows.write(_compared(orjson.loads(line), row.get("reward"), changes))
        case Failure(_, line):
            changes.failed += 1
            failures.write(line)


def _compared(verified: Json, before: object, changes: Changes) -> bytes:
    """The line of a row with its previous reward, if that was another."""
    if isinstance(before, int | float) and math.isfinite(before) and before != verified["reward"]:
        verified[PREVIOUS_REWARD] = before
        changes.higher += verified["reward"] > before
        changes.lower += verified["reward"] < before
    return orjson.dumps(verified) + b"\n"
