"""Rows of a data set, and where mistakes in them stand."""

from __future__ import annotations

from typing import Any, Literal

import orjson

from gymlet.wire.errors import RequestError

Unit = Literal["line", "row"]
"""What a source counts: JSONL has lines, a table has rows."""

MAX_DEPTH = 254
"""How deep lists and objects may be nested to be written again."""

MAX_NAMED = 20
"""How many rows an error names before it only counts them."""


class RowError(RequestError):
    """A data set, or an option about its rows, that cannot be used."""


class Places:
    """The rows with one mistake: all are counted, the first are named."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._named: list[int] = []
        self._count = 0

    def append(self, number: int) -> None:
        """One more, by its line's (or row's) number."""
        self._count += 1
        if len(self._named) < MAX_NAMED:
            self._named.append(number)

    def __bool__(self) -> bool:
        return self._count > 0

    def __str__(self) -> str:
        more = f" and {self._count - MAX_NAMED} more" if self._count > MAX_NAMED else ""
        shown = ", ".join(map(str, self._named))
        return f"the rows at {self._unit}{'s' if self._count > 1 else ''} {shown}{more}"


def parse_row(line: bytes, place: str) -> dict[str, Any]:
    """The row that a line holds. Raises RowError, with ``place``, where it holds none, or one that cannot be kept."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RowError(f"Malformed JSON in {place}: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"{place}: a row must be a JSON object")
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
        _check_depth(row, place)
    return row


def _check_depth(row: dict[str, Any], place: str) -> None:
    try:
        orjson.dumps(row)
    except TypeError:
        raise RowError(f"{place}: lists and objects are nested more than {MAX_DEPTH} deep") from None
