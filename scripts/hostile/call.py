"""One request for a completion, and the parts that good and bad answers are made of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from scripts.hostile import answers
from scripts.hostile.connection import Connection
from scripts.hostile.http1 import LAST_CHUNK, chunk

Json = dict[str, Any]

SETTLE_S = 0.05
"""Long enough for a client to have read what was sent, which a reset would throw away."""

FOR_EVER_S = 24 * 3600.0
WHOLE_PIECES = 6


@dataclass(slots=True)
class Call:
    """What was asked, on which connection. ``attempt`` counts from 1, by the last user message.

    ``completed`` becomes true once a good answer was written to its end.
    """

    connection: Connection
    message: str
    stream: bool
    attempt: int
    authorization: str
    released: asyncio.Event
    completed: bool = False

    @property
    def content_type(self) -> str:
        """What a good answer says that it is."""
        return "text/event-stream" if self.stream else "application/json"

    def pieces(self, chunks: int = answers.CHUNKS) -> list[bytes]:
        """A good answer's body, as it is sent."""
        if self.stream:
            return answers.stream_events(self.message, chunks)
        body = answers.whole_body(self.message, chunks)
        size = -(-len(body) // WHOLE_PIECES)
        return [body[start : start + size] for start in range(0, len(body), size)]

    async def good(self, chunks: int = answers.CHUNKS, headers: dict[str, str] | None = None) -> None:
        """A good answer: streamed, an event at a time; or whole."""
        pieces = self.pieces(chunks)
        if self.stream:
            await self.begin(headers=headers)
            for piece in pieces:
                await self.connection.send(chunk(piece))
            await self.finish()
        else:
            body = b"".join(pieces)
            await self.connection.send(answers.head(200, self.content_type, len(body), headers) + body)
            self.completed = True

    async def begin(self, length: int | None = None, headers: dict[str, str] | None = None) -> None:
        """The head of a good answer; without a length, of a chunked one."""
        await self.connection.send(answers.head(200, self.content_type, length, headers))

    async def half(self) -> None:
        """A good answer's head and the first half of its body, which the client has time to read."""
        await self.begin()
        pieces = self.pieces()
        for piece in pieces[: len(pieces) // 2]:
            await self.connection.send(chunk(piece))
        await self.settle()

    async def finish(self) -> None:
        """The end of a chunked answer that was good."""
        await self.connection.send(LAST_CHUNK)
        self.completed = True

    async def settle(self) -> None:
        """Let the client read."""
        await asyncio.sleep(SETTLE_S)

    async def stall(self) -> None:
        """Do nothing until the client leaves."""
        await asyncio.sleep(FOR_EVER_S)

    async def refuse(
        self, status: int, words: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """An error with its status."""
        body = answers.error_body(status, words, code)
        await self.page(status, body, "application/json", headers)

    async def page(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        """Any reply with a body."""
        await self.connection.send(answers.head(status, content_type, len(body), headers) + body)
