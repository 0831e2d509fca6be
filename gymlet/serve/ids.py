"""Ids that nobody can guess: whoever knows that of a stored response can read it."""

from __future__ import annotations

import os
import secrets

ID_BYTES = 16
AT_ONCE = 256
"""One call of the system makes so many."""

_spare: list[str] = []
os.register_at_fork(after_in_child=_spare.clear)  # what two processes gave out would not be one's own


def random_hex() -> str:
    """128 random bits in 32 digits."""
    try:
        return _spare.pop()
    except IndexError:
        digits = secrets.token_hex(ID_BYTES * AT_ONCE)
        length = 2 * ID_BYTES
        _spare.extend(digits[at : at + length] for at in range(length, len(digits), length))
        return digits[:length]


def new_id(prefix: str) -> str:
    """A fresh id: the prefix and 128 random bits."""
    return prefix + random_hex()
