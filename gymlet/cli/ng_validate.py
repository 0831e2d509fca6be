"""ng_validate: checks a configuration, its classes and its example data, without serving anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.command import load_parts, load_plugins
from gymlet.cli.console import EXIT_OK, note, run_async, run_command
from gymlet.config.compose import Composition, compose, require_instances
from gymlet.config.datasets import find_datasets
from gymlet.rollout.places import RowError
from gymlet.rollout.prepare import Part
from gymlet.rollout.reverify import check_rows
from gymlet.serve.plugins import Plugin
from gymlet.serve.verifiers import verifiers

USAGE = """
ng_validate "+config_paths=[ENVIRONMENT.yaml]" [+key=value …]

Composes the configuration as ng_run does, loads every class that it names, and has each environment verify the rows of
its example data sets, with a response that says nothing. A model need not be configured.
"""

COMMAND = "ng_validate"

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Check, and tell what was checked."""
    composition = compose(COMMAND, arguments, without_model=True)
    for message in composition.notes:
        note(message)
    require_instances(composition)
    plugins = load_plugins(composition)
    for plugin in plugins:
        _show(plugin, composition)
    examples = load_parts(find_datasets(composition.instances, ("example",), cwd=Path.cwd()))
    problems = run_async(_verify(plugins, examples))
    if problems:
        raise RowError("\n".join(problems))
    if not examples:
        note("no data set of type example is configured: no row was verified")
    return EXIT_OK


def _show(plugin: Plugin, composition: Composition) -> None:
    instance = plugin.instance
    configured = f"{instance.name}.{instance.type}.{instance.implementation}.entrypoint" in composition.sources
    where = instance.source if configured else "not configured: nothing can be asked"
    kind = f"{instance.type}/{instance.implementation}"
    out.print(f"{instance.name:<24} {kind:<40} {where}", markup=False)


async def _verify(plugins: Sequence[Plugin], parts: Sequence[Part]) -> list[str]:
    """Verify the example rows; the mistakes, a line each."""
    problems: list[str] = []
    async with verifiers(plugins) as environments:
        for part in parts:
            count, wrong = await check_rows(part, environments.verify)
            problems += wrong
            out.print(f"{part.source.label}: {count} rows, {len(wrong)} cannot be verified", markup=False)
    return problems
