"""JSON that arrives in pieces: whether it is whole, without reading it again with each piece."""

from __future__ import annotations

import re

import orjson

_MARKS = re.compile(r'["\\\[\]{}]')


class JsonText:
    """Feed pieces of one JSON object or list. Owns them, and where in brackets and strings they end."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._ended = False
        self._is_json: bool | None = None

    def __str__(self) -> str:
        return "".join(self._pieces)

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def feed(self, *pieces: str) -> None:
        """Add pieces."""
        self._pieces += pieces
        for piece in pieces:
            if self._ended:
                self._go_past_the_end(piece)
            else:
                self._scan(piece)

    def whole(self) -> bool:
        """Whether it is an object or a list as it stands."""
        if self._ended and self._is_json is None:
            self._is_json = _is_json(str(self))
        return self._is_json is True

    def _scan(self, piece: str) -> None:
        skip = 0 if self._escaped else -1
        self._escaped = False
        for mark in _MARKS.finditer(piece):
            at, char = mark.start(), mark[0]
            if at == skip:
                continue
            if char == "\\":
                skip = at + 1
                self._escaped = skip == len(piece)
            elif char == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if char in "{[" else -1
                if self._depth <= 0:
                    self._ended = True
                    self._go_past_the_end(piece[at + 1 :])
                    return

    def _go_past_the_end(self, rest: str) -> None:
        if rest.strip():
            self._is_json = False


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
