"""HTTP/1.1 messages out of bytes, for both ends of a connection: as much of it as a chat provider needs.

Bytes may be cut anywhere. What is read was written by a well-behaved peer; whoever misbehaves only writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024


class Head(NamedTuple):
    """The first line's three words, and the headers, their names in lower case."""

    words: tuple[str, str, str]
    headers: dict[str, str]


class Body(NamedTuple):
    """The next bytes of a body."""

    data: bytes


class End(NamedTuple):
    """The message is complete."""


Event = Head | Body | End


class Unreadable(Exception):  # noqa: N818  it names what the bytes are
    """The bytes are no HTTP/1.1."""


class MessageReader:
    """Feed bytes, get heads, pieces of bodies and ends. Owns the bytes that are not yet an event.

    ``until_closed``: a message without a length lasts until the connection ends, as replies do; requests have no body.
    """

    def __init__(self, *, until_closed: bool = False) -> None:
        self._buffer = bytearray()
        self._until_closed = until_closed
        self._left: int | None = None
        """Bytes of the body, or of its chunk, that are still to come; None: until the connection ends."""
        self._reads = self._head

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that ``data`` completes. Raises Unreadable."""
        self._buffer += data
        while (event := self._reads()) is not None:
            if not isinstance(event, Body) or event.data:
                yield event

    @property
    def ends_with_connection(self) -> bool:
        """Whether the message under way is complete once the connection ends."""
        return self._reads == self._rest

    def _head(self) -> Event | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise Unreadable(f"a head of more than {MAX_HEAD_BYTES} bytes")
            return None
        head = parse_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        if "chunked" in head.headers.get("transfer-encoding", "").lower():
            self._reads = self._chunk_head
        elif "content-length" in head.headers or not self._until_closed:
            self._left = int(head.headers.get("content-length", 0))
            self._reads = self._counted
        else:
            self._reads = self._rest
        return head

    def _counted(self) -> Event | None:
        if not self._left:
            self._reads = self._head
            return End()
        return self._some()

    def _rest(self) -> Event | None:
        self._left = len(self._buffer)
        return self._some()

    def _chunk_head(self) -> Event | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        size = int(bytes(self._buffer[:end]).split(b";")[0], 16)
        del self._buffer[: end + 2]
        self._left = size + 2  # its CRLF comes with it
        self._reads = self._chunk if size else self._trailer
        return Body(b"")

    def _chunk(self) -> Event | None:
        if self._left is None or len(self._buffer) < self._left:
            return None
        data = bytes(self._buffer[: self._left - 2])
        del self._buffer[: self._left]
        self._reads = self._chunk_head
        return Body(data)

    def _trailer(self) -> Event | None:
        if len(self._buffer) < 2:
            return None
        del self._buffer[:2]
        self._reads = self._head
        return End()

    def _some(self) -> Event | None:
        if not self._buffer or not self._left:
            return None
        data = bytes(self._buffer[: self._left])
        del self._buffer[: len(data)]
        self._left -= len(data)
        return Body(data)


def parse_head(raw: bytes) -> Head:
    """The head without its empty line. Raises Unreadable."""
    first, *lines = raw.decode("latin-1").split("\r\n")
    words = (*first.split(" ", 2), "", "")[:3]
    if not (words[0].startswith("HTTP/1.") or words[2].startswith("HTTP/1.")):
        raise Unreadable(f"no HTTP/1.1: {first[:100]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Head((words[0], words[1], words[2]), headers)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
