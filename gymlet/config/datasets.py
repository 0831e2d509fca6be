"""The data sets that a configuration names under ``datasets``, on an agent or on an environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gymlet.config.paths import missing_file, search_roots
from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import Instance, PositiveInt, bind

Split = Literal["train", "validation", "benchmark", "example"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSetOptions:
    """One entry of ``datasets``. What says where it can be had, and under which licence, is not read."""

    name: str
    type: Split
    jsonl_fpath: str
    num_repeats: PositiveInt = 1
    prompt_config: str | None = None
    license: str | None = None
    gitlab_identifier: Any = None
    huggingface_identifier: Any = None


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, where it lies, and the agent that it is for."""

    agent: str
    options: DataSetOptions
    path: Path | str


def find_datasets(instances: Sequence[Instance], types: Sequence[Split], *, cwd: Path) -> list[DataSet]:
    """The data sets of these types, in the configuration's order. Raises ConfigError with every mistake."""
    problems: list[Problem] = []
    found: list[DataSet] = []
    for instance, where, entry in _entries(instances):
        options, wrong = bind(DataSetOptions, entry if isinstance(entry, dict) else {}, where=where)
        problems += [Problem(each.message, each.key, instance.source) for each in wrong]
        if options is None or options.type not in types:
            continue
        path = find_rows(options.jsonl_fpath, cwd)
        if path is None:
            problems.append(missing_file(options.jsonl_fpath, cwd, f"{where}.jsonl_fpath"))
            continue
        agents = _agents_of(instance, instances)
        if not agents:
            problems.append(Problem("no agent uses this environment", where, instance.source))
        found += [DataSet(agent, options, path) for agent in agents]
    if problems:
        raise ConfigError(problems)
    return found


def require_datasets(instances: Sequence[Instance], types: Sequence[Split], *, cwd: Path) -> list[DataSet]:
    """As ``find_datasets``; a configuration without any is a mistake, too."""
    found = find_datasets(instances, types, cwd=cwd)
    if not found:
        there = sorted({str(entry.get("type")) for _, _, entry in _entries(instances) if isinstance(entry, dict)})
        told = f"there are data sets of type {', '.join(there)}" if there else "no instance has datasets"
        raise ConfigError([Problem(f"the configuration names no data set of type {' or '.join(types)}; {told}")])
    return found


def find_rows(name: str, cwd: Path) -> Path | str | None:
    """What a key for rows names: a file or a folder below the roots, or ``hf:NAME``; None if it is nowhere."""
    if name.startswith("hf:"):
        return name
    return next((root / name for root in search_roots(cwd) if (root / name).exists()), None)


def _entries(instances: Sequence[Instance]) -> Iterator[tuple[Instance, str, Any]]:
    for instance in instances:
        where = f"{instance.name}.{instance.type}.{instance.implementation}.datasets"
        for number, entry in enumerate(instance.options.get("datasets") or ()):
            yield instance, f"{where}[{number}]", entry


def _agents_of(instance: Instance, instances: Sequence[Instance]) -> list[str]:
    """The agent itself, or the agents that use an environment."""
    if instance.type == "responses_api_agents":
        return [instance.name]
    refs = ((each.name, each.options.get("resources_server")) for each in instances)
    return [name for name, ref in refs if isinstance(ref, dict) and ref.get("name") == instance.name]
