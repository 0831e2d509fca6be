"""One reply, from the provider's bytes to the client's: decoder, reader, splitter and writer, joined.

    bytes -> SseDecoder -> SseEvent -> ChatReader -> Delta -> Splitter -> Delta -> writer -> bytes

The same deltas make the streamed and the whole reply; a whole body from the provider takes the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import orjson

from gymlet.wire.chat import ChatReader
from gymlet.wire.deltas import Delta, Json
from gymlet.wire.errors import GymletError, StreamError
from gymlet.wire.provider_errors import MAX_PAGE_CHARS
from gymlet.wire.reasoning import Splitter
from gymlet.wire.shape import TextShape
from gymlet.wire.sse import SseDecoder, SseEvent

MISSHAPEN = (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError)
"""What reading JSON of another shape than a chat completion's leads to; looking before would slow every chunk down."""

MAX_START_CHARS = 200

UNWRITABLE = (orjson.JSONEncodeError, RecursionError)
"""What writing JSON that is nested too deeply leads to."""


class Writer(Protocol):
    """A door: what turns deltas into the bytes of one protocol."""

    @property
    def response(self) -> Json:
        """The whole reply, once closed."""
        ...

    @property
    def body(self) -> bytes:
        """The same as JSON."""
        ...

    def open(self) -> bytes:
        """The first events."""
        ...

    def keep_alive(self) -> bytes:
        """Bytes that show life and say nothing."""
        ...

    def feed(self, deltas: Iterable[Delta]) -> None:
        """Take deltas."""
        ...

    def take(self) -> bytes:
        """The bytes that came of the deltas."""
        ...

    def close(self) -> bytes:
        """The last events of a reply that ended."""
        ...

    def fail(self, error: GymletError) -> bytes:
        """The last events of a reply that broke."""
        ...


class Reply:
    """Feed the provider's bytes, get the client's. Owns whether the reply has ended, and how.

    ``said`` is true once the model has said anything, ``ended`` once nothing more may be fed; ``error`` is then why, or
    None. ``redact`` takes out of an error's words what nobody may see.
    """

    def __init__(
        self, reader: ChatReader, splitter: Splitter, writer: Writer, redact: Callable[[str], str] = str
    ) -> None:
        self._decoder = SseDecoder()
        self._shape = TextShape()
        self._reader = reader
        self._splitter = splitter
        self._writer = writer
        self.redact = redact
        self._done = False
        self._whole = False
        self.said = False
        self.ended = False
        self.error: GymletError | None = None

    @property
    def response(self) -> Json:
        """The whole reply as one object, once ended."""
        return self._writer.response

    @property
    def body(self) -> bytes:
        """The same as JSON."""
        return self._writer.body

    @property
    def tokens(self) -> int | None:
        """How many tokens the provider has counted, prompt and reply together."""
        return self._reader.tokens

    def open(self) -> bytes:
        """The first events, before the provider has said anything."""
        return self._writer.open()

    def keep_alive(self) -> bytes:
        """Bytes that show life and say nothing."""
        return self._writer.keep_alive()

    def feed(self, chunk: bytes) -> bytes:
        """The events that these bytes complete; ``[DONE]``, or an error of the provider, ends the reply."""
        if self.ended:
            return b""
        try:
            events = self._decoder.feed(chunk)
        except StreamError as error:
            return self.fail(error)
        failure = self._read(events)
        if failure is not None:
            return self.fail(failure)
        return self._finish() if self._done else self._writer.take()

    def feed_body(self, body: bytes) -> bytes:
        """A whole reply that is no stream: all events at once, terminal one included."""
        self._whole = True
        deltas: list[Delta] = []
        failure = self._read_chunk("", body, deltas)
        failure = self._say(deltas) or failure
        return self._finish() if failure is None else self.fail(failure)

    def close(self) -> bytes:
        """The rest, once the provider has sent its last byte."""
        if self.ended:
            return b""
        failure = self._read(self._decoder.close())
        return self._finish() if failure is None else self.fail(failure)

    def fail(self, error: GymletError) -> bytes:
        """End the reply with ``error``; what was said so far stays said."""
        if self.ended:
            return b""
        error.hide(self.redact)
        self.error = error
        self._write(self._splitter.close(None))
        self.ended = True
        return self._writer.fail(error)

    def _finish(self) -> bytes:
        try:
            finish, usage = self._reader.close(done=self._done, whole=self._whole)
        except MISSHAPEN:
            return self.fail(StreamError("the provider's token counts cannot be read"))
        if self._reader.failure is not None:
            return self.fail(self._reader.failure)
        last = (finish,) if usage is None else (finish, usage)
        failure = self._write((*self._splitter.close(finish), *last))
        if failure is not None:
            return self.fail(failure)
        try:
            end = self._writer.close()
        except UNWRITABLE:
            return self.fail(_unwritable())
        self.ended = True
        return end

    def _read(self, events: list[SseEvent]) -> StreamError | None:
        deltas: list[Delta] = []
        failure = None
        at = 0
        while at < len(events) and failure is None and not self._done:
            run, end = self._shape.run(events, at)
            if run is not None:
                deltas.append(run)
            if end == at:
                failure = self._read_event(*events[at], deltas)
            at = max(end, at + 1)
        return self._say(deltas) or failure

    def _say(self, deltas: list[Delta]) -> StreamError | None:
        if deltas:
            self.said = True
        return self._write(self._splitter.feed(deltas))

    def _read_event(self, name: str, data: bytes, deltas: list[Delta]) -> StreamError | None:
        """Add what one event says, or return why it says nothing."""
        if data.strip() == b"[DONE]":
            self._done = True
            return None
        return self._read_chunk(name, data, deltas)

    def _read_chunk(self, name: str, data: bytes, deltas: list[Delta]) -> StreamError | None:
        payload, failure = self._parse(name, data)
        if failure is not None:
            return failure
        try:
            found = self._reader.feed(payload)
        except MISSHAPEN:
            found = []
            failure = StreamError(f"the provider sent a chunk that is no chat completion: {self._start(data)}")
        failure = self._reader.failure or failure
        if failure is None:
            deltas += found
            if not self._whole:
                self._shape.learn(data, found, steady=self._reader.steady)
        return failure

    def _parse(self, name: str, data: bytes) -> tuple[Json, StreamError | None]:
        """The event's JSON; an error event, or what is no object, as an error."""
        try:
            payload = orjson.loads(data)
        except orjson.JSONDecodeError:
            if name not in ("", "error", "message"):
                return {}, None  # a ping, or whatever else is none of the reply
            return {}, StreamError(f"the provider sent what is not JSON: {self._start(data)}")
        if not isinstance(payload, dict):
            return {"error": payload or "no object"}, None
        if name == "error" and not payload.get("choices"):
            return {"error": payload.get("error", payload)}, None
        return payload, None

    def _start(self, data: bytes) -> str:
        """The first of what was sent, for a message."""
        return repr(self.redact(data[:MAX_PAGE_CHARS].decode("utf-8", "replace"))[:MAX_START_CHARS])

    def _write(self, deltas: Iterable[Delta]) -> StreamError | None:
        """Give the writer its deltas; why not, if they cannot be written."""
        try:
            self._writer.feed(deltas)
        except UNWRITABLE:
            return _unwritable()
        return None


def _unwritable() -> StreamError:
    return StreamError("the provider sent what cannot be passed on, such as JSON that is nested too deeply")
