"""The requests under way: counted, and ended in order when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from gymlet.wire.errors import GymletError, StreamError

RETRY_AFTER_S = "5"
INTERRUPT_S = 2.0
"""When time is up, what is left is told; as long as some of it ends in every such span, the rest is waited for."""

STOPPING = "server_stopping"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BEGUN = web.RequestKey("begun", bool)


class StoppingError(GymletError):
    """The server stops; the same request may be sent again, to it or another."""

    status = 503
    retry_after = RETRY_AFTER_S


class Stop:
    """When to stop: asked once, when all is done; asked again, at once."""

    def __init__(self) -> None:
        self.soon = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self) -> None:
        """A signal came."""
        (self.now if self.soon.is_set() else self.soon).set()


class Traffic:
    """Owns which requests are under way, and whether more may come."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[object], web.Request] = {}
        self._idle = asyncio.Event()
        self._error: GymletError | None = None
        self.closing = False

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle one request. Raises StoppingError for one that comes too late, or could not be ended in time."""
        if self.closing:
            raise StoppingError("the server stops; send the request again", code=STOPPING)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a handler runs in one
        self._running[task] = request
        try:
            return await handler(request)
        except asyncio.CancelledError:
            if self._error is None or _BEGUN in request:
                raise
            task.uncancel()
            raise StoppingError(self._error.message, code=self._error.code) from None
        finally:
            del self._running[task]
            if self.closing and not self._running:
                self._idle.set()

    def mark(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Note that a response begins; while the server stops it is the connection's last."""
        request[_BEGUN] = True
        if self.closing:
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"

    async def end(self, stop: Stop, timeout_s: float, interrupt: Callable[[StreamError], None]) -> None:
        """Let nothing more in, wait for what runs, then fail it in its own protocol; at once if ``stop`` says so.

        ``interrupt`` makes the open replies of providers fail.
        """
        self.closing = True
        if not self._running:
            self._idle.set()
        if await self._ended(stop, timeout_s):
            return
        message = f"the server stops, and this took longer than its {timeout_s:g} s"
        interrupt(StreamError(message, status=503, code=STOPPING, error_type="server_error", retry_after=RETRY_AFTER_S))
        if await self._settled(stop):
            return
        self._error = StoppingError(message, code=STOPPING)
        self._cancel(lambda request: _BEGUN not in request)
        if not await self._settled(stop):
            self._cancel(lambda _request: True)

    async def _settled(self, stop: Stop) -> bool:
        """Whether all ended, given time as long as they do."""
        before = len(self) + 1
        while len(self) < before:
            before = len(self)
            if await self._ended(stop, INTERRUPT_S):
                return True
        return False

    async def _ended(self, stop: Stop, timeout_s: float) -> bool:
        """Whether all ended in time; at once when there is no time."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._idle, stop.now)]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if stop.now.is_set():
            self._cancel(lambda _request: True)
        return self._idle.is_set() or stop.now.is_set()

    def _cancel(self, which: Callable[[web.Request], bool]) -> None:
        for task, request in [*self._running.items()]:
            if which(request):
                task.cancel()
