"""Where rows come from, and where they can be written: JSONL, plain or compressed, Parquet, Hugging Face ``datasets``.

A source gives raw JSON lines, one at a time, whatever it is made of; a mistake stands at the number of a line, or of a
table's row. Libraries that only some sources need are loaded when such a source is opened.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.columns import Columns
from gymlet.rollout.places import Unit, parse_row
from gymlet.rollout.whole_file import reading
from gymlet.wire.errors import RequestError

HUB = "hf:"
DEFAULT_SPLIT = "train"
BLOCK_BYTES = 1 << 20
TABLE_ROWS = 256
"""Rows of a table that are in memory at once; a rollout's row may have a megabyte."""

EXTRAS = {"zstandard": "zstd", "pyarrow": "parquet", "pyarrow.parquet": "parquet", "datasets": "datasets"}
DATASET_FILES = ("state.json", "dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True, slots=True)
class Source:
    """Rows to be read. ``label`` and ``unit`` say in errors where one stands: "rows.jsonl at line 3".

    ``lines()`` may be called again, and begins anew; it raises RequestError for what cannot be read. ``fingerprint()``
    changes when the rows do.
    """

    label: str
    unit: Unit
    lines: Callable[[], Iterator[bytes]]
    fingerprint: Callable[[], str]


def open_source(name: Path | str) -> Source:
    """The source of that name: a file, by its suffix, a folder that ``datasets`` saved, or ``hf:NAME[:SPLIT]``.

    Raises RequestError for what is not there or cannot be read, and for an extra that is not installed.
    """
    if str(name).startswith(HUB):
        return _hub(str(name)[len(HUB) :])
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise RequestError(f"{path} is no regular file" if path.exists() else f"there is no file {path}")
    with reading(path), path.open("rb"):
        pass
    if path.suffix == ".parquet":
        return Source(str(path), "row", lambda: _parquet_lines(path), lambda: _digest([path]))
    if path.suffix in READERS:
        return Source(str(path), "line", lambda: _compressed_lines(path), lambda: _digest([path]))
    return Source(str(path), "line", lambda: _plain_lines(path), lambda: _digest([path]))


def is_source(path: Path) -> bool:
    """Whether there is a file, or a folder that ``datasets`` saved."""
    return path.is_file() or any((path / name).is_file() for name in DATASET_FILES)


def rows_of(source: Source) -> Iterator[dict[str, Any]]:
    """The rows of a source. Raises RequestError with the place of one that is none."""
    return (row for _, row in numbered_rows(source))


def numbered_rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a source, each with its line's (or its own) number. Raises RequestError as ``rows_of`` does."""
    for number, line in enumerate(source.lines(), start=1):
        if line.strip():
            yield number, parse_row(line, f"{source.label} at {source.unit} {number}")


def need(module: str) -> Any:
    """A module of an extra. Raises RequestError that names the extra where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        extra = EXTRAS[module]
        raise RequestError(f"this needs {module.partition('.')[0]}: pip install 'gymlet[{extra}]'") from None


def _plain_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _compressed_lines(path: Path) -> Iterator[bytes]:
    pieces: list[bytes] = []
    number = 0
    try:
        for block in READERS[path.suffix](path):
            *ends, rest = block.split(b"\n")
            for end in ends:
                number += 1
                yield b"".join((*pieces, end))
                pieces.clear()
            pieces.append(rest)
    except (EOFError, OSError, zlib.error) as error:
        raise RequestError(f"{path} is damaged or cut off after line {number}: {error}") from None
    if last := b"".join(pieces):
        yield last


def _gzip_blocks(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    zstandard = need("zstandard")
    with path.open("rb") as file:
        frame, open_frame = zstandard.ZstdDecompressor().decompressobj(), False
        while packed := file.read(BLOCK_BYTES):
            while packed:
                try:
                    block = frame.decompress(packed)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from None
                if block:
                    yield block
                packed, open_frame = frame.unused_data, not frame.eof
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
        if open_frame:
            raise EOFError("the file ends in the middle of a frame")


READERS: Mapping[str, Callable[[Path], Iterator[bytes]]] = {".gz": _gzip_blocks, ".zst": _zstd_blocks}
"""How to unpack a file, by its suffix."""


def _parquet_lines(path: Path) -> Iterator[bytes]:
    parquet, arrow = need("pyarrow.parquet"), need("pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            columns = Columns.of_schema(table.schema_arrow)
            for batch in table.iter_batches(batch_size=TABLE_ROWS):
                for line in _lines_of(batch, columns, path, number):
                    number += 1
                    yield line
    except (arrow.ArrowException, OSError) as error:
        raise RequestError(f"{path} is damaged or cut off after row {number}: {_first_line(error)}") from None


def _folder(path: Path) -> Source:
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(part.name for part in path.iterdir() if part.is_dir()))
        raise RequestError(f"{path} holds the splits {splits}; name one of them, such as {path}/{splits.split(',')[0]}")
    if not is_source(path):
        raise RequestError(f"{path} is a folder that datasets did not save: it has none of {', '.join(DATASET_FILES)}")

    def lines() -> Iterator[bytes]:
        try:
            table = need("datasets").load_from_disk(str(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} cannot be read: {_first_line(error)}") from None
        return _dataset_lines(table, Columns.of_folder(path), str(path))

    return Source(str(path), "row", lines, lambda: _digest(sorted(each for each in path.iterdir() if each.is_file())))


def _hub(name: str) -> Source:
    name, _, split = name.partition(":")
    label = f"{HUB}{name}"

    def lines() -> Iterator[bytes]:
        datasets = need("datasets")
        try:
            table = datasets.load_dataset(name, split=split or DEFAULT_SPLIT, streaming=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{label}: {_first_line(error)}") from None
        return _dataset_lines(table, Columns(), label)

    def fingerprint() -> str:
        return f"{need('datasets').load_dataset_builder(name).hash}:{split or DEFAULT_SPLIT}"

    return Source(label, "row", lines, fingerprint)


def _dataset_lines(table: Any, columns: Columns, label: str) -> Iterator[bytes]:
    number = 0
    try:
        for batch in table.with_format("arrow").iter(batch_size=TABLE_ROWS):
            for line in _lines_of(batch, columns, label, number):
                number += 1
                yield line
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"{label} broke off after row {number}: {_first_line(error)}") from None


def _lines_of(batch: Any, columns: Columns, label: Path | str, before: int) -> Iterator[bytes]:
    try:
        records = batch.to_pylist()
    except ValueError as error:  # nanoseconds, without pandas
        raise RequestError(f"{label} after row {before} holds what JSON cannot: {_first_line(error)}") from None
    for number, record in enumerate(records, start=before + 1):
        try:
            yield orjson.dumps(columns.row(record), default=_time)
        except TypeError as error:
            raise RequestError(f"{label} at row {number} holds what JSON cannot: {error}") from None
        except orjson.JSONDecodeError as error:
            raise RequestError(f"Malformed JSON in {label} at row {number}: {error}") from None


def _time(value: Any) -> str:
    """A time of another library's, such as one with nanoseconds, as ISO 8601."""
    if not hasattr(value, "isoformat"):
        raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")
    return str(value.isoformat())


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
