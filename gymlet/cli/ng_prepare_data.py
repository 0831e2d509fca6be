"""ng_prepare_data: checks the data sets that a configuration names, and puts them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.command import compose_command, load_parts
from gymlet.cli.console import EXIT_OK, run_command
from gymlet.config.commands import PrepareDataOptions
from gymlet.config.datasets import Split, require_datasets
from gymlet.rollout.prepare import prepare

MODES: Mapping[str, tuple[Split, ...]] = {
    "train_preparation": ("train", "validation"),
    "example_validation": ("example",),
}
"""Which types of data sets each mode is about."""

USAGE = """
ng_prepare_data "+config_paths=[ENVIRONMENT.yaml]" +mode=train_preparation +output_dirpath=data/prepared

Reads the data sets that agents and environments name under `datasets`: train and validation (train_preparation), or
example (example_validation). Writes each type as one file of rows that name their agent, with its numbers beside it.
"""

COMMAND = "ng_prepare_data"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Check, describe, put together."""
    composition, options = compose_command(COMMAND, arguments, PrepareDataOptions, without_model=True)
    sets = require_datasets(composition.instances, MODES[options.mode], cwd=Path.cwd())
    for prepared in prepare(load_parts(sets), Path(options.output_dirpath)):
        for part in prepared.parts:
            out.print(f"{part.label}: {part.rows} rows for {part.agent}", markup=False)
        out.print(f"{prepared.rows} rows in {prepared.path}, described in {prepared.metrics}", markup=False)
    return EXIT_OK
