"""Data sets made ready: rows checked, described in numbers, given their agent and, from a template, their input."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.compact import LineNumbers
from gymlet.rollout.metrics import describe
from gymlet.rollout.places import Places, RowError
from gymlet.rollout.prompt import fill_prompt, has_input
from gymlet.rollout.sources import Source, numbered_rows
from gymlet.rollout.whole_file import whole_file

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A data set to be put together with others of its type."""

    source: Source
    agent: str | None = None
    type: str = "train"
    repeats: int = 1
    prompt: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class PreparedPart:
    """What came of one data set."""

    label: str
    agent: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of all data sets of one type: where the rows are, where they are described, and how many there are."""

    path: Path
    metrics: Path
    parts: tuple[PreparedPart, ...]

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(part.rows for part in self.parts)


def prepare(parts: Sequence[Part], folder: Path) -> Iterator[Prepared]:
    """Write ``<type>.jsonl`` and ``<type>_metrics.json`` for each type. Raises RowError as ``prepared_rows`` does."""
    for kind, group in groupby(sorted(parts, key=lambda part: part.type), key=lambda part: part.type):
        path, metrics = folder / f"{kind}.jsonl", folder / f"{kind}_metrics.json"
        description = Description()
        with whole_file(path) as file:
            done = tuple(_write_part(part, file, description) for part in group)
        with whole_file(metrics) as file:
            file.write(orjson.dumps(description.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
        yield Prepared(path, metrics, done)


def prepared_rows(part: Part) -> Iterator[Json]:
    """A data set's rows, with agent and input, each as often as it is to be repeated.

    Raises RowError: at once for a row that is none, at the end with every row that has no input, or one too many.
    """
    without, twice = Places(part.source.unit), Places(part.source.unit)
    for number, row in numbered_rows(part.source):
        place = f"{part.source.label} at {part.source.unit} {number}"
        if not isinstance(row.get("responses_create_params", {}), dict):
            raise RowError(f"{place}: 'responses_create_params' must be an object")
        if part.prompt is None and not has_input(row):
            without.append(number)
        elif part.prompt is not None and has_input(row):
            twice.append(number)
        elif part.prompt is not None:
            fill_prompt(part.prompt, row, place)
        if part.agent is not None:
            row.setdefault("agent_ref", {"type": "responses_api_agents", "name": part.agent})
        yield from repeat(row, part.repeats)
    if without or twice:
        raise RowError("\n".join(_told(part.source.label, without, twice)))


def materialize_prompts(source: Source, prompt: Mapping[str, str], name: str, target: Path) -> int:
    """Write each row with its input made from ``prompt``, which is called ``name``; how many there were.

    Raises RowError with every row that has an input already.
    """
    count = 0
    with whole_file(target) as file:
        for count, row in enumerate(prepared_rows(Part(source, prompt=prompt)), start=1):  # noqa: B007  the last count
            file.write(orjson.dumps({**row, "prompt_config_used": name}) + b"\n")
    return count


class Description:
    """Rows in numbers. Owns a column of numbers, or a set of texts, for each field."""

    def __init__(self) -> None:
        self._rows = 0
        self._numbers: dict[str, array[float]] = {}
        self._texts: dict[str, LineNumbers] = {}
        self._text_counts: dict[str, int] = {}

    def add(self, row: Json) -> None:
        """Count one row."""
        self._rows += 1
        params = row.get("responses_create_params") or {}
        for name, number in _facts(params):
            self._number(name, number)
        for name, value in row.items():
            if name not in ("responses_create_params", "response", "agent_ref"):
                for each in value if isinstance(value, list) else [value]:
                    self._value(name, each)

    def to_json(self) -> Json:
        """Names as NeMo Gym has them."""
        numbers = {name: _numbers(column) for name, column in self._numbers.items()}
        texts = {
            name: {"unique_count": texts.count, "total_count": self._text_counts[name]}
            for name, texts in self._texts.items()
        }
        return {"Number of examples": self._rows, **numbers, **texts}

    def _value(self, name: str, value: Any) -> None:
        if isinstance(value, bool | int | float):
            self._number(name, float(value))
        elif isinstance(value, str):
            self._texts.setdefault(name, LineNumbers()).number(value.encode())
            self._text_counts[name] = self._text_counts.get(name, 0) + 1

    def _number(self, name: str, value: float) -> None:
        self._numbers.setdefault(name, array("d")).append(value)


def _write_part(part: Part, file: Any, description: Description) -> PreparedPart:
    count = 0
    for count, row in enumerate(prepared_rows(part), start=1):  # noqa: B007  the last count is the number of rows
        description.add(row)
        file.write(orjson.dumps(row) + b"\n")
    if count == 0:
        raise RowError(f"{part.source.label} has no rows")
    return PreparedPart(part.source.label, part.agent, count)


def _told(label: str, without: Places, twice: Places) -> Iterable[str]:
    if without:
        yield f"{label}: {without} have no responses_create_params.input; give it, or a prompt_config"
    if twice:
        yield f"{label}: {twice} have an input already; prompt_config would overwrite it"


def _facts(params: Json) -> Iterator[tuple[str, float]]:
    asked = params.get("input")
    messages = asked if isinstance(asked, list) else [{"role": "user"}]
    tools, temperature = params.get("tools"), params.get("temperature")
    if isinstance(tools, list):
        yield "Number of tools", len(tools)
    yield "Json-dumped number of words (proxy for token count)", len(json.dumps(params).split())
    yield "Number of turns", sum(1 for each in messages if isinstance(each, dict) and each.get("role") == "user")
    if isinstance(temperature, int | float):
        yield "Temperature", temperature


def _numbers(values: Sequence[float]) -> Json:
    found = describe("", values)
    return {
        "Total # non-null values": len(values),
        "Average": found["mean/"],
        "Min": found["min/"],
        "Max": found["max/"],
        "Median": found["median/"],
        "Standard deviation": found["std/"],
    }
