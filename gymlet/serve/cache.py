"""Replies of a model kept in a file, so that the same call is not paid for twice.

Opt-in: ``cache: sqlite:PATH`` on a model instance. A call is known by a digest of provider, model, parameters and
repeat: the second rollout of a task is another call, and asks anew. Several processes may share a file. What is kept is
digests and replies; neither keys nor requests are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError

log = logging.getLogger(__name__)

SCHEME = "sqlite:"
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30.0
"""How long one process waits for another that is writing."""

FORM_OF_REPLY = frozenset({"stream", "stream_options"})
"""Parameters that say how a reply comes, not what is in it."""

WHOLE = frozenset({"stop", "tool_calls", "function_call"})
"""The ends that a reply comes to by itself."""

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


class ModelCache(Protocol):
    """Where replies are kept."""

    async def get(self, key: bytes) -> bytes | None:
        """The reply to a call, None if it is not there."""
        ...

    async def put(self, key: bytes, body: bytes) -> None:
        """Keep the reply to a call, if it is whole."""
        ...


def cache_key(provider: str, model: str, request: Json, repeat: int | str | None) -> bytes:
    """The digest of a call: where it goes, the chat request's parameters, and which repeat it is of.

    ``repeat``: the seed or the rollout's index; calls that leave it out share their reply.
    """
    asked = {name: value for name, value in request.items() if name not in FORM_OF_REPLY}
    call = {"provider": provider, "model": model, "request": asked, "repeat": repeat}
    return hashlib.blake2b(orjson.dumps(call, option=orjson.OPT_SORT_KEYS), digest_size=32).digest()


def is_whole(body: bytes) -> bool:
    """Whether a body is a chat completion that came to its end: no error, no reply that was cut off or stopped."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    choices = reply.get("choices") if isinstance(reply, dict) and not reply.get("error") else None
    if not isinstance(choices, list) or not choices:
        return False
    return all(isinstance(choice, dict) and choice.get("finish_reason") in WHOLE for choice in choices)


def cache_path(setting: str) -> Path:
    """The file of a ``cache`` setting. Raises RequestError for one of another form."""
    if not setting.startswith(SCHEME) or len(setting) == len(SCHEME):
        raise RequestError(f"cache: '{setting}' must be {SCHEME}PATH", param="cache")
    return Path(setting[len(SCHEME) :]).expanduser()


class SqliteCache:
    """A cache in a file. Owns a thread, which alone speaks with the file, so that the event loop never waits for it.

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

    async def start(self) -> None:
        """Open the file, or make it. Raises RequestError for one that is no cache, or cannot be written."""
        try:
            self._file = await self._in_thread(self._open)
        except (sqlite3.Error, OSError) as error:
            raise RequestError(f"the cache {self.path} cannot be used: {error}", param="cache") from None

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
        """Keep the reply to a call, if it is whole; the first of several for one call stays."""
        if is_whole(body):
            await self._guarded(lambda file: _put(file, key, body, self._max_bytes))

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
            _check_version(file)
            file.executescript(_SCHEMA)
        except BaseException:
            file.close()
            raise
        return file


def _check_version(file: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError for a file that is no database, or one of another version."""
    found: int = file.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, SCHEMA_VERSION):
        raise sqlite3.DatabaseError(f"it is of version {found}, this gymlet writes {SCHEMA_VERSION}")


def _get(file: sqlite3.Connection, key: bytes) -> bytes | None:
    found = file.execute("SELECT body FROM replies WHERE key = ?", (key,)).fetchone()
    return None if found is None else bytes(found[0])


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
