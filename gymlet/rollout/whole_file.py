"""Files that appear whole or not at all, and what is told where the system refuses to read or write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gymlet.wire.errors import GymletError, RequestError


class StorageError(GymletError):
    """A file cannot be written: what is committed stays."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """What the system refuses to write is a StorageError, told in words."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system refuses to read is a RequestError, told in words."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write: it is at ``path`` once the block has ended, and an earlier one stays if the block raises.

    Raises StorageError.
    """
    scratch = path.with_name(f"{path.name}.part")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
