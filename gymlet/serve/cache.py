"""Replies of models in a file of SQLite's, each below the digest of its call.

Several processes may share a file. What is in it is digests and replies; neither keys nor requests are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import orjson

from gymlet.config.problems import ConfigError, Problem
from gymlet.config.schema import ModelOptions
from gymlet.wire.deltas import Json

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30.0
"""How long one process waits for another that is writing."""

FORM_OF_REPLY = frozenset({"stream", "stream_options"})
"""Parameters that say how a reply comes, not what is in it."""

_SCHEMA = """
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS replies (place INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, body BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS size (bytes INTEGER NOT NULL);
    INSERT INTO size SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM size);
    CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON replies
        BEGIN UPDATE size SET bytes = bytes + length(new.body); END;
    CREATE TRIGGER IF NOT EXISTS less AFTER DELETE ON replies
        BEGIN UPDATE size SET bytes = bytes - length(old.body); END;
    PRAGMA user_version = 1;
    COMMIT;
"""

T = TypeVar("T")


def call_digest(origin: str, request: Json, repeat: int | str | None) -> bytes:
    """The digest of a call: whose model it is, the chat request with all its parameters, and which repeat asks.

    Calls that leave ``repeat`` out share their reply.
    """
    asked = {name: value for name, value in request.items() if name not in FORM_OF_REPLY}
    call = {"origin": origin, "request": asked, "repeat": ascii(repeat)}
    return _digest(orjson.dumps(call, option=orjson.OPT_SORT_KEYS))


def nth_digest(digest: bytes, times: int) -> bytes:
    """The digest of a call that a repeat makes for the n-th time; the first time it is the call's own."""
    return digest if times == 1 else _digest(b"%b%d" % (digest, times))


def _digest(of: bytes) -> bytes:
    return hashlib.blake2b(of, digest_size=32).digest()


class SqliteCache:
    """Replies in a file. Owns a thread, which alone speaks with the file, so that the event loop never waits for it.

    ``max_bytes``: the oldest replies go when all together have more. A file that breaks while it is in use costs calls,
    not rollouts: it is told once in the log, and asked no more.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self.path = path
        self.hits = 0
        self.misses = 0
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gymlet-cache")
        self._file: sqlite3.Connection | None = None

    @classmethod
    def of(cls, options: ModelOptions) -> SqliteCache | None:
        """The cache that a model's options ask for."""
        if options.cache is None:
            return None
        return cls(Path(options.cache.partition(":")[2]), max_bytes=options.max_cache_bytes)

    async def start(self) -> None:
        """Open the file, or make it. Raises ConfigError for one that is no cache, or cannot be written."""
        try:
            self._file = await self._in_thread(self._open)
        except (sqlite3.Error, OSError, RuntimeError, ValueError) as error:  # the last two: of a path that is none
            self._thread.shutdown()
            raise ConfigError([Problem(f"{self.path} cannot be used: {error}", key="cache")]) from None

    async def stop(self) -> None:
        """Close the file; what was put is in it."""
        if self._file is not None:
            await self._in_thread(self._file.close)
            self._file = None
        self._thread.shutdown()

    async def get(self, key: bytes) -> bytes | None:
        """The reply to a call, None if it is not there."""
        body = await self._guarded(lambda file: _get(file, key))
        self.hits += body is not None
        self.misses += body is None
        return body

    async def put(self, key: bytes, body: bytes) -> None:
        """Keep the reply to a call; the first of several for one call stays."""
        await self._guarded(lambda file: _put(file, key, body, self._max_bytes))

    async def forget(self, key: bytes) -> None:
        """Give up a reply that cannot be read."""
        await self._guarded(lambda file: _forget(file, key))

    async def _guarded(self, does: Callable[[sqlite3.Connection], T]) -> T | None:
        file = self._file
        if file is None:
            return None
        try:
            return await self._in_thread(lambda: does(file))
        except sqlite3.Error as error:
            if self._file is file:
                log.warning("the cache %s failed and is used no more: %s", self.path, error)
                self._file = None
                await self._in_thread(file.close)
            return None

    async def _in_thread(self, does: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, does)

    def _open(self) -> sqlite3.Connection:
        path = self.path.expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            _check_version(file)
            _begin_wal(file)
            file.execute("PRAGMA synchronous = NORMAL")
            file.executescript(_SCHEMA)
        except BaseException:
            file.close()
            raise
        return file


def _check_version(file: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError for a file that is no cache, or one of another version."""
    is_empty = file.execute("SELECT 1 FROM sqlite_master").fetchone() is None  # before the version: it is made with it
    found: int = file.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, SCHEMA_VERSION):
        raise sqlite3.DatabaseError(f"it is of version {found}, this gymlet writes {SCHEMA_VERSION}")
    if not found and not is_empty:
        raise sqlite3.DatabaseError("it is a database of something else")


def _begin_wal(file: sqlite3.Connection) -> None:
    """Of processes that open a new file at once, SQLite refuses some without a wait. Raises sqlite3.Error."""
    gives_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            file.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > gives_up:
                raise
            time.sleep(0.01)
        else:
            return


def _get(file: sqlite3.Connection, key: bytes) -> bytes | None:
    found = file.execute("SELECT body FROM replies WHERE key = ?", (key,)).fetchone()
    return None if found is None else bytes(found[0])


def _forget(file: sqlite3.Connection, key: bytes) -> None:
    file.execute("DELETE FROM replies WHERE key = ?", (key,))


def _put(file: sqlite3.Connection, key: bytes, body: bytes, max_bytes: int | None) -> None:
    file.execute("BEGIN IMMEDIATE")
    try:
        file.execute("INSERT OR IGNORE INTO replies (key, body) VALUES (?, ?)", (key, body))
        while max_bytes is not None and file.execute("SELECT bytes FROM size").fetchone()[0] > max_bytes:
            file.execute("DELETE FROM replies WHERE place = (SELECT min(place) FROM replies)")
    except BaseException:
        file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")
