"""Reads YAML files, and the files that they name in ``config_paths``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gymlet.config import directives
from gymlet.config.paths import find_file, missing_file
from gymlet.config.problems import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of values; a later layer overrides an earlier one."""

    label: str
    tree: dict[str, Any]


def read_yaml(path: Path, label: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError with line and column."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        words = getattr(error, "problem", None) or str(error)
        raise ConfigError([Problem(f"Malformed YAML{at}: {words}", source=label)]) from None
    except (OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(f"cannot be read: {error}", source=label)]) from None
    if not isinstance(content, dict):
        raise ConfigError([Problem("must hold a mapping of keys to values", source=label)])
    return {str(key): value for key, value in content.items()}


class ConfigFiles:
    """Loads files and what they pull in. Owns the layers, the names in the order found, problems and notes."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._trees: dict[Path, tuple[str, dict[str, Any]]] = {}
        self.names: list[str] = []
        self.layers: list[Layer] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def load(self, names: list[str]) -> None:
        """Load ``names`` and everything below; ``layers`` is then in merge order, inner files first."""
        level = [(name, None) for name in names]
        children: dict[Path | None, list[Path]] = {}
        pending: list[tuple[str, Path | None]] = list(level)
        while pending:
            name, parent = pending.pop(0)
            path = self._read(name)
            if path is None:
                continue
            children.setdefault(parent, []).append(path)
            pending += [(inner, path) for inner in self._inner(path)]
        self._order(children, None)

    def _order(self, children: dict[Path | None, list[Path]], node: Path | None) -> None:
        for child in children.get(node, ()):
            self._order(children, child)
        if node is not None:
            label, tree = self._trees[node]
            self.layers.append(Layer(label, {key: value for key, value in tree.items() if key != "config_paths"}))

    def _read(self, name: str) -> Path | None:
        path = find_file(name, self._cwd)
        if path is None:
            self.problems.append(missing_file(name, self._cwd))
            return None
        path = path.resolve()
        if path in self._trees:
            self.notes.append(f"{name} is named twice in config_paths; it is loaded once")
            return None
        try:
            self._trees[path] = name, read_yaml(path, name if Path(name).is_absolute() else str(path))
        except ConfigError as error:
            self.problems += error.problems
            return None
        self.names.append(name)
        return path

    def _inner(self, path: Path) -> list[str]:
        label, tree = self._trees[path]
        inner = tree.get("config_paths") or []
        if isinstance(inner, list):
            return [str(name) for name in inner]
        self.problems.append(not_a_list(inner, label))
        return []


def not_a_list(value: object, source: str) -> Problem:
    """The problem with a ``config_paths`` that is no list."""
    return Problem(f"must be a list, for example [{value}]", key="config_paths", source=source)


def merge_layers(layers: list[Layer]) -> dict[str, Any]:
    """All layers as one tree; the last wins."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = directives.merge(merged, layer.tree)
    return merged


def sources(layers: list[Layer]) -> dict[str, str]:
    """For each dotted leaf, the label of the last layer that set it."""
    found: dict[str, str] = {}
    for layer in layers:
        for path in leaves(layer.tree):
            found[path] = layer.label
    return found


def leaves(node: Any, at: str = "") -> list[str]:
    """The dotted paths of all values that are no (non-empty) mapping."""
    if not isinstance(node, dict) or not node:
        return [at]
    return [path for key, value in node.items() for path in leaves(value, f"{at}.{key}" if at else str(key))]
