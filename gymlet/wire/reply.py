"""One reply, from the provider's bytes to the client's: decoder, reader, splitter and writer, joined.

    bytes -> SseDecoder -> SseEvent -> ChatReader -> Delta -> Splitter -> Delta -> writer -> bytes

The same deltas make the streamed and the whole reply; a whole body from the provider takes the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import orjson

from gymlet.wire.chat import ChatReader
from gymlet.wire.deltas import Delta, Json
from gymlet.wire.errors import GymletError, ProviderError, StreamError
from gymlet.wire.provider_errors import error_message
from gymlet.wire.reasoning import Splitter
from gymlet.wire.sse import SseDecoder, SseEvent


class Writer(Protocol):
    """A door: what turns deltas into the bytes of one protocol."""

    @property
    def response(self) -> Json:
        """The whole reply, once closed."""
        ...

    def open(self) -> bytes:
        """The first events."""
        ...

    def keep_alive(self) -> bytes:
        """Bytes that show life and say nothing."""
        ...

    def feed(self, delta: Delta) -> None:
        """Take one delta."""
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

    ``ended`` is true once nothing more may be fed; ``error`` is then why, or None.
    """

    def __init__(self, reader: ChatReader, splitter: Splitter, writer: Writer) -> None:
        self._decoder = SseDecoder()
        self._reader = reader
        self._splitter = splitter
        self._writer = writer
        self._done = False
        self._whole = False
        self.ended = False
        self.error: GymletError | None = None

    @property
    def response(self) -> Json:
        """The whole reply as one object, once ended."""
        return self._writer.response

    def open(self) -> bytes:
        """The first events, before the provider has said anything."""
        return self._writer.open()

    def keep_alive(self) -> bytes:
        """Bytes that show life and say nothing."""
        return self._writer.keep_alive()

    def feed(self, chunk: bytes) -> bytes:
        """The events that these bytes complete; an error of the provider ends the reply."""
        if self.ended:
            return b""
        try:
            for event in self._decoder.feed(chunk):
                self._read(event)
        except ProviderError as error:
            return self.fail(error)
        return self._writer.take()

    def feed_body(self, body: bytes) -> bytes:
        """A whole reply that is no stream: all events at once, terminal one included."""
        try:
            self._take_in(self._reader.feed(_with_choices(_parse(body.strip(), "a reply"))))
        except ProviderError as error:
            return self.fail(error)
        self._whole = True
        return self.close()

    def close(self) -> bytes:
        """The rest, once the provider has sent its last byte."""
        if self.ended:
            return b""
        try:
            for event in self._decoder.close():
                self._read(event)
            last = self._reader.close(done=self._done, whole=self._whole)
        except ProviderError as error:
            return self.fail(error)
        for delta in (*self._splitter.close(), *last):
            self._writer.feed(delta)
        self.ended = True
        return self._writer.close()

    def fail(self, error: GymletError) -> bytes:
        """End the reply with ``error``; what was said so far stays said."""
        if self.ended:
            return b""
        for delta in self._splitter.close():
            self._writer.feed(delta)
        self.ended = True
        self.error = error
        return self._writer.fail(error)

    def _read(self, event: SseEvent) -> None:
        if event.data == b"[DONE]":
            self._done = True
            return
        payload = _parse(event.data, "an event")
        if event.name == "error" and not payload.get("choices"):
            raise StreamError(error_message(payload) or "the provider sent an error event")
        self._take_in(self._reader.feed(payload))

    def _take_in(self, deltas: Iterable[Delta]) -> None:
        split, write = self._splitter.feed, self._writer.feed
        for delta in deltas:
            for piece in split(delta):
                write(piece)


def _with_choices(payload: Json) -> Json:
    if not payload.get("choices"):
        raise ProviderError(error_message(payload) or "the provider's reply has no choices")
    return payload


def _parse(data: bytes, what: str) -> Json:
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        start = data[:200].decode("utf-8", "replace")
        raise StreamError(f"the provider sent {what} that is not JSON: {start!r}") from None
    if not isinstance(payload, dict):
        payload = {"error": payload}
    return payload
