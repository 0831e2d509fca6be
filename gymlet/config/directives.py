"""``_inherit_from``, ``_copy`` and ``_delete_key``: parts of a configuration taken from elsewhere in it.

target: ${inherit_from:a.b}                 the value of a.b moves here; several may inherit from one
target: {_inherit_from: a.b, key: value}    the same, with overrides
${copy:a.b}, {_copy: a.b}                   the source stays
{_delete_key: "x,y"}                        x and y are removed, after such a merge
"""

from __future__ import annotations

import re
from typing import Any

from gymlet.config.problems import Problem

UNSET = "???"
_STRING_FORM = re.compile(r"\$\{(inherit_from|copy):\s*([^}]+?)\s*\}")
_PROPERTIES = {"_inherit_from": "inherit_from", "_copy": "copy"}


def apply(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The tree with all directives carried out, and those that name nothing."""
    resolver = _Resolver(tree)
    resolved = resolver.walk(tree, "", ())
    for path in sorted(resolver.moved, reverse=True):
        _remove(resolved, path.split("."))
    return _delete_keys(resolved), resolver.problems


class _Resolver:
    """Walks the tree. Owns the sources that were moved and the problems found."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._tree = tree
        self.moved: set[str] = set()
        self.problems: list[Problem] = []

    def walk(self, node: Any, at: str, active: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return self._walk_dict(node, at, active)
        if isinstance(node, list):
            return [self.walk(entry, f"{at}[{index}]", active) for index, entry in enumerate(node)]
        match = _STRING_FORM.fullmatch(node) if isinstance(node, str) else None
        return self._source(match[1], match[2], at, active) if match else node

    def _walk_dict(self, node: dict[str, Any], at: str, active: tuple[str, ...]) -> Any:
        rest = {
            key: self.walk(value, f"{at}.{key}" if at else str(key), active)
            for key, value in node.items()
            if key not in _PROPERTIES
        }
        for name, kind in _PROPERTIES.items():
            if name in node:
                base = self._source(kind, str(node[name]), at, active)
                rest = merge(base, rest) if isinstance(base, dict) else (rest or base)
        return rest

    def _source(self, kind: str, path: str, at: str, active: tuple[str, ...]) -> Any:
        if path in active:
            self.problems.append(Problem(f"refers to itself: {' -> '.join((*active, path))}", key=at))
            return None
        node: Any = self._tree
        for step in path.split("."):
            if node == UNSET:
                return UNSET
            if isinstance(node, dict) and step not in node and _PROPERTIES.keys() & node.keys():
                node = self.walk(node, at, (*active, path))
            if not isinstance(node, dict) or step not in node:
                self.problems.append(Problem(f"refers to '{path}', and there is no '{step}' there", key=at))
                return None
            node = node[step]
        if kind == "inherit_from":
            self.moved.add(path)
        return self.walk(node, at, (*active, path))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid upon ``base``: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _remove(node: Any, steps: list[str]) -> None:
    for step in steps[:-1]:
        node = node.get(step) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(steps[-1], None)


def _delete_keys(node: Any) -> Any:
    if isinstance(node, list):
        return [_delete_keys(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    doomed = str(node.get("_delete_key") or "")
    kept = {key: value for key, value in node.items() if key != "_delete_key"}
    for path in filter(None, (each.strip() for each in doomed.split(","))):
        _remove(kept, path.split("."))
    return {key: _delete_keys(value) for key, value in kept.items()}
