"""ng_help: lists the commands."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from gymlet.cli.console import EXIT_OK, run_command
from gymlet.config.paths import package_root

USAGE = """
ng_help

Lists all commands, with a line each; every one answers to --help.
"""

COMMAND = "ng_help"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(_arguments: Sequence[str]) -> int:
    """Print a line for each command, from the first of its primary config."""
    for path in sorted((package_root() / "conf").glob("ng_*.yaml")):
        name, _, words = path.read_text().partition("\n")[0].removeprefix("# ").partition(":")
        out.print(f"{name:<26}{words.strip().partition('. ')[0].rstrip('.')}", markup=False)
    out.print("\nEach answers to --help with its keys. A key is set with +key=value.")
    return EXIT_OK
