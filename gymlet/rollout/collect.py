"""Collects a run: tasks from a file, rollouts at bounded concurrency, rows to a file; nothing grows with the data set.

Whoever runs rollouts takes tasks from one ``Todo``; what comes back is committed before the next is taken. A failed
rollout is a line in another file, never the end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout import manifest
from gymlet.rollout.dispatch import Dispatch
from gymlet.rollout.executor import Executor
from gymlet.rollout.files import RunFiles, read_rows, stamped_first, write_json
from gymlet.rollout.keys import key_of
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.records import Records
from gymlet.rollout.report import write_report
from gymlet.rollout.scores import score_run, write_scores
from gymlet.rollout.sources import Source
from gymlet.rollout.tasks import Expander, Expansion
from gymlet.rollout.todo import Todo
from gymlet.rollout.whole_file import whole_file
from gymlet.wire.errors import RequestError

Json = dict[str, Any]
ATTEMPTS_VARIABLE = "NEMO_GYM_MAX_ROLLOUT_ATTEMPTS"
DEFAULT_MAX_ATTEMPTS = 3
GRACE_S = 5.0
"""What rollouts in flight get to end in, once the run is to stop."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what to run, where to keep it, and what to do with what is there.

    ``config`` is the configuration without its secrets, for the manifest.
    """

    source: Source
    files: RunFiles
    expansion: Expansion
    config: Json = field(default_factory=dict)
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


class Run:
    """A run that was prepared. Owns its records; use it as a context manager."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.notes: list[str] = []
        self.max_attempts = max_attempts()
        self._records = Records(job.files, self.max_attempts)
        self._manifest: Json = {}
        self._tally = Tally()
        self._dispatch: Dispatch | None = None

    def __enter__(self) -> Run:
        self._records.__enter__()
        try:
            self._prepare()
            self._records.open()
            self._before = Counts(self.expected, len(self._records.done), self._records.failed)
        except BaseException:
            self._records.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._records.__exit__(*exc)

    @property
    def expected(self) -> int:
        """Rollouts wanted."""
        return sum(self._tally.tasks.values())

    @property
    def counts(self) -> Counts:
        """How far the run is."""
        records, before = self._records, self._before
        ok = self._tally.done + len(records.done) - before.ok
        return Counts(self.expected, ok, self._tally.failed + records.failed - before.failed)

    @property
    def remaining(self) -> int:
        """Rollouts without a row; some may not be tried again."""
        return self.expected - self.counts.ok

    @property
    def given_up(self) -> int:
        """Rollouts that failed for good, or too often to be tried again."""
        return self._records.given_up

    @property
    def ended(self) -> int:
        """Rollouts that ended since the run began, well or not."""
        return self._dispatch.ended if self._dispatch is not None else 0

    def agents(self) -> list[str]:
        """The agents that the tasks name."""
        return sorted(self._tally.tasks)

    async def collect(self, executor: Executor, *, stop: asyncio.Event) -> None:
        """Run what remains; after ``stop`` no task begins, and those in flight get GRACE_S. Raises StorageError."""
        with Todo(self.job.files.inputs, self._records, stop) as todo:
            self._dispatch = Dispatch(executor, todo, self._records)
            work = asyncio.create_task(self._dispatch.run())
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
                todo.close()
                await asyncio.wait({work}, timeout=GRACE_S)
            finally:
                for task in (work, stopped):
                    task.cancel()
                await asyncio.wait({work, stopped}, timeout=GRACE_S)  # an agent may not let itself be cancelled
            self._records.flush()
            if work.done() and not work.cancelled():
                work.result()

    def finish(self) -> None:
        """Write the end and the counts into the manifest."""
        counts = asdict(self.counts) | {"missing": self.counts.missing}
        self._manifest = manifest.describe_end(self._manifest, counts)
        write_json(self.job.files.manifest, self._manifest)

    def aggregate(self, specs: Mapping[str, MetricsSpec]) -> list[Json]:
        """The scores of each agent, over old and new rows; written beside the output, and a report of the run."""
        files = self.job.files
        inputs, rows, failures = (read_rows(path) for path in (files.inputs, files.output, files.failures))
        scores = score_run(specs, inputs=inputs, rows=rows, failures=failures)
        summaries = write_scores(files.metrics, scores)
        write_report(files, self._manifest, summaries)
        return summaries

    def _prepare(self) -> None:
        job, files = self.job, self.job.files
        _check_paths(job)
        self._manifest = manifest.describe(job.source, expansion=asdict(job.expansion), config=job.config)
        if job.overwrite:
            self._set_aside(files.all())
        earlier = self._earlier()
        if earlier is None:
            self._set_aside([files.failures])
        self._records.learn()
        self.notes += self._records.notes
        same = earlier is not None and not (earlier and manifest.differences(earlier, self._manifest))
        if same and files.inputs.exists():
            self._go_on(earlier or {})
        else:
            self._materialize()

    def _set_aside(self, paths: Iterable[Path]) -> None:
        moved = self.job.files.set_aside(paths)
        self.notes += [f"moved aside: {', '.join(path.name for path in moved)}"] if moved else []

    def _earlier(self) -> Json | None:
        """The manifest of the run to go on with, empty if it has none; None to begin afresh.

        Raises RequestError where that must be asked first.
        """
        job, files = self.job, self.job.files
        if files.manifest.exists() and job.resume is not False:
            return manifest.compare(files.manifest, self._manifest, force=job.force_resume)
        if not files.output.exists() or files.output.stat().st_size == 0:
            return None
        if job.resume:
            return {}
        raise RequestError(
            f"{files.output} is there already; +resume_from_cache=true goes on with it, "
            "+overwrite=true moves it aside and starts afresh"
        )

    def _go_on(self, earlier: Json) -> None:
        self.notes.append(f"going on with {self.job.files.output.name}")
        if "tasks" in earlier:
            self._tally = Tally.known(earlier["tasks"], self._records)
        else:
            for row in read_rows(self.job.files.inputs):
                self._tally.add(row, self._records)
        self._manifest["started"] = earlier.get("started")
        self._tell_tasks()

    def _materialize(self) -> None:
        job, files = self.job, self.job.files
        expander = Expander(job.expansion, job.source.label, unit=job.source.unit)
        rows = (self._tally.add(row, self._records) for row in expander.expand(job.source.lines()))
        with whole_file(files.inputs) as file:
            file.writelines(orjson.dumps(stamped_first(row), option=orjson.OPT_APPEND_NEWLINE) for row in rows)
            self.notes += expander.finish()
        self._tell_tasks()
        write_json(files.manifest, self._manifest)

    def _tell_tasks(self) -> None:
        """The next run need not count the tasks anew, if every record is of one of them."""
        if (self._tally.done, self._tally.failed) == (len(self._records.done), self._records.failed):
            self._manifest["tasks"] = self._tally.tasks


def _check_paths(job: Job) -> None:
    """Raises RequestError where a file of the run is a folder, or the input itself, which would be written over."""
    source = Path(job.source.label)
    for path in job.files.all():
        if path.is_dir():
            raise RequestError(f"{path} is a folder; name a file, such as output_jsonl_fpath={path}/rollouts.jsonl")
        if path.exists() and source.exists() and path.samefile(source):
            raise RequestError(f"{path} is the input, and would be written over; name another output_jsonl_fpath")


class Tally:
    """How many tasks each agent has, and how many of them were done, or had failed, before this run."""

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}
        self.done = 0
        self.failed = 0

    @classmethod
    def known(cls, tasks: Mapping[str, int], records: Records) -> Tally:
        """Of a run that all its records belong to."""
        tally = cls()
        tally.tasks, tally.done, tally.failed = dict(tasks), len(records.done), records.failed
        return tally

    def add(self, row: Json, records: Records) -> Json:
        """Count one task, and pass it on."""
        name, key = row["agent_ref"]["name"], key_of(row)
        self.tasks[name] = self.tasks.get(name, 0) + 1
        if key in records.done:
            self.done += 1
        elif records.attempts[key]:
            self.failed += 1
        return row


def max_attempts() -> int:
    """NEMO_GYM_MAX_ROLLOUT_ATTEMPTS, or 3 where it is no positive number."""
    text = os.environ.get(ATTEMPTS_VARIABLE, "")
    return int(text) if text.isdecimal() and int(text) > 0 else DEFAULT_MAX_ATTEMPTS
