"""The other workers of one server, as one of them sees them.

What a worker keeps in memory (responses, sessions) it gives an id that begins with its own number; whoever meets the id
of another asks that worker over its Unix socket. A server of one worker has none of this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
import orjson
from aiohttp import web

from gymlet.serve.failures import FAILURE_CLASS_HEADER
from gymlet.serve.ids import random_hex
from gymlet.serve.request_ids import HEADER, request_id
from gymlet.serve.workers import WorkerContext
from gymlet.wire.errors import GymletError

_ID = re.compile(r"(?:[a-z]+_)?([0-9a-f]{2})[0-9a-f]{30}")
_SENT = ("Content-Type", "Cookie")
_RETURNED = ("Content-Type", "Retry-After", FAILURE_CLASS_HEADER)


class FellowError(GymletError):
    """The worker that knows more does not answer."""

    status = 503
    failure_class = "environment_error"


class FellowReply(NamedTuple):
    """What another worker answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Fellows:
    """Owns the connections to the other workers."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self._sessions: dict[int, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        """Give the connections back."""
        for session in self._sessions.values():
            await session.close()

    def new_id(self, prefix: str) -> str:
        """A fresh id that says who made it: the prefix, the worker's number and 120 random bits."""
        return f"{prefix}{self.context.index:02x}{random_hex()[2:]}"

    def maker(self, name: str) -> int | None:
        """The other worker that made this id; None: this one did, or nobody."""
        found = _ID.fullmatch(name)
        index = int(found[1], 16) if found is not None else self.context.index
        return index if index != self.context.index and index < self.context.count else None

    async def forward(self, request: web.Request, name: str, path: str) -> web.Response | None:
        """The answer of whoever made ``name`` to this request, as if it were for ``path``; None: answer it here.

        Raises FellowError.
        """
        index = self.maker(name)
        if index is None:
            return None
        headers = {key: request.headers[key] for key in _SENT if key in request.headers}
        headers[HEADER] = request_id(request)
        reply = await self.ask(index, request.method, path, body=await request.read(), headers=headers)
        kept = {key: reply.headers[key] for key in _RETURNED if key in reply.headers}
        return web.Response(body=reply.body, status=reply.status, headers=kept)

    async def get(self, index: int, path: str) -> Any:
        """The JSON behind ``path`` at a worker. Raises FellowError, also where it refuses: it may be stopping."""
        reply = await self.ask(index, "GET", path)
        if reply.status != 200:
            raise _silent(index)
        return orjson.loads(reply.body)

    async def ask(
        self, index: int, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> FellowReply:
        """What a worker says. Raises FellowError."""
        try:
            async with self._session(index).request(
                method, f"http://fellow{path}", data=body or None, headers=headers
            ) as reply:
                return FellowReply(reply.status, reply.headers, await reply.read())
        except (aiohttp.ClientError, OSError) as error:
            raise _silent(index) from error

    def _session(self, index: int) -> aiohttp.ClientSession:
        session = self._sessions.get(index)
        if session is None:
            path = str(self.context.socket_of(index))
            session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path, limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._sessions[index] = session
        return session


def _silent(index: int) -> FellowError:
    return FellowError(f"worker {index} of the server, which keeps this in its memory, does not answer")
