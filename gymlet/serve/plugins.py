"""Finds what a configuration names: the class behind an ``entrypoint``, its options checked.

``resources_servers``, ``responses_api_models`` and ``responses_api_agents`` are namespace packages over all roots, so
that a user's own folder stands beside the ones that gymlet brings.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from gymlet.config.problems import Problem
from gymlet.config.schema import Instance, bind
from gymlet.serve.agent import Agent
from gymlet.serve.environment import Environment
from gymlet.serve.model import ModelServer

PluginClass = type[ModelServer] | type[Environment] | type[Agent]

BASES: dict[str, PluginClass] = {
    "responses_api_models": ModelServer,
    "resources_servers": Environment,
    "responses_api_agents": Agent,
}


@dataclass(frozen=True, slots=True)
class Plugin:
    """An instance with the class that serves it and its checked options."""

    instance: Instance
    cls: Any
    options: Any

    @property
    def is_elsewhere(self) -> bool:
        """Whether another server serves it."""
        return self.instance.type == "resources_servers" and self.options.base_url is not None


def load(instances: Iterable[Instance], roots: Iterable[Path]) -> tuple[list[Plugin], list[Problem]]:
    """Every instance's plug-in, and every mistake in their configuration."""
    roots = tuple(roots)
    for root in roots:
        if str(root) not in sys.path:
            sys.path.append(str(root))
    plugins: list[Plugin] = []
    problems: list[Problem] = []
    for instance in instances:
        found = _find_class(instance, roots)
        if isinstance(found, Problem):
            problems.append(found)
            continue
        where = f"{instance.name}.{instance.type}.{instance.implementation}"
        options, wrong = bind(found.Options, instance.options, where=where, sources=instance.sources)
        problems += wrong
        if options is not None:
            plugins.append(Plugin(instance, found, options))
    return plugins, problems


def _find_class(instance: Instance, roots: tuple[Path, ...]) -> PluginClass | Problem:
    where = f"{instance.name}.{instance.type}.{instance.implementation}"
    folder = Path(instance.type, instance.implementation)
    if not any((root / folder / instance.entrypoint).is_file() for root in roots):
        return Problem(_not_found(instance, folder, roots), key=where, source=instance.source)
    module = importlib.import_module(".".join((*folder.parts, Path(instance.entrypoint).stem)))
    classes = _classes_of(module, BASES[instance.type])
    if len(classes) != 1:
        names = ", ".join(cls.__name__ for cls in classes) or "none"
        wanted = BASES[instance.type].__name__
        return Problem(
            f"{module.__file__} must define exactly one subclass of {wanted}; it defines {names}",
            key=where,
            source=instance.source,
        )
    return classes[0]


def _classes_of(module: ModuleType, base: PluginClass) -> list[PluginClass]:
    return [
        cls
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, base) and cls.__module__ == module.__name__
    ]


def _not_found(instance: Instance, folder: Path, roots: tuple[Path, ...]) -> str:
    known = sorted({path.parent.name for root in roots for path in (root / instance.type).glob("*/*.py")})
    near = get_close_matches(instance.implementation, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known) or 'none'}"
    looked = ", ".join(str(root / folder / instance.entrypoint) for root in roots)
    return f"no {folder / instance.entrypoint} (looked for {looked}); {hint}"
