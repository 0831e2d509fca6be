"""What must never be shown: the values of keys that name a secret, wherever they turn up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "****"
MIN_SECRET_CHARS = 6
"""A shorter value is hidden under its own key only: replacing it everywhere would tear up ordinary words."""

_NAMES = re.compile(r"key|token|secret|password", re.IGNORECASE)


def names_secret(key: str) -> bool:
    """Whether a (dotted) key names a secret."""
    return _NAMES.search(key.rpartition(".")[2]) is not None


def hide_secrets(tree: Any) -> Any:
    """The tree with the values of secret keys, and their copies elsewhere, replaced by ``****``."""
    return _hide(tree, sorted(set(secret_values(tree)), key=len, reverse=True))


def secret_values(tree: Any) -> Iterator[str]:
    """The values worth hiding wherever they turn up."""
    if isinstance(tree, list):
        for entry in tree:
            yield from secret_values(entry)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if isinstance(value, dict | list):
                yield from secret_values(value)
            elif isinstance(value, str) and names_secret(str(key)) and len(value) >= MIN_SECRET_CHARS:
                yield value


def _hide(node: Any, secrets: list[str]) -> Any:
    if isinstance(node, list):
        return [_hide(entry, secrets) for entry in node]
    if isinstance(node, dict):
        return {key: _hide_value(str(key), value, secrets) for key, value in node.items()}
    if isinstance(node, str):
        for secret in secrets:
            node = node.replace(secret, HIDDEN)
    return node


def _hide_value(key: str, value: Any, secrets: list[str]) -> Any:
    secret = names_secret(key) and isinstance(value, str) and value != "???"
    return HIDDEN if secret else _hide(value, secrets)
