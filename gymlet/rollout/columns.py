"""Rows as the columns of a table, and back, with nothing lost.

A table's columns have one type each. Fields that are always numbers, always truth values or always strings are columns
of that type; all others (``responses_create_params``, ``response``, lists, mixtures) are columns of JSON text. A table
cannot tell a field that is null from one that is not there: a field that is sometimes either is JSON text too, and for
one that is sometimes missing, the table's description says what an empty cell means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

Kind = Literal["bool", "int", "float", "string", "json"]

ALWAYS_JSON = frozenset({"responses_create_params", "response", "agent_ref"})
"""Fields that are never strings in a row: a table of others that has text there has JSON."""

DESCRIPTION = "gymlet"
DESCRIPTION_FILE = "gymlet.json"
_INT64 = range(-(2**63), 2**63)
_EXACT = range(-(2**53), 2**53 + 1)
"""Whole numbers that a float holds, too."""

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold JSON text, and in which an empty cell is a field that is not there."""

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @classmethod
    def of_rows(cls, rows: Iterable[dict[str, Any]]) -> Columns:
        """The columns that hold these rows; reads them all, and keeps none."""
        seen: dict[str, dict[str, None]] = {}
        times: dict[str, int] = {}
        count = 0
        for row in rows:
            count += 1
            for name, value in row.items():
                seen.setdefault(name, {})[_kind(value)] = None
                times[name] = times.get(name, 0) + 1
        optional = frozenset(name for name in seen if times[name] < count)
        return cls({name: _joined(set(kinds), absent=name in optional) for name, kinds in seen.items()}, optional)

    @classmethod
    def of_schema(cls, schema: Any) -> Columns:
        """What a Parquet file of ours says of itself; nothing for a file of others."""
        told = (schema.metadata or {}).get(DESCRIPTION.encode())
        return cls.from_json(told) if told else cls()

    @classmethod
    def of_folder(cls, path: Path) -> Columns:
        """What a folder of ours says of itself; nothing for a folder of others."""
        told = path / DESCRIPTION_FILE
        return cls.from_json(told.read_bytes()) if told.is_file() else cls()

    @classmethod
    def from_json(cls, text: bytes) -> Columns:
        """The description as it is stored."""
        told = orjson.loads(text)
        return cls(told["kinds"], frozenset(told["optional"]))

    def to_json(self) -> bytes:
        """The description as it is stored."""
        return orjson.dumps({"kinds": dict(self.kinds), "optional": sorted(self.optional)})

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as a record of the table."""
        return {name: self._cell(name, row.get(name, _ABSENT)) for name in self.kinds}

    def row(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record of the table as a row. Raises orjson.JSONDecodeError for a cell that should hold JSON."""
        return {
            name: self._value(name, cell)
            for name, cell in record.items()
            if cell is not None or name not in self.optional
        }

    def _cell(self, name: str, value: Any) -> Any:
        if value is _ABSENT:
            return None
        return orjson.dumps(value).decode() if self.kinds[name] == "json" else value

    def _value(self, name: str, cell: Any) -> Any:
        is_json = self.kinds.get(name) == "json" or (not self.kinds and name in ALWAYS_JSON)
        return orjson.loads(cell) if is_json and isinstance(cell, str) else cell


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int():
            return "int" if value in _EXACT else "long" if value in _INT64 else "json"
        case float():
            return "float"
        case str():
            return "string"
    return "json"


_KINDS: tuple[tuple[frozenset[str], Kind], ...] = (
    (frozenset({"bool"}), "bool"),
    (frozenset({"int", "long"}), "int"),
    (frozenset({"int", "float"}), "float"),
    (frozenset({"string"}), "string"),
)


def _joined(seen: set[str], *, absent: bool) -> Kind:
    """The type of a column that must hold all that was seen."""
    known = seen - {"null"}
    if not known or ("null" in seen and absent):
        return "json"
    return next((kind for held, kind in _KINDS if known <= held), "json")
