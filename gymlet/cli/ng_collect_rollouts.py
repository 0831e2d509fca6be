"""ng_collect_rollouts: runs an agent over a data set, keeps every rollout, prints the scores."""

from __future__ import annotations

import asyncio
import errno
import shlex
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

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
from gymlet.cli.processes import ProcessAgents, nursery, process_agents
from gymlet.cli.progress import LIMITS, shown
from gymlet.cli.scores import show_scores
from gymlet.config.compose import Composition, require_instances
from gymlet.config.instances import find_instances
from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import CollectOptions, HeadServer
from gymlet.config.secrets import hide_in_argument, hide_secrets
from gymlet.rollout.collect import ATTEMPTS_VARIABLE, GRACE_S, Job, Run
from gymlet.rollout.episode import RunAgent
from gymlet.rollout.executor import Executor, LocalExecutor
from gymlet.rollout.files import RunFiles
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.nursery import Nursery
from gymlet.rollout.tasks import Expansion
from gymlet.rollout.whole_file import StorageError
from gymlet.serve.launch import Gym, unknown_agent
from gymlet.serve.peers import RemoteAgents
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

MAX_PARALLEL = 16_384
"""What "unlimited" means: more rollouts at once than any provider takes."""

out = Console(highlight=False, soft_wrap=True)


Agents = Gym | RemoteAgents | ProcessAgents | ClusterAgents
"""In this process, of a running server, in several processes of this machine, or on a cluster."""


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Collect, then aggregate."""
    composition, options = compose_command(COMMAND, arguments, CollectOptions)
    with nursery(composition, options) as workers:
        return run_async(_collect(composition, options, workers))


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


async def _collect(composition: Composition, options: CollectOptions, workers: Nursery | None) -> int:
    async with _agents(composition, options, workers) as agents:
        job = _job(await _configuration(composition, agents), options)
        with _interruptible(), Run(job) as run:
            for message in run.notes:
                note(message)
            specs = await _specs(agents, run)
            return await _collect_and_score(run, agents, specs, options)


async def _configuration(composition: Composition, agents: Agents) -> dict[str, Any]:
    """What serves the run, here or over there, without its secrets: instance -> implementation -> options."""
    tree = await agents.configuration() if isinstance(agents, RemoteAgents) else hide_secrets(composition.tree)
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


async def _collect_and_score(
    run: Run, agents: Agents, specs: Mapping[str, MetricsSpec], options: CollectOptions
) -> int:
    try:
        signals = await _watch(run, agents, options)
        with _interruptible():
            run.finish()
            if not options.disable_aggregation and signals < 2:
                show_scores(out, run.aggregate(specs))
    except KeyboardInterrupt:
        signals = 2
    except StorageError as error:
        fail(str(error))
        note(f"make room, then go on with\n  {resume_command(sys.argv[1:])}")
        return EXIT_INCOMPLETE
    return _conclude(run, interrupted=signals > 0, allow_incomplete=options.allow_incomplete)


@asynccontextmanager
async def _agents(composition: Composition, options: CollectOptions, workers: Nursery | None) -> AsyncIterator[Agents]:
    if workers is not None:
        async with process_agents(workers, composition, options) as agents:
            yield agents
        return
    if options.executor == "ray":
        require_instances(composition)
        yield ClusterAgents(composition.instances, load_plugins(composition))
        return
    if composition.instances:
        async with build_gym(composition).running() as gym:
            yield gym
        return
    if options.cache is not None:
        told = "is of the server that calls the models: give it to ng_run, or name config_paths here"
        raise ConfigError([Problem(told, key="cache", source=composition.sources["cache"])])
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


async def _watch(run: Run, agents: Agents, options: CollectOptions) -> int:
    """Collect, and show how it goes; how many signals came: the first lets no more begin, the second stops at once."""
    stop, signals = asyncio.Event(), 0
    loop = asyncio.get_running_loop()
    collecting = asyncio.create_task(run.collect(_executor(run, agents, options, stop), stop=stop))

    def let_end() -> None:
        note(f"no rollout begins any more; those in flight get {GRACE_S:g} s; again to stop at once")
        stop.set()

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal signals
        signals += 1
        loop.call_soon_threadsafe(let_end if signals == 1 else collecting.cancel)
        if signals == 2:
            leave_within(LEAVES_S, EXIT_INTERRUPTED, _interrupted())

    with _handled(on_signal):
        try:
            async with shown(run, partial(_limits, agents)):
                await asyncio.wait({collecting})
        finally:
            collecting.cancel()
    if not collecting.cancelled():
        collecting.result()
    return signals


def _executor(run: Run, agents: Agents, options: CollectOptions, stop: asyncio.Event) -> Executor:
    parallel, timeout_s = options.num_samples_in_parallel, options.rollout_timeout_s
    if isinstance(agents, ClusterAgents):
        return agents.executor(options.ray_address, parallel=parallel, timeout_s=timeout_s)
    parallel = min(parallel or MAX_PARALLEL, max(1, run.remaining))
    if isinstance(agents, ProcessAgents):
        agents.executor.parallel = parallel
        return agents.executor
    run_agent = _while_there(agents, stop) if isinstance(agents, RemoteAgents) else agents.run_agent
    return LocalExecutor(run_agent, parallel=parallel, timeout_s=timeout_s)


def _while_there(agents: RemoteAgents, stop: asyncio.Event) -> RunAgent:
    """Runs agents of a server; once nobody listens there, no rollout begins any more: all would fail, for good."""

    async def run_agent(name: str, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return await agents.run_agent(name, row)
        except GymletError as error:
            if getattr(error.__cause__, "errno", None) == errno.ECONNREFUSED and not stop.is_set():
                note("the server is gone: no rollout begins any more")
                stop.set()
            raise

    return run_agent


async def _limits(agents: Agents) -> Counter[str]:
    """The state of all models' endpoints, added up."""
    total: Counter[str] = Counter()
    with suppress(GymletError):  # a server that is gone: each rollout says so
        for state in (await agents.limits()).values():
            total.update({name: state.get(name, 0) for name in LIMITS})
    return total


def _conclude(run: Run, *, interrupted: bool, allow_incomplete: bool) -> int:
    counts, files = run.counts, run.job.files
    out.print(f"{counts.ok} of {counts.expected} rollouts in {files.output}", markup=False)
    if counts.failed:
        out.print(f"{counts.failed} failed, see {files.failures}", markup=False)
    if interrupted:
        note(_interrupted())
        leave_within(LEAVES_S, EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    if counts.ok >= counts.expected:
        return EXIT_OK
    note(_how_to_go_on(run))
    return EXIT_OK if allow_incomplete else EXIT_INCOMPLETE


def _interrupted() -> str:
    return f"interrupted; the same command goes on from here:\n  {resume_command(sys.argv[1:])}"


def _how_to_go_on(run: Run) -> str:
    given_up = run.given_up
    words = f"incomplete; the same command tries again what is missing:\n  {resume_command(sys.argv[1:])}"
    if given_up == 0:
        return words
    told = f"{given_up} will not be tried again: they failed for good, or {run.max_attempts} times"
    more = f"{ATTEMPTS_VARIABLE}={2 * run.max_attempts} before the command allows more"
    return f"{told}; {more}" if given_up == run.remaining else f"{words}\n{told}; {more}"


def resume_command(arguments: Sequence[str]) -> str:
    """The command that goes on: without what would start afresh, and without the values of secrets."""
    kept = [argument for argument in arguments if argument.lstrip("+").partition("=")[0] != "overwrite"]
    return shlex.join([COMMAND, *map(hide_in_argument, kept)])
