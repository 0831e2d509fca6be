"""What must never be shown: the values of keys that name a secret, wherever they turn up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "****"
UNSET = "???"
MIN_SECRET_CHARS = 6
"""A shorter value is hidden under its own key only: replacing it everywhere would tear up ordinary words."""

_WORDS = "key|token|secret|password|authorization|cookie"
_NAMES = re.compile(_WORDS, re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?[\d_.]+(e[-+]?\d+)?|null|true|false", re.IGNORECASE)
_ENTRY = re.compile(
    rf"""([{{,]\s*['"]?[\w.-]*(?:{_WORDS})[\w-]*['"]?\s*:\s*)("[^"]*"|'[^']*'|\[[^\]]*\]|[^,}}\]]+)""", re.IGNORECASE
)
"""An entry of a mapping on the command line, ``{api_key: …}``: what comes before its value, and the value."""
_IN_QUERY = re.compile(r"[?&]([^=&#]+)=([^&#]+)")


def names_secret(key: str) -> bool:
    """Whether a (dotted) key names a secret."""
    return _NAMES.search(key.rpartition(".")[2]) is not None


def hide_in_argument(argument: str) -> str:
    """An argument of a command line without its secrets: ``key=value``, or keys in a value that is a mapping.

    A number is none: ``max_output_tokens=512`` says how many.
    """
    key, is_set, value = argument.partition("=")
    if is_set and names_secret(key) and not _NUMBER.fullmatch(value):
        return f"{key}={HIDDEN}"
    return _ENTRY.sub(lambda entry: entry[0] if _NUMBER.fullmatch(entry[2]) else f"{entry[1]}{HIDDEN}", argument)


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
