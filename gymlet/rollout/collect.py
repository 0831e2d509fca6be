"""Collects a run: tasks from a file, rollouts at bounded concurrency, rows to a file; nothing grows with the data set.

A fixed number of workers pull from one stream of tasks; a failed rollout is a line in another file, never the end.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from gymlet.rollout import manifest
from gymlet.rollout.episode import Failure, RunAgent, Success, run
from gymlet.rollout.metrics import TASK, Aggregator, MetricsSpec
from gymlet.rollout.records import Records, RunFiles, compare_manifest, key_of, materialize, read_rows, write_json
from gymlet.rollout.tasks import Expander, Expansion
from gymlet.wire.errors import RequestError

Json = dict[str, Any]
ATTEMPTS_VARIABLE = "NEMO_GYM_MAX_ROLLOUT_ATTEMPTS"
DEFAULT_MAX_ATTEMPTS = 3
MAX_WORKERS = 16_384
"""What "unlimited" means: more rollouts at once than any provider takes."""

GRACE_S = 5.0
"""What rollouts in flight get to end in, once the run is to stop."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what to run, where to keep it, and what to do with what is there.

    ``config`` is the configuration without its secrets, for the manifest; ``parallel`` is None for no limit.
    """

    input_path: Path
    files: RunFiles
    expansion: Expansion
    config: Json = field(default_factory=dict)
    parallel: int | None = None
    timeout_s: float | None = None
    resume: bool | None = None
    overwrite: bool = False
    force_resume: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """Rollouts wanted, scored, failed (tried, and without a score) and missing (not tried to the end)."""

    expected: int
    ok: int
    failed: int

    @property
    def missing(self) -> int:
        """Neither scored nor failed."""
        return self.expected - self.ok - self.failed


Event = Literal["ok", "failed", "dropped"]


class Run:
    """A run that was prepared. Owns its records; use it as a context manager."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.notes: list[str] = []
        self._records = Records(job.files)
        self._max_attempts = max_attempts()
        self.expected = 0

    def __enter__(self) -> Run:
        self._records.__enter__()
        try:
            self._prepare()
            self._records.open()
        except BaseException:
            self._records.__exit__()
            raise
        self.notes += self._records.notes
        return self

    def __exit__(self, *exc: object) -> None:
        self._records.__exit__(*exc)

    @property
    def counts(self) -> Counts:
        """How far the run is."""
        ok = len(self._records.done)
        failed = sum(1 for key in self._records.attempts if key not in self._records.done)
        return Counts(self.expected, ok, failed)

    def agents(self) -> list[str]:
        """The agents that the tasks name."""
        return sorted({row["agent_ref"]["name"] for row in read_rows(self.job.files.inputs)})

    async def collect(self, run_agent: RunAgent, *, stop: asyncio.Event, on_event: Callable[[Event], None]) -> None:
        """Run what remains; after ``stop`` no task begins, and those in flight get GRACE_S."""
        todo = self._records.remaining(self._max_attempts)
        workers = min(self.job.parallel or MAX_WORKERS, max(1, self.expected - len(self._records.done)))
        work = asyncio.create_task(self._work(todo, workers, run_agent, stop, on_event))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({work}, timeout=None if not stop.is_set() else GRACE_S)
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.wait({work, stopped})
        if not work.cancelled():
            work.result()

    def finish(self) -> None:
        """Write the end and the counts into the manifest."""
        told = manifest.describe_end(self._manifest, asdict(self.counts) | {"missing": self.counts.missing})
        write_json(self.job.files.manifest, told)

    def aggregate(self, specs: Mapping[str, MetricsSpec]) -> list[Json]:
        """The scores of each agent, over old and new rows; written beside the output."""
        entries = list(_aggregate(self.job.files, specs))
        write_json(self.job.files.metrics, entries)
        return entries

    async def _work(
        self,
        todo: Iterator[Json],
        workers: int,
        run_agent: RunAgent,
        stop: asyncio.Event,
        on_event: Callable[[Event], None],
    ) -> None:
        async def worker() -> None:
            while not stop.is_set() and (task := next(todo, None)) is not None:
                ended = await run(task, run_agent, timeout_s=self.job.timeout_s)
                on_event(self._commit(ended))

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())

    def _commit(self, ended: object) -> Event:
        match ended:
            case Success(row):
                self._records.append(row)
                return "ok"
            case Failure(row):
                self._records.append_failure(row)
                return "failed"
        return "dropped"

    def _prepare(self) -> None:
        job, files = self.job, self.job.files
        self._manifest = manifest.describe(job.input_path, expansion=asdict(job.expansion), config=job.config)
        if job.overwrite:
            moved = files.set_aside()
            self.notes += [f"moved aside: {', '.join(path.name for path in moved)}"] if moved else []
        if self._resumes():
            self.notes.append(f"going on with {files.output.name}")
            if not job.force_resume:
                self.expected = sum(1 for _ in read_rows(files.inputs))
                return
        else:
            files.failures.unlink(missing_ok=True)
        expander = Expander(job.expansion, str(job.input_path))
        with job.input_path.open("rb") as lines:
            self.expected = materialize(
                files.inputs, expander.expand(lines), lambda: self.notes.extend(expander.finish())
            )
        write_json(files.manifest, self._manifest)

    def _resumes(self) -> bool:
        """Whether there is something to go on with. Raises RequestError where that must be asked first."""
        job, files = self.job, self.job.files
        if files.manifest.exists() and files.inputs.exists() and job.resume is not False:
            compare_manifest(files.manifest, self._manifest, force=job.force_resume)
            return True
        if not files.output.exists():
            return False
        if job.resume and files.inputs.exists():
            return True
        raise RequestError(
            f"{files.output} is there already; +resume_from_cache=true goes on with it, "
            "+overwrite=true moves it aside and starts afresh"
        )


def max_attempts() -> int:
    """NEMO_GYM_MAX_ROLLOUT_ATTEMPTS, or 3 where it is no positive number."""
    text = os.environ.get(ATTEMPTS_VARIABLE, "")
    return int(text) if text.isdecimal() and int(text) > 0 else DEFAULT_MAX_ATTEMPTS


def _aggregate(files: RunFiles, specs: Mapping[str, MetricsSpec]) -> Iterator[Json]:
    expected: dict[str, Counter[int]] = {name: Counter() for name in specs}
    for row in read_rows(files.inputs):
        expected[row["agent_ref"]["name"]][row[TASK]] += 1
    aggregators = {name: Aggregator(spec) for name, spec in specs.items()}
    done = set()
    for row in read_rows(files.output):
        aggregators[row["agent_ref"]["name"]].add(row)
        done.add(key_of(row))
    failed: dict[str, set[tuple[int, int]]] = {name: set() for name in specs}
    for row in read_rows(files.failures):
        if key_of(row) not in done:
            failed[row["agent_ref"]["name"]].add(key_of(row))
    for name, aggregator in aggregators.items():
        yield {"agent_ref": {"name": name}, **aggregator.result(expected[name], failed=len(failed[name]))}
