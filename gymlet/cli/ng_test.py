"""ng_test: runs the tests of an environment, an agent or a model server."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gymlet.cli.command import compose_command
from gymlet.cli.console import run_command
from gymlet.config.commands import EntrypointOptions
from gymlet.config.paths import search_roots
from gymlet.config.problems import ConfigError, Problem, near_miss

USAGE = """
ng_test +entrypoint=resources_servers/mcqa

Runs pytest over the tests of a folder in the working directory, in NEMO_GYM_EXTRA_ROOTS or in the package. Exit codes
are pytest's: 0 all passed, 1 some failed; 2 a mistake in the command.
"""

COMMAND = "ng_test"


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Run them."""
    _, options = compose_command(COMMAND, arguments, EntrypointOptions)
    roots = search_roots(Path.cwd())
    root = next((each for each in roots if (each / options.entrypoint).is_dir()), None)
    if root is None:
        raise ConfigError([Problem(_nowhere(options.entrypoint, roots), key="entrypoint")])
    if not (root / options.entrypoint / "tests").is_dir():
        raise ConfigError([Problem(f"{root / options.entrypoint} has no tests", key="entrypoint")])
    if importlib.util.find_spec("pytest") is None:
        raise ConfigError([Problem("running tests needs pytest: pip install 'gymlet[test]'")])
    paths = [*map(str, roots), os.environ.get("PYTHONPATH", "")]
    flags = ("--import-mode=importlib", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *flags, str(root / options.entrypoint / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode  # noqa: S603  the user's own tests


def _nowhere(entrypoint: str, roots: Sequence[Path]) -> str:
    kin = Path(entrypoint).parent
    known = {str(kin / path.name) for root in roots for path in (root / kin).glob("*") if path.is_dir()}
    looked = ", ".join(str(root / entrypoint) for root in roots)
    return f"there is no folder {entrypoint} (looked for {looked}); {near_miss(entrypoint, known)}"
