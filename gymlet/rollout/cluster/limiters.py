"""One limiter for all nodes of a cluster: an actor has the pools, and lends permits that expire with their borrower.

With fixed limits on each node a provider sees more calls than it allows as soon as one node is lost and another joins:
what the lost one has open still runs. Here each node borrows (``upstream.messages``): what it holds comes back when it
ends a call, and all of it once nothing was heard of the node for ``EXPIRES_S``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from gymlet.config.schema import ModelOptions
from gymlet.upstream.borrowed import HubLimiters
from gymlet.upstream.hub import Borrower
from gymlet.upstream.limiter import Limiter, LocalLimiter
from gymlet.upstream.messages import MAX_LINE_BYTES, Writer
from gymlet.upstream.provider import Provider

log = logging.getLogger(__name__)

Json = dict[str, Any]
BEAT_S = 1.0
EXPIRES_S = 8.0
"""So many missed beats, and the node is taken for lost."""

POST_S = 0.002
"""How long lines wait for others to go with them: a message between actors costs more than a call of a provider."""


class Mailbox:
    """Lines that wait to be fetched. Owns them."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._filled = asyncio.Event()
        self._closed = False

    def write(self, data: bytes) -> None:
        """Keep a line."""
        self._lines.append(data)
        self._filled.set()

    def close(self) -> None:
        """Nothing more is to be fetched."""
        self._closed = True
        self._filled.set()

    async def fetch(self) -> bytes:
        """All there is; waits while there is nothing; b"" once it is closed."""
        await self._filled.wait()
        if not self._closed:
            self._filled.clear()
        lines, self._lines = self._lines, []
        return b"".join(lines)


class Lender:
    """The actor. Owns the pools, and what it knows of each borrower. ``clock`` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limiters: dict[str, LocalLimiter] = {}
        self._borrowers: dict[str, Borrower] = {}
        self._mail: dict[str, Mailbox] = {}
        self._heard: dict[str, float] = {}

    async def post(self, name: str, lines: bytes) -> None:
        """What a borrower says; nothing is said, too, for it lives. Those not heard of for long are forgotten."""
        self._heard[name] = self._clock()
        if name not in self._borrowers:
            self._mail.setdefault(name, Mailbox())
            self._borrowers[name] = Borrower(self._limiters, self._mail[name])
        for line in lines.splitlines():
            self._borrowers[name].take(line)
        for silent in [each for each, heard in self._heard.items() if self._clock() - heard > EXPIRES_S]:
            del self._heard[silent]
            self._borrowers.pop(silent).close()
            self._mail.pop(silent).close()

    async def listen(self, name: str) -> AsyncIterator[bytes]:
        """What a borrower is answered, until it is taken for lost: if it lives, it begins anew."""
        mailbox = self._mail.setdefault(name, Mailbox())
        while lines := await mailbox.fetch():
            yield lines

    async def states(self) -> dict[str, Json]:
        """What may be told of all pools."""
        return {name: await limiter.to_json() for name, limiter in self._limiters.items()}


class RayLimiters:
    """The limiters of one node, as the lender has them; use it as a context manager."""

    def __init__(self, lender: Any, name: str) -> None:
        self._lender = lender
        self._name = name
        self._hub = HubLimiters(self._dial)

    async def __aenter__(self) -> RayLimiters:
        self._talking = self._hub.talking()
        await self._talking.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._talking.__aexit__(None, None, None)

    def of(self, provider: Provider, options: ModelOptions) -> Limiter:
        """The limiter for calls to ``provider``."""
        return self._hub.of(provider, options)

    async def _dial(self) -> tuple[asyncio.StreamReader, Writer]:
        answers = asyncio.StreamReader(MAX_LINE_BYTES)
        return answers, Post(self._lender, self._name, answers)


class Post:
    """The lines between a node and the lender. Owns what waits to be sent, and the tasks that beat and fetch."""

    def __init__(self, lender: Any, name: str, answers: asyncio.StreamReader) -> None:
        self._lender = lender
        self._name = name
        self._answers = answers
        self._lines: list[bytes] = []
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._fetch())]

    def write(self, data: bytes) -> None:
        """Send a line, soon."""
        if not self._lines:
            asyncio.get_running_loop().call_later(POST_S, self._send)
        self._lines.append(data)

    def close(self) -> None:
        """Send nothing more: what the node holds comes back once it is missed."""
        for task in self._tasks:
            task.cancel()

    def _send(self) -> None:
        lines, self._lines = self._lines, []
        self._lender.post.remote(self._name, b"".join(lines))

    async def _beat(self) -> None:
        while True:
            self._lender.post.remote(self._name, b"")
            await asyncio.sleep(BEAT_S)

    async def _fetch(self) -> None:
        """Pass answers on; once the lender is gone, there are none."""
        try:
            async for answers in self._lender.listen.options(num_returns="streaming").remote(self._name):
                self._answers.feed_data(await answers)
        except Exception as error:  # noqa: BLE001  whatever Ray raises, the line is dead
            log.warning("the lender cannot be heard: %s", type(error).__name__)
        self._answers.feed_eof()
