"""One client's connection: requests in, any bytes out, and every way to end it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

from scripts.hostile.http1 import Body, End, Head, MessageReader, Unreadable

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time at all: the kernel sends RST and throws away what was not sent."""


class Request(NamedTuple):
    """One request, read to its end."""

    head: Head
    body: bytes


class Owner(Protocol):
    """Who answers, and wants to know what becomes of a connection."""

    async def answer(self, connection: Connection, request: Request) -> None:
        """Answer one request."""
        ...

    def opened(self, connection: Connection) -> None:
        """A client has come."""
        ...

    def dropped(self, connection: Connection) -> None:
        """A request was not read."""
        ...

    def closed(self, connection: Connection) -> None:
        """The connection has ended."""
        ...


class Connection(asyncio.Protocol):
    """Reads requests and answers them one after the other. Owns its transport and the task that answers.

    The task is cancelled when the connection ends. ``ended_here`` says that it was not the client who ended it.
    ``drops_next``: the next bytes that come are not read; the connection is closed instead.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._reader = MessageReader()
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._written = 0
        self.ended_here = False
        self.drops_next: Callable[[], None] | None = None

    @property
    def taken_bytes(self) -> int:
        """What the system has taken of what was written."""
        return self._written - self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """Read; a request that is complete is answered when those before it are."""
        if self.drops_next is not None:
            self._owner.dropped(self)
            self.drops_next()
            return
        try:
            for event in self._reader.feed(data):
                self._take(event)
        except (Unreadable, ValueError):
            self.close()

    def eof_received(self) -> bool:
        """The client has left."""
        self._transport.abort()
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """The end: whoever writes an answer stops."""
        self._owner.closed(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client does not take what there is."""
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """It does again."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    async def send(self, data: bytes) -> None:
        """Write, and wait while the client does not take it."""
        if self.ended_here:
            return
        self._transport.write(data)
        self._written += len(data)
        if self._room is not None:
            await self._room

    def half_close(self) -> None:
        """FIN, once everything is sent; what the client sends is still read."""
        self._transport.write_eof()

    def close(self) -> None:
        """FIN, once everything is sent, and no more reading."""
        self.ended_here = True
        self._transport.close()

    def reset(self) -> None:
        """RST, at once."""
        self.ended_here = True
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    def _take(self, event: Head | Body | End) -> None:
        if isinstance(event, Head):
            self._head, self._body = event, []
        elif isinstance(event, Body):
            self._body.append(event.data)
        elif self._head is not None:
            self._waiting.append(Request(self._head, b"".join(self._body)))
            self._body = []
            self._next()

    def _next(self) -> None:
        if self._task is None and self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._serve(self._waiting.popleft()))

    async def _serve(self, request: Request) -> None:
        await self._owner.answer(self, request)
        self._task = None
        if not self.ended_here:
            self._next()
