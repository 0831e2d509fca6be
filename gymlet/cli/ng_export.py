"""ng_export: writes rollouts, or a data set, in another form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.command import compose_command, find_source
from gymlet.cli.console import EXIT_OK, run_command
from gymlet.config.commands import ExportOptions
from gymlet.rollout.export import export

USAGE = """
ng_export +input_jsonl_fpath=ROLLOUTS.jsonl +output_fpath=OUT.parquet

Writes all rows in the form that the output's suffix names: .jsonl, .gz, .zst, .parquet, or (no suffix) a folder for
Hugging Face datasets. The input may have any of these forms, too.
"""

COMMAND = "ng_export"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Export."""
    _, options = compose_command(COMMAND, arguments, ExportOptions)
    count = export(find_source(options.input_jsonl_fpath, "input_jsonl_fpath"), Path(options.output_fpath))
    out.print(f"{count} rows in {options.output_fpath}", markup=False)
    return EXIT_OK
