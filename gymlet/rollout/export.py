"""Rows written in another form: compressed JSONL, Parquet, or a folder for Hugging Face ``datasets``.

``sources`` reads all of them back, row for row. What is written appears whole or not at all.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gymlet.rollout.columns import DESCRIPTION, DESCRIPTION_FILE, Columns
from gymlet.rollout.sources import TABLE_ROWS, Source, need, rows_of
from gymlet.rollout.whole_file import storing, whole_file
from gymlet.wire.errors import RequestError

Json = dict[str, Any]


def export(source: Source, target: Path) -> int:
    """Write all rows of ``source`` to ``target``, in the form that its suffix names; how many there were.

    Without a suffix it is a folder for ``datasets``. A table is written in two passes: the first finds its columns.
    Raises RequestError for rows that are none, an unknown suffix, and a folder that is there already.
    """
    suffix = target.suffix
    if suffix not in WRITERS:
        forms = ", ".join(sorted(each for each in WRITERS if each))
        raise RequestError(
            f"{target}: cannot write '{suffix}'; there are {forms}, and a folder (no suffix) for datasets"
        )
    return WRITERS[suffix](source, target)


def _write_plain(source: Source, target: Path) -> int:
    with whole_file(target) as file:
        return _write_lines(source, file)


def _write_gzip(source: Source, target: Path) -> int:
    with whole_file(target) as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
        return _write_lines(source, packed)


def _write_zstd(source: Source, target: Path) -> int:
    zstandard = need("zstandard")
    with whole_file(target) as file, zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed:
        return _write_lines(source, packed)


def _write_lines(source: Source, file: BinaryIO | gzip.GzipFile) -> int:
    count = 0
    for count, row in enumerate(rows_of(source), start=1):  # noqa: B007  the last count is the number of rows
        file.write(orjson.dumps(row) + b"\n")
    return count


def _write_parquet(source: Source, target: Path) -> int:
    columns = _columns(source)
    with whole_file(target) as file:
        return _write_table(source, columns, file)


def _write_folder(source: Source, target: Path) -> int:
    datasets = need("datasets")
    if target.exists():
        raise RequestError(f"{target} is there already; name another folder, or remove it")
    columns = _columns(source)
    datasets.disable_progress_bars()
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            table, folder = Path(scratch, "rows.parquet"), Path(scratch, "folder")
            with table.open("wb") as file:
                count = _write_table(source, columns, file)
            datasets.Dataset.from_parquet(str(table), cache_dir=scratch).save_to_disk(str(folder))
            (folder / DESCRIPTION_FILE).write_bytes(columns.to_json())
            shutil.move(folder, target)
    return count


def _columns(source: Source) -> Columns:
    columns = Columns.of_rows(rows_of(source))
    if not columns.kinds:
        raise RequestError(f"{source.label} has no rows")
    return columns


def _write_table(source: Source, columns: Columns, file: BinaryIO) -> int:
    arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    types = {
        "bool": arrow.bool_(),
        "int": arrow.int64(),
        "float": arrow.float64(),
        "string": arrow.string(),
        "json": arrow.string(),
    }
    schema = arrow.schema(
        [(name, types[kind]) for name, kind in columns.kinds.items()], metadata={DESCRIPTION: columns.to_json()}
    )
    count = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as table:
        for records in _batches(columns.record(row) for row in rows_of(source)):
            table.write_batch(arrow.RecordBatch.from_pylist(records, schema=schema))
            count += len(records)
    return count


def _batches(records: Iterable[Json]) -> Iterator[list[Json]]:
    records = iter(records)
    while batch := list(islice(records, TABLE_ROWS)):
        yield batch


WRITERS: Mapping[str, Callable[[Source, Path], int]] = {
    ".jsonl": _write_plain,
    ".gz": _write_gzip,
    ".zst": _write_zstd,
    ".parquet": _write_parquet,
    "": _write_folder,
}
"""How to write, by the suffix of the target."""
