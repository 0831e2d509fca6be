"""ng_aggregate_rollouts: puts the shards of a run together, and scores the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.command import compose_command, specs_of
from gymlet.cli.console import EXIT_INCOMPLETE, EXIT_OK, note, run_command
from gymlet.cli.scores import show_scores
from gymlet.config.commands import AggregateOptions
from gymlet.rollout.files import RunFiles
from gymlet.rollout.merge import agents_in, find_shards, merge

USAGE = """
ng_aggregate_rollouts "+config_paths=[ENVIRONMENT.yaml]" "+input_glob=results/run-*.jsonl" +output_jsonl_fpath=RUN.jsonl

Reads every shard that the patterns (separated by commas) match, once each key; writes the scores over all of them
beside the output and, unless +merge_shards=false, their rows, failures, tasks and manifest as one run's. Exit codes:
0 complete, 3 where a shard or a rollout is missing, 2 a mistake in the command.
"""

COMMAND = "ng_aggregate_rollouts"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Merge and score."""
    composition, options = compose_command(COMMAND, arguments, AggregateOptions, without_model=True)
    output = RunFiles(Path(options.output_jsonl_fpath))
    shards = find_shards(options.input_glob, output)
    specs = specs_of(composition, agents_in(shards))
    merged = merge(shards, output, specs, rows=options.merge_shards)
    for message in merged.notes:
        note(message)
    show_scores(out, merged.summaries)
    of = "" if merged.expected is None else f" of {merged.expected}"
    where = f" in {output.output}" if options.merge_shards else ""
    shown = f"{len(shards)} shard{'s' if len(shards) > 1 else ''}"
    out.print(f"{merged.ok}{of} rollouts{where}, from {shown}; scores in {output.metrics}", markup=False)
    return EXIT_OK if merged.complete or options.allow_incomplete else EXIT_INCOMPLETE
