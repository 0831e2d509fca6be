"""ng_init_resources_server: begins a new environment."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.command import compose_command
from gymlet.cli.console import EXIT_OK, run_command
from gymlet.config.commands import EntrypointOptions
from gymlet.config.problems import ConfigError, Problem
from gymlet.rollout.whole_file import storing

USAGE = """
ng_init_resources_server +entrypoint=resources_servers/NAME

Writes a small environment that works, to be changed, into the working directory: app.py, grading.py, configs/NAME.yaml,
data/example.jsonl, README.md and tests. A folder that is there already is not touched.
"""

COMMAND = "ng_init_resources_server"

KIND = "resources_servers"
TEMPLATES = Path(__file__).parent.parent / "templates" / "environment"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Write it, and say what comes next."""
    _, options = compose_command(COMMAND, arguments, EntrypointOptions)
    folder = Path(options.entrypoint)
    if folder.parts[:1] != (KIND,) or len(folder.parts) != 2 or not folder.name.isidentifier():
        message = f"'{folder}' must be {KIND}/NAME, and NAME a Python name, such as {KIND}/weather"
        raise ConfigError([Problem(message, key="entrypoint")])
    if folder.exists():
        raise ConfigError([Problem(f"{folder} is there already", key="entrypoint")])
    with storing(folder):
        for path in scaffold(folder):
            out.print(str(path), markup=False)
    out.print(f"\nng_test +entrypoint={folder}", markup=False)
    out.print(f'ng_validate "+config_paths=[{folder}/configs/{folder.name}.yaml]"', markup=False)
    return EXIT_OK


def scaffold(folder: Path) -> Iterator[Path]:
    """Write the files of a new environment, named after its folder; yields where each is."""
    name = folder.name
    words = {"name": name, "cls": "".join(part.capitalize() for part in name.split("_")) or name}
    for template in sorted(TEMPLATES.rglob("*.tmpl")):  # TESTS: a wheel leaves folders called tests out
        place = str(template.relative_to(TEMPLATES).with_suffix("")).replace("NAME", name).replace("TESTS", "tests")
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(string.Template(template.read_text()).substitute(words))
        yield path
