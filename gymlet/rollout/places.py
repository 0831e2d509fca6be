"""Where mistakes in a data set stand."""

from __future__ import annotations

from typing import Literal

from gymlet.wire.errors import RequestError

Unit = Literal["line", "row"]
"""What a source counts: JSONL has lines, a table has rows."""

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
