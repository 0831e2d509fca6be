"""ng_collect_rollouts: runs an agent over a data set, keeps every rollout, prints the scores."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gymlet.cli.console import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_OK, hide_in_log, note, run_async, run_command
from gymlet.cli.ng_run import build_gym
from gymlet.cli.scores import show_scores
from gymlet.config.compose import Composition, compose, read_mapping
from gymlet.config.paths import find_file, missing_file
from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import CollectOptions, HeadServer, bind
from gymlet.config.secrets import hide_secrets
from gymlet.rollout.collect import Event, Job, Run
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.records import RunFiles
from gymlet.rollout.tasks import Expansion
from gymlet.serve.launch import unknown_agent
from gymlet.serve.peers import RemoteAgents
from gymlet.wire.errors import GymletError

USAGE = """
ng_collect_rollouts +agent_name=NAME +input_jsonl_fpath=ROWS.jsonl +output_jsonl_fpath=OUT.jsonl [+key=value …]

Runs the agent over each row of the data set and has the environment verify it. The same command again goes on where
it stopped. With "+config_paths=[…]" it serves what it needs by itself; without, it asks the server that ng_run
started. Exit codes: 0 complete, 3 incomplete, 2 a mistake in the command, 130 interrupted.
"""

COMMAND = "ng_collect_rollouts"
FRAME_S = 0.1

out = Console(highlight=False, soft_wrap=True)


class Agents(Protocol):
    """Agents in this process or of a running server."""

    async def run_agent(self, name: str, row: dict[str, Any]) -> dict[str, Any]:
        """One rollout."""
        ...

    async def metrics_spec(self, name: str) -> MetricsSpec:
        """What the agent's environment scores."""
        ...

    async def agent_names(self) -> list[str]:
        """The agents there are."""
        ...


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Collect, then aggregate."""
    composition = compose(COMMAND, arguments)
    hide_in_log(composition.tree)
    for message in composition.notes:
        note(message)
    options = _options(composition)
    return run_async(_collect(composition, options))


def _options(composition: Composition) -> CollectOptions:
    names = CollectOptions.__dataclass_fields__
    given = {key: composition.tree[key] for key in names if key in composition.tree}
    options, problems = bind(CollectOptions, given, where=COMMAND)
    if options is None:
        raise ConfigError(problems)
    return options


def _job(composition: Composition, options: CollectOptions) -> Job:
    prompt = read_mapping(options.prompt_config, "prompt_config") if options.prompt_config else None
    if prompt is not None and not prompt.get("user"):
        raise ConfigError([Problem("needs a 'user' template", key="prompt_config", source=options.prompt_config)])
    repeats = options.num_repeats
    return Job(
        input_path=_input_path(options.input_jsonl_fpath),
        files=RunFiles(Path(options.output_jsonl_fpath)),
        expansion=Expansion(
            agent_name=options.agent_name,
            limit=options.limit,
            num_repeats=repeats,
            add_seed=options.num_repeats_add_seed,
            overrides=options.responses_create_params,
            prompt=prompt,
        ),
        config={each.name: {each.implementation: hide_secrets(each.options)} for each in composition.instances},
        parallel=options.num_samples_in_parallel,
        timeout_s=options.rollout_timeout_s,
        resume=options.resume_from_cache,
        overwrite=options.overwrite,
        force_resume=options.force_resume,
    )


def _input_path(name: str) -> Path:
    path = find_file(name, Path.cwd())
    if path is None:
        raise ConfigError([missing_file(name, Path.cwd(), "input_jsonl_fpath")])
    return path


async def _collect(composition: Composition, options: CollectOptions) -> int:
    job = _job(composition, options)
    async with _agents(composition) as agents:
        with Run(job) as run:
            for message in run.notes:
                note(message)
            specs = await _specs(agents, run)
            interrupted = await _watch(run, agents)
            run.finish()
            if not options.disable_aggregation:
                show_scores(out, run.aggregate(specs))
        return _conclude(run, interrupted=interrupted, allow_incomplete=options.allow_incomplete)


@asynccontextmanager
async def _agents(composition: Composition) -> AsyncIterator[Agents]:
    if composition.instances:
        async with build_gym(composition).running() as gym:
            yield gym
        return
    head = composition.head_server
    remote = RemoteAgents(head.url(), next(iter(head.keys), None))
    try:
        await remote.agent_names()
    except Exception as error:
        await remote.close()
        raise ConfigError([Problem(_unreached(head, error))]) from error
    try:
        yield remote
    finally:
        await remote.close()


def _unreached(head: HeadServer, error: Exception) -> str:
    where = f"{head.host}:{head.port}"
    if isinstance(error, GymletError) and error.status == 401:
        return f"the server at {where} does not let us in: {error}; head_server.api_key is what is sent"
    return f"no server answers at {where} ({error}); start one with ng_run, or name config_paths"


async def _specs(agents: Agents, run: Run) -> Mapping[str, MetricsSpec]:
    known = await agents.agent_names()
    wanted = run.agents()
    for name in wanted:
        if name not in known:
            raise unknown_agent(name, known)
    return {name: await agents.metrics_spec(name) for name in wanted}


async def _watch(run: Run, agents: Agents) -> bool:
    """Collect with a progress bar; True if a signal stopped it. A second signal stops it at once."""
    stop = asyncio.Event()
    this = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and this is not None:
            this.cancel()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    counts = run.counts
    with _progress() as progress:
        bar = progress.add_task("rollouts", total=counts.expected, completed=counts.ok, failed=counts.failed)
        try:
            await run.collect(agents.run_agent, stop=stop, on_event=lambda event: _advance(progress, bar, event))
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
    return stop.is_set()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=1 / FRAME_S,
    )


def _advance(progress: Progress, bar: TaskID, event: Event) -> None:
    if event == "ok":
        progress.advance(bar)
    elif event == "failed":
        progress.update(bar, failed=progress.tasks[0].fields["failed"] + 1)


def _conclude(run: Run, *, interrupted: bool, allow_incomplete: bool) -> int:
    counts, files = run.counts, run.job.files
    out.print(f"{counts.ok} of {counts.expected} rollouts in {files.output}", markup=False)
    if counts.failed:
        out.print(f"{counts.failed} failed, see {files.failures}", markup=False)
    if interrupted:
        note("interrupted; the same command goes on from here")
        return EXIT_INTERRUPTED
    if counts.ok < counts.expected and not allow_incomplete:
        note("incomplete; the same command tries what failed again")
        return EXIT_INCOMPLETE
    return EXIT_OK
