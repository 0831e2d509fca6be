"""ng_collect_rollouts: runs an agent over a data set, keeps every rollout, prints the scores."""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from gymlet.cli.agents import Agents, LocalAgents, ServerAgents, server_agents
from gymlet.cli.cluster import ClusterAgents
from gymlet.cli.command import compose_command, find_source, load_plugins, read_prompt
from gymlet.cli.console import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    fail,
    leave_within,
    note,
    run_async,
    run_command,
)
from gymlet.cli.ng_run import build_gym
from gymlet.cli.processes import nursery, process_agents
from gymlet.cli.progress import LIMITS, shown
from gymlet.cli.scores import show_scores
from gymlet.config.compose import Composition, require_instances
from gymlet.config.instances import find_instances
from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import CollectOptions
from gymlet.config.secrets import hide_in_argument, hide_secrets
from gymlet.rollout.collect import ATTEMPTS_VARIABLE, GRACE_S, Job, Run
from gymlet.rollout.files import RunFiles
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.processes.nursery import Nursery
from gymlet.rollout.tasks import Expansion
from gymlet.rollout.whole_file import StorageError
from gymlet.serve.launch import unknown_agent
from gymlet.wire.errors import GymletError

USAGE = """
ng_collect_rollouts +agent_name=NAME +input_jsonl_fpath=ROWS.jsonl +output_jsonl_fpath=OUT.jsonl [+key=value …]

Runs the agent over each row of the data set and has the environment verify it. The same command again goes on where
it stopped. With "+config_paths=[…]" it serves what it needs by itself; without, it asks the server that ng_run
started. Exit codes: 0 complete, 3 incomplete, 2 a mistake in the command, 130 interrupted.
"""

COMMAND = "ng_collect_rollouts"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LEAVES_S = 3.0
"""What ending gets, once it is to be at once, before the process leaves whatever an agent still does."""

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Collect, then aggregate."""
    composition, options = compose_command(COMMAND, arguments, CollectOptions)
    with nursery(composition, options) as workers:
        return run_async(_collect(composition, options, workers, resume_command(arguments)))


def _job(config: dict[str, Any], options: CollectOptions) -> Job:
    return Job(
        source=find_source(options.input_jsonl_fpath, "input_jsonl_fpath"),
        files=RunFiles(Path(options.output_jsonl_fpath)),
        expansion=Expansion(
            agent_name=options.agent_name,
            limit=options.limit,
            num_repeats=options.num_repeats,
            add_seed=options.num_repeats_add_seed,
            overrides=options.responses_create_params,
            prompt=read_prompt(options.prompt_config) if options.prompt_config else None,
            shard_index=options.shard_index,
            num_shards=options.num_shards,
        ),
        config=config,
        resume=options.resume_from_cache,
        overwrite=options.overwrite,
        force_resume=options.force_resume,
    )


async def _collect(composition: Composition, options: CollectOptions, workers: Nursery | None, go_on: str) -> int:
    async with _agents(composition, options, workers) as agents:
        job = _job(await _configuration(composition, agents), options)
        with _interruptible(), Run(job) as run:
            for message in run.notes:
                note(message)
            specs = await _specs(agents, run)
            return await Collection(run, agents, options, go_on).complete(specs)


@asynccontextmanager
async def _agents(composition: Composition, options: CollectOptions, workers: Nursery | None) -> AsyncIterator[Agents]:
    if workers is not None:
        async with process_agents(workers, composition, options) as agents:
            yield agents
    elif options.executor == "ray":
        require_instances(composition)
        yield ClusterAgents(composition.instances, load_plugins(composition))
    elif composition.instances:
        async with build_gym(composition).running() as gym:
            yield LocalAgents(gym)
    elif options.cache is not None:
        told = "is of the server that calls the models: give it to ng_run, or name config_paths here"
        raise ConfigError([Problem(told, key="cache", source=composition.sources["cache"])])
    else:
        async with server_agents(composition.head_server) as served:
            yield served


async def _configuration(composition: Composition, agents: Agents) -> dict[str, Any]:
    """What serves the run, here or over there, without its secrets: instance -> implementation -> options."""
    tree = await agents.configuration() if isinstance(agents, ServerAgents) else hide_secrets(composition.tree)
    instances, _, _ = find_instances(tree, lambda _path: None)
    return {each.name: {each.implementation: each.options} for each in instances}


def _interruptible() -> AbstractContextManager[None]:
    """A signal raises KeyboardInterrupt at once: a large data set is read for minutes, and the loop does not turn."""
    return _handled(signal.default_int_handler)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The handler is called even while the loop does not turn: an agent may block it."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


async def _specs(agents: Agents, run: Run) -> Mapping[str, MetricsSpec]:
    known = await agents.agent_names()
    wanted = run.agents()
    for name in wanted:
        if name not in known:
            raise unknown_agent(name, known)
    return {name: await agents.metrics_spec(name) for name in wanted}


class Collection:
    """A run on its way to its end. Owns how many signals came; ``go_on`` is the command that goes on with it."""

    def __init__(self, run: Run, agents: Agents, options: CollectOptions, go_on: str) -> None:
        self._run = run
        self._agents = agents
        self._options = options
        self._go_on = go_on
        self._signals = 0

    async def complete(self, specs: Mapping[str, MetricsSpec]) -> int:
        """Collect, score, and tell; the exit code."""
        run = self._run
        try:
            await self._watch()
            with _interruptible():
                run.finish()
                if not self._options.disable_aggregation and self._signals < 2:
                    show_scores(out, run.aggregate(specs))
        except KeyboardInterrupt:
            self._signals = 2
        except StorageError as error:
            fail(str(error))
            note(f"make room, then go on with\n  {self._go_on}")
            return EXIT_INCOMPLETE
        return self._conclude()

    async def _watch(self) -> None:
        """Collect, and show how it goes. The first signal lets no more begin, the second stops at once."""
        stop, loop, run = asyncio.Event(), asyncio.get_running_loop(), self._run
        executor = self._agents.executor(self._options, run.remaining, stop)
        collecting = asyncio.create_task(run.collect(executor, stop=stop))

        def let_end() -> None:
            note(f"no rollout begins any more; those in flight get {GRACE_S:g} s; again to stop at once")
            stop.set()

        def on_signal(_number: int, _frame: object) -> None:
            self._signals += 1
            loop.call_soon_threadsafe(let_end if self._signals == 1 else collecting.cancel)
            if self._signals == 2:
                leave_within(LEAVES_S, EXIT_INTERRUPTED, self._interrupted)

        with _handled(on_signal):
            try:
                async with shown(run, self._limits):
                    await asyncio.wait({collecting})
            finally:
                collecting.cancel()
        if not collecting.cancelled():
            collecting.result()

    async def _limits(self) -> Counter[str]:
        """The state of all models' endpoints, added up."""
        total: Counter[str] = Counter()
        with suppress(GymletError):  # a server that is gone: each rollout says so
            for state in (await self._agents.limits()).values():
                total.update({name: state.get(name, 0) for name in LIMITS})
        return total

    def _conclude(self) -> int:
        counts, files = self._run.counts, self._run.job.files
        out.print(f"{counts.ok} of {counts.expected} rollouts in {files.output}", markup=False)
        if counts.failed:
            out.print(f"{counts.failed} failed, see {files.failures}", markup=False)
        if self._signals:
            note(self._interrupted)
            leave_within(LEAVES_S, EXIT_INTERRUPTED)
            return EXIT_INTERRUPTED
        if counts.ok >= counts.expected:
            return EXIT_OK
        note(self._incomplete)
        return EXIT_OK if self._options.allow_incomplete else EXIT_INCOMPLETE

    @property
    def _interrupted(self) -> str:
        return f"interrupted; the same command goes on from here:\n  {self._go_on}"

    @property
    def _incomplete(self) -> str:
        run, given_up = self._run, self._run.given_up
        words = f"incomplete; the same command tries again what is missing:\n  {self._go_on}"
        if given_up == 0:
            return words
        told = f"{given_up} will not be tried again: they failed for good, or {run.max_attempts} times"
        more = f"{ATTEMPTS_VARIABLE}={2 * run.max_attempts} before the command allows more"
        return f"{told}; {more}" if given_up == run.remaining else f"{words}\n{told}; {more}"


def resume_command(arguments: Sequence[str]) -> str:
    """The command that goes on: without what would start afresh, and without the values of secrets."""
    kept = [argument for argument in arguments if argument.lstrip("+").partition("=")[0] != "overwrite"]
    return shlex.join([COMMAND, *map(hide_in_argument, kept)])
