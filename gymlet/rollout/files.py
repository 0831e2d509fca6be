"""The files of a run: their names, how they are read line by line, repaired, and replaced whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from gymlet.rollout.compact import KeySet
from gymlet.rollout.keys import Key, key_of
from gymlet.rollout.metrics import ROLLOUT, TASK
from gymlet.rollout.whole_file import reading, storing, whole_file
from gymlet.wire.errors import RequestError

Json = dict[str, Any]

_STAMPED = re.compile(rb'\{"%s":(\d{1,18}),"%s":(\d{1,18}),' % (TASK.encode(), ROLLOUT.encode()))
"""How our own lines begin; what follows, up to the brace at the end, need not be parsed to know the key."""

TAIL_BLOCK_BYTES = 1 << 16


class RunFiles:
    """The names of a run's files."""

    def __init__(self, output: Path) -> None:
        self.output = output
        stem = output.with_suffix("")
        self.inputs = stem.with_name(f"{stem.name}_materialized_inputs.jsonl")
        self.failures = stem.with_name(f"{stem.name}_failures.jsonl")
        self.metrics = stem.with_name(f"{stem.name}_aggregate_metrics.json")
        self.manifest = stem.with_name(f"{stem.name}_manifest.json")
        self.report = stem.with_name(f"{stem.name}_report.html")
        self.lock = stem.with_name(f".{stem.name}.lock")

    def all(self) -> tuple[Path, ...]:
        """Every file of the run but its lock; the one that makes it a run comes first."""
        return self.manifest, self.output, self.inputs, self.failures, self.metrics, self.report

    def set_aside(self, paths: Iterable[Path]) -> list[Path]:
        """Move files of an earlier run, if they hold anything, out of the way; returns where they are now.

        Raises StorageError.
        """
        number = 1
        while any(_aside(path, number).exists() for path in self.all()):
            number += 1
        with storing(self.output.parent):
            return [path.rename(_aside(path, number)) for path in paths if path.exists() and path.stat().st_size]


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old-{number}")


class Line(NamedTuple):
    """One row as it stands in a file, with its newline; ``offset`` is where."""

    key: Key
    offset: int
    text: bytes


def scan(path: Path) -> Iterator[Line]:
    """The rows of a JSONL file with their keys, unparsed where they are our own; nothing if there is no file.

    Raises RequestError with the line of one that is no row of a run.
    """
    if not path.exists():
        return
    offset = 0
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            stamped = _STAMPED.match(line) if line.endswith(b"}\n") else None
            if stamped is not None:
                yield Line((int(stamped[1]), int(stamped[2])), offset, line)
            elif line.strip():
                yield Line(key_of(_parse(line, path, number)), offset, line)
            offset += len(line)


def read_rows(path: Path) -> Iterator[Json]:
    """The rows of a JSONL file, one at a time; none without a file.

    Raises RequestError with the line of one that is no row.
    """
    if not path.exists():
        return
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse(line, path, number)


def _parse(line: bytes, path: Path, number: int) -> Json:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            f"Malformed JSON in {path} at line {number}: {error}; without that line, its rollout is run again"
        ) from None
    if not isinstance(row, dict) or not (_is_index(row.get(TASK)) and _is_index(row.get(ROLLOUT))):
        raise RequestError(
            f"{path} at line {number} is no row of a run: it lacks {TASK} and {ROLLOUT}, two whole numbers"
        )
    return row


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and not abs(value) >> 63


def stamped_first(row: Json) -> Json:
    """The row with its key in front, where ``scan`` finds it."""
    return {TASK: row[TASK], ROLLOUT: row[ROLLOUT], **row}


def drop_repeated(path: Path) -> None:
    """Keep the first row of each key. Raises StorageError."""
    first = KeySet()
    with whole_file(path) as file:
        file.writelines(line.text for line in scan(path) if first.add(*line.key))


def write_json(path: Path, payload: object) -> None:
    """A JSON file that appears whole or not at all. Raises StorageError."""
    with whole_file(path) as file:
        file.write(orjson.dumps(payload, option=orjson.OPT_INDENT_2))


def repair_tail(path: Path) -> list[str]:
    """Cut off a torn last line, or give a whole one its newline; says what was done. Raises StorageError."""
    if not path.exists() or path.stat().st_size == 0:
        return []
    with storing(path), path.open("r+b") as file:
        start, tail = _last_line(file)
        if not tail.strip() or (tail.endswith(b"\n") and _is_row(tail)):
            return []
        if _is_row(tail):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return [f"{path.name}: the last line had no newline; it was given one"]
        file.truncate(start)
        return [f"{path.name}: the last line was torn ({len(tail)} bytes) and was cut off"]


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """Where the last line that is not blank begins, and what stands there."""
    end = file.seek(0, os.SEEK_END)
    start, blocks = end, [b""]
    while start > 0:
        size = min(TAIL_BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        blocks.insert(0, file.read(size))
        if b"\n" in blocks[0].rstrip() or start == 0:
            text = b"".join(blocks)
            newline = text.rfind(b"\n", 0, len(text.rstrip()))
            return start + newline + 1, text[newline + 1 :]
    return 0, b""


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
