"""A lean client: one connection, one request at a time, nothing kept that is not asked for."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Self, cast

import orjson

from scripts.hostile.http1 import Body, End, Head, MessageReader, Unreadable


class Reply(NamedTuple):
    """A reply; ``complete`` is false when the connection ended before it."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool


class Client(asyncio.Protocol):
    """One connection to a server. Owns the reply under way."""

    def __init__(self) -> None:
        self._reader = MessageReader(until_closed=True)
        self._reply: asyncio.Future[Reply] | None = None
        self._head: Head | None = None
        self._pieces: list[bytes] = []
        self.is_open = False

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        """A connection. Raises OSError."""
        _, client = await asyncio.get_running_loop().create_connection(cls, host, port)
        return client

    async def ask(self, path: str, payload: object, headers: dict[str, str] | None = None) -> Reply:
        """POST ``payload`` as JSON and read the reply to its end."""
        self.send(path, payload, headers)
        return await self.reply()

    async def get(self, path: str) -> Reply:
        """GET ``path``."""
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(f"GET {path} HTTP/1.1\r\nHost: hostile\r\n\r\n".encode())
        return await self.reply()

    def send(self, path: str, payload: object, headers: dict[str, str] | None = None) -> None:
        """POST ``payload`` as JSON; ``reply`` waits for what comes."""
        self._reply = asyncio.get_running_loop().create_future()
        body = orjson.dumps(payload)
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: hostile",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        )
        self.transport.write("\r\n".join((*lines, "", "")).encode() + body)

    async def reply(self) -> Reply:
        """The reply to what was sent, once it is whole or the connection has ended."""
        assert self._reply is not None, "nothing was sent"  # noqa: S101
        return await asyncio.shield(self._reply)

    def leave(self) -> None:
        """End the connection at once."""
        self.is_open = False
        self.transport.abort()

    def take(self, data: bytes) -> None:
        """A piece of the body has come."""
        self._pieces.append(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Read."""
        try:
            for event in self._reader.feed(data):
                self._read(event)
        except (Unreadable, ValueError):
            self.transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """The end, whoever wanted it."""
        self.is_open = False
        self._finish(complete=self._reader.ends_with_connection)

    def _read(self, event: Head | Body | End) -> None:
        if isinstance(event, Head):
            self._head = event
        elif isinstance(event, Body):
            self.take(event.data)
        else:
            self._finish(complete=True)

    def _finish(self, *, complete: bool) -> None:
        status, headers = (int(self._head.words[1]), self._head.headers) if self._head else (0, {})
        self.is_open = self.is_open and headers.get("connection", "").lower() != "close"
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(status, headers, b"".join(self._pieces), complete))
        self._head = None
        self._pieces = []
