"""What must never be shown: the values of keys that name a secret, wherever they turn up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "****"
UNSET = "???"
MIN_SECRET_CHARS = 6
"""A shorter value is hidden under its own key only: replacing it everywhere would tear up ordinary words."""

_IN_QUERY = re.compile(r"[?&]([^=&#]+)=([^&#]+)")
_NAMES = re.compile(r"key|token|secret|password|authorization|cookie", re.IGNORECASE)


def names_secret(key: str) -> bool:
    """Whether a (dotted) key names a secret."""
    return _NAMES.search(key.rpartition(".")[2]) is not None


def hide_secrets(tree: Any) -> Any:
    """The tree with the values of secret keys, and their copies elsewhere, replaced by ``****``."""
    return _hide(tree, sorted(set(secret_values(tree)), key=len, reverse=True))


def secret_values(tree: Any, *, secret: bool = False) -> Iterator[str]:
    """The values worth hiding wherever they turn up; ``secret``: the tree stands under a key that names one."""
    if isinstance(tree, list):
        for entry in tree:
            yield from secret_values(entry, secret=secret)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from secret_values(value, secret=names_secret(str(key)))
    elif isinstance(tree, str):
        found = [tree] if secret else secrets_in_url(tree)
        yield from (value for value in found if len(value) >= MIN_SECRET_CHARS)


def secrets_in_url(url: str) -> list[str]:
    """The secrets in its query; none where it is no URL."""
    return [value for name, value in _IN_QUERY.findall(url) if names_secret(name)] if "://" in url else []


def _hide(node: Any, secrets: list[str], *, secret: bool = False) -> Any:
    if isinstance(node, list):
        return [_hide(entry, secrets, secret=secret) for entry in node]
    if isinstance(node, dict):
        return {key: _hide(value, secrets, secret=names_secret(str(key))) for key, value in node.items()}
    if not isinstance(node, str):
        return node
    if secret and node != UNSET:
        return HIDDEN
    for each in secrets:
        node = node.replace(each, HIDDEN)
    return node
