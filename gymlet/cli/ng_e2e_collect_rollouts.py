"""ng_e2e_collect_rollouts: collects rollouts over the data sets that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from gymlet.cli.command import compose_command, load_parts
from gymlet.cli.console import run_command
from gymlet.cli.ng_collect_rollouts import run as collect_rollouts
from gymlet.config.commands import EndToEndOptions
from gymlet.config.datasets import require_datasets
from gymlet.rollout.prepare import prepared_rows
from gymlet.rollout.whole_file import whole_file

USAGE = """
ng_e2e_collect_rollouts "+config_paths=[ENVIRONMENT.yaml,MODEL.yaml]" +split=SPLIT +output_jsonl_fpath=OUT.jsonl

Puts the data sets of the split (train, validation, benchmark or example) together as <stem>_inputs.jsonl beside the
output, serves what the configuration names, and collects. All other keys are those of ng_collect_rollouts.
"""

COMMAND = "ng_e2e_collect_rollouts"

OWN_KEYS = ("split", "input_jsonl_fpath")


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Prepare, then collect."""
    composition, options = compose_command(COMMAND, arguments, EndToEndOptions)
    sets = require_datasets(composition.instances, (options.split,), cwd=Path.cwd())
    output = Path(options.output_jsonl_fpath)
    prepared = output.with_name(f"{output.stem}_inputs.jsonl").absolute()
    with whole_file(prepared) as file:
        for part in load_parts(sets):
            file.writelines(orjson.dumps(row) + b"\n" for row in prepared_rows(part))
    quoted = str(prepared).replace("'", r"\'")
    return collect_rollouts(
        [f"+input_jsonl_fpath='{quoted}'", *(each for each in arguments if _key(each) not in OWN_KEYS)]
    )


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]
