"""Bytes to server-sent events, and back.

The decoder follows the WHATWG standard (HTML, "Server-sent events", 9.2.6): lines end with LF, CR or CRLF, one leading
BOM is dropped, comments and unknown fields are skipped, several data lines are joined by LF. It departs from it
for what providers do: a last event without its blank line still counts, a line ``error: …`` is an event, and an event
with empty data, which some send to show life, is none.

Bytes may be cut anywhere. Whole lines are taken as they come; an unfinished one waits in a list of pieces, so that a
line that arrives in a million pieces is joined once.
"""

from __future__ import annotations

from gymlet.wire.errors import StreamError

MAX_EVENT_BYTES = 64 * 1024 * 1024
"""The longest event that is buffered: above any image a model may send inline, below what would hurt the server."""

_BOM = b"\xef\xbb\xbf"


SseEvent = tuple[str, bytes]
"""One event: its name ("" if none was given) and its data."""


class SseDecoder:
    """Feed bytes, get whole events. Owns the unfinished line and the unfinished event."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_event_bytes
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._after_cr = False
        self._at_start = True
        self._data: list[bytes] = []
        self._name = ""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that ``chunk`` completes. Raises StreamError when one grows past ``max_event_bytes``."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._hold(rest)
            return []
        events = self._read_blocks(self._take_held(head))
        self._hold(rest)
        return events

    def close(self) -> list[SseEvent]:
        """The event that the stream broke off in, if it had data."""
        return self._read([self._take_held(b""), b""])

    def _hold(self, piece: bytes) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._grow(len(piece))

    def _grow(self, size: int) -> None:
        self._held_bytes += size
        if self._held_bytes > self._max_bytes:
            raise StreamError(f"the provider sent an event of more than {self._max_bytes} bytes")

    def _take_held(self, head: bytes) -> bytes:
        if self._pieces:
            head = b"".join((*self._pieces, head))
            self._held_bytes -= sum(map(len, self._pieces))
            self._pieces.clear()
        if self._at_start and head:
            self._at_start = False
            head = head.removeprefix(_BOM)
        return head

    def _read_blocks(self, text: bytes) -> list[SseEvent]:
        """Whole lines. Nearly always they are single data lines between blank ones: one split tells them apart."""
        if text.startswith(b"data: ") and text.endswith(b"\n") and not self._data and not self._name:
            payloads = text[6:-1].split(b"\n\ndata: ")
            if text.count(b"\n") == 2 * len(payloads) - 1 and b"" not in payloads:
                return [("", payload) for payload in payloads]
        return self._read(text.split(b"\n"))

    def _read(self, lines: list[bytes]) -> list[SseEvent]:
        events: list[SseEvent] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data: "):
                data.append(line[6:])
                if len(data) > 1:
                    self._grow(len(line))
            elif line:
                self._read_field(line)
            else:
                if any(data):
                    events.append((self._name, data[0] if len(data) == 1 else b"\n".join(data)))
                data.clear()
                self._held_bytes = 0
                self._name = ""
        return events

    def _read_field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._grow(len(line))
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"error":
            self._name = "error"
            self._data.append(value)
            self._grow(len(line))


def frame(name: str, payload: bytes) -> bytes:
    """One event as bytes: LF only, one data line (``payload`` is JSON on one line)."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), payload)


DONE = b"data: [DONE]\n\n"
