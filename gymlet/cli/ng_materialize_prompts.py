"""ng_materialize_prompts: makes the input of each row from a template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.command import compose_command, find_source, read_prompt
from gymlet.cli.console import EXIT_OK, run_command
from gymlet.config.commands import MaterializePromptsOptions
from gymlet.rollout.prepare import materialize_prompts

USAGE = """
ng_materialize_prompts +input_jsonl_fpath=ROWS.jsonl +prompt_config=PROMPT.yaml +output_jsonl_fpath=OUT.jsonl

Writes each row with responses_create_params.input filled from the template's `user` and `system`: {field} is the row's
field. Rows that have an input already are a mistake.
"""

COMMAND = "ng_materialize_prompts"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Fill the template for each row."""
    _, options = compose_command(COMMAND, arguments, MaterializePromptsOptions)
    prompt = read_prompt(options.prompt_config)
    source = find_source(options.input_jsonl_fpath, "input_jsonl_fpath")
    count = materialize_prompts(source, prompt, options.prompt_config, Path(options.output_jsonl_fpath))
    out.print(f"{count} rows in {options.output_jsonl_fpath}", markup=False)
    return EXIT_OK
