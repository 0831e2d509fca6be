"""ng_version: the versions that matter in a report of a fault."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

from gymlet import __version__
from gymlet.cli.console import EXIT_OK, run_command

USAGE = "ng_version"


def main() -> None:
    """Entry point."""
    run_command("ng_version", run, USAGE)


def run(_arguments: Sequence[str]) -> int:
    """Print them."""
    print(f"gymlet {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(", ".join(f"{name} {version(name)}" for name in ("aiohttp", "hydra-core", "omegaconf", "orjson")))
    return EXIT_OK
