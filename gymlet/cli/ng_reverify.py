"""ng_reverify: rewards again from stored rollouts, without asking any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from gymlet.cli.command import compose_command, find_path, load_plugins, specs_of
from gymlet.cli.console import EXIT_INCOMPLETE, EXIT_OK, note, run_async, run_command
from gymlet.cli.scores import show_scores
from gymlet.config.commands import ReverifyOptions
from gymlet.config.compose import Composition, require_instances
from gymlet.rollout.files import RunFiles, read_rows
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.report import write_report
from gymlet.rollout.reverify import Changes, Reverification, reverify
from gymlet.rollout.scores import agent_of, score_run, write_scores
from gymlet.serve.verifiers import verifiers
from gymlet.wire.errors import RequestError

USAGE = """
ng_reverify "+config_paths=[ENVIRONMENT.yaml]" +rollouts_jsonl_fpath=RUN.jsonl +output_jsonl_fpath=AGAIN.jsonl

Has the configured environment verify each stored response anew, in this process, and says how many rewards changed.
Tool calls are made again first, for environments whose state counts (+replay_tools=false: they are not). Exit codes:
0 complete, 3 where a verifier failed, 2 a mistake in the command.
"""

COMMAND = "ng_reverify"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Verify anew, and score."""
    composition, options = compose_command(COMMAND, arguments, ReverifyOptions, without_model=True)
    require_instances(composition)
    job = _job(options)
    specs = specs_of(composition, sorted({agent_of(row) for row in read_rows(job.rollouts)}))
    changes = run_async(_reverify(composition, options, job))
    if not options.disable_aggregation:
        show_scores(out, _score(job, specs))
    out.print(f"verified again: {changes.verified}, in {job.output.output}", markup=False)
    out.print(f"rewards changed: {changes.changed} ({changes.higher} higher, {changes.lower} lower)")
    if not changes.failed:
        return EXIT_OK
    note(f"could not be verified: {changes.failed}, see {job.output.failures}")
    return EXIT_OK if options.allow_incomplete else EXIT_INCOMPLETE


def _job(options: ReverifyOptions) -> Reverification:
    rollouts = find_path(options.rollouts_jsonl_fpath, "rollouts_jsonl_fpath")
    output = RunFiles(Path(options.output_jsonl_fpath))
    if output.output.exists() and output.output.samefile(rollouts):
        raise RequestError(
            f"{output.output} holds the rollouts that are verified again; name another output_jsonl_fpath"
        )
    if output.output.exists() and not options.overwrite:
        raise RequestError(f"{output.output} is there already; +overwrite=true replaces it")
    named = options.materialized_inputs_jsonl_fpath
    inputs = find_path(named, "materialized_inputs_jsonl_fpath") if named else RunFiles(rollouts).inputs
    return Reverification(
        rollouts=rollouts,
        output=output,
        inputs=inputs if inputs.exists() else None,
        parallel=options.num_samples_in_parallel,
        timeout_s=options.rollout_timeout_s,
    )


async def _reverify(composition: Composition, options: ReverifyOptions, job: Reverification) -> Changes:
    async with verifiers(load_plugins(composition), replay_tools=options.replay_tools) as environments:
        return await reverify(job, environments.verify)


def _score(job: Reverification, specs: Mapping[str, MetricsSpec]) -> list[dict[str, Any]]:
    """The scores of the new rows; what failed before, or now, has none."""
    failures = chain(read_rows(RunFiles(job.rollouts).failures), read_rows(job.output.failures))
    inputs = read_rows(job.inputs) if job.inputs is not None else None
    scores = score_run(specs, inputs=inputs, rows=read_rows(job.output.output), failures=failures)
    summaries = write_scores(job.output.metrics, scores)
    write_report(job.output, {}, summaries)
    return summaries
