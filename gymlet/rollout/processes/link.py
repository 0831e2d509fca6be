"""What the driver of a run and its worker processes say to each other, over a pair of sockets.

All that one says in a turn of its event loop goes as one frame: the length in eight bytes, then a list of messages in
MessagePack. So frames are short while little happens, and long under load, and nothing waits for a clock. A rollout
that ends goes back by itself, whatever else was given to the worker with it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import msgspec

from gymlet.rollout.episode import Ended, Failure, NotKept, Success
from gymlet.rollout.keys import Key
from gymlet.rollout.todo import Task

_LENGTH_BYTES = 8
READ_BYTES = 1 << 20
"""What is read ahead of a frame that is being waited for; longer ones come in several pieces."""


class Give(msgspec.Struct, array_like=True, tag="give"):
    """To a worker: run this."""

    task: Task


class Stop(msgspec.Struct, array_like=True, tag="stop"):
    """To a worker: end, whatever is under way."""


class Permits(msgspec.Struct, array_like=True, tag="permits"):
    """Both ways: a line of ``upstream.messages``."""

    line: bytes


class Back(msgspec.Struct, array_like=True, tag="back"):
    """To the driver: how a rollout ended; without a class it is a row, without a line nothing is kept."""

    key: Key
    line: bytes | None = None
    failure_class: str | None = None
    terminal: bool = False

    @classmethod
    def of(cls, ended: Ended) -> Back:
        """As it goes back."""
        match ended:
            case Success(key, line):
                return cls(key, line)
            case Failure(key, line, failure_class, terminal):
                return cls(key, line, failure_class, terminal)
            case NotKept(key):
                return cls(key)

    @property
    def ended(self) -> Ended:
        """As the collector takes it."""
        if self.line is None:
            return NotKept(self.key)
        if self.failure_class is None:
            return Success(self.key, self.line)
        return Failure(self.key, self.line, self.failure_class, self.terminal)


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """To the driver: all is started."""


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """To the driver: something could not be started, or stopped; why, in words."""

    words: str


class Counted(msgspec.Struct, array_like=True, tag="counted"):
    """To the driver: what this worker alone knows of its calls, summed up since it began."""

    counts: dict[str, int]


Message = Give | Stop | Permits | Back | Ready | Refused | Counted


class Link:
    """One end of a pair of sockets. Owns it, and what waits to be sent at the end of the turn."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: list[Message] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[Message])

    @classmethod
    async def over(cls, sock: socket.socket) -> Link:
        """A link over one end of the pair, which is its own from then on."""
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=READ_BYTES))

    def post(self, message: Message) -> None:
        """Send at the end of this turn; what the other end does not hear is lost with it."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.append(message)

    async def fetch(self) -> list[Message]:
        """The messages of one frame; none when the other end is gone."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return []

    def cut(self) -> None:
        """Close at once; ``fetch`` ends."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Send what waits, and close."""
        self._send()
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def _send(self) -> None:
        if self._waiting and not self._writer.is_closing():
            frame = self._encoder.encode(self._waiting)
            self._writer.write(len(frame).to_bytes(_LENGTH_BYTES) + frame)
        self._waiting.clear()
