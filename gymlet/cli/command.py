"""What the commands around a run share: their keys checked, their inputs found, what they score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from gymlet.cli.console import hide_in_log, note
from gymlet.config.compose import COMMAND_LINE, Composition, compose, read_mapping
from gymlet.config.datasets import DataSet, find_rows
from gymlet.config.paths import find_file, missing_file, search_roots
from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import bind
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.prepare import Part
from gymlet.rollout.prompt import ROLES
from gymlet.rollout.sources import Source, open_source
from gymlet.serve.launch import unknown_agent
from gymlet.serve.plugins import Plugin, load
from gymlet.serve.verifiers import metrics_specs

T = TypeVar("T")
NEAR = 0.8
"""How alike a key must be to one of the command's to be a slip of the hand, and no key for ``${…}``."""


def compose_command(
    command: str, arguments: Sequence[str], options: type[T], *, without_model: bool = False
) -> tuple[Composition, T]:
    """The configuration, its notes told, and the command's keys in it. Raises ConfigError with every mistake."""
    composition = compose(command, arguments, without_model=without_model)
    hide_in_log(composition.tree)
    for message in composition.notes:
        note(message)
    names = [field.name for field in fields(options)]  # type: ignore[arg-type]  # they are dataclasses
    given = {name: composition.tree[name] for name in names if name in composition.tree}
    bound, problems = bind(
        options, given, where=command, sources={name: composition.sources.get(name) for name in given}
    )
    problems += _slips(composition, names)
    if bound is None or problems:
        raise ConfigError(problems)
    return composition, bound


def find_source(name: str, key: str) -> Source:
    """The rows that ``key`` names, below the roots. Raises ConfigError where they are not there."""
    path = find_rows(name, Path.cwd())
    if path is None:
        raise ConfigError([missing_file(name, Path.cwd(), key)])
    return open_source(path)


def find_path(name: str, key: str) -> Path:
    """The file that ``key`` names, below the roots. Raises ConfigError where it is not there."""
    path = find_file(name, Path.cwd())
    if path is None:
        raise ConfigError([missing_file(name, Path.cwd(), key)])
    return path


def read_prompt(name: str) -> dict[str, str]:
    """A prompt_config: the templates ``user`` and, optionally, ``system``. Raises ConfigError with every mistake."""
    prompt = {key: text for key, text in read_mapping(name, "prompt_config").items() if text is not None}
    wrong = [f"needs a '{ROLES[-1]}' template"] if not prompt.get(ROLES[-1]) else []
    wrong += [f"'{role}' must be text" for role in ROLES if not isinstance(prompt.get(role, ""), str)]
    near = {key: get_close_matches(key, ROLES, n=1, cutoff=NEAR) for key in map(str, prompt) if key not in ROLES}
    wrong += [f"unknown key '{key}'; did you mean '{match[0]}'?" for key, match in near.items() if match]
    if wrong:
        raise ConfigError([Problem(message, key="prompt_config", source=name) for message in wrong])
    return prompt


def load_parts(sets: Sequence[DataSet]) -> list[Part]:
    """Data sets as they are prepared: opened, their prompts read. Raises ConfigError."""
    return [
        Part(
            source=open_source(each.path),
            agent=each.agent,
            type=each.options.type,
            repeats=each.options.num_repeats,
            prompt=read_prompt(each.options.prompt_config) if each.options.prompt_config else None,
        )
        for each in sets
    ]


def specs_of(composition: Composition, agents: Sequence[str]) -> dict[str, MetricsSpec]:
    """What each of these agents scores: as its environment says or, without a configuration, the reward.

    Raises RequestError for an agent that the configuration does not name.
    """
    known = metrics_specs(load_plugins(composition))
    if not known:
        note("no config_paths: the reward is scored, and whatever else the environment scores is not")
        return {name: MetricsSpec() for name in agents}
    for name in agents:
        if name not in known:
            raise unknown_agent(name, list(known))
    return {name: known[name] for name in agents}


def load_plugins(composition: Composition) -> list[Plugin]:
    """The classes behind the instances. Raises ConfigError with every mistake."""
    plugins, problems = load(composition.instances, search_roots(Path.cwd()))
    if problems:
        raise ConfigError(problems)
    return plugins


def not_by_each(plugins: Sequence[Plugin], composition: Composition) -> list[Problem]:
    """The instances that each of several processes would start anew, and must not."""
    return [
        Problem(
            f"{each.instance.name} ({each.instance.implementation}) would be started by each of the workers; serve it "
            "with num_workers=1, or by a server of its own that this one has as its provider",
            key="num_workers",
            source=composition.sources.get("num_workers"),
        )
        for each in plugins
        if getattr(each.cls, "single", False)
    ]


def _slips(composition: Composition, names: Sequence[str]) -> list[Problem]:
    """Keys of the command line that are nearly the command's own."""
    known = {
        *names,
        *(leaf.partition(".")[0] for leaf, source in composition.sources.items() if source != COMMAND_LINE),
    }
    given = {leaf.partition(".")[0] for leaf, source in composition.sources.items() if source == COMMAND_LINE}
    near = {key: get_close_matches(key, names, n=1, cutoff=NEAR) for key in sorted(given - known)}
    return [
        Problem(f"unknown key; did you mean '{match[0]}'?", key=key, source=COMMAND_LINE)
        for key, match in near.items()
        if match
    ]
