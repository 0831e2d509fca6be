"""One request on the wire, one answer back: connections, deadlines, and what their failures mean."""

from __future__ import annotations

import asyncio
import base64
import logging
import select
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError

from gymlet.config.schema import ModelOptions
from gymlet.upstream.lane import Outcome
from gymlet.upstream.provider import Endpoint, Provider
from gymlet.upstream.waits import asked_wait_s
from gymlet.wire.errors import GymletError, ProviderError, StreamError
from gymlet.wire.provider_errors import passes, read_error

log = logging.getLogger(__name__)

READ_CHUNK_BYTES = 64 * 1024
"""Twice as much that nobody takes, and the provider's socket is not read: the back-pressure."""

MAX_ERROR_BODY_BYTES = 1024 * 1024
ERROR_BODY_S = 10.0
"""An error's status is enough, where its words do not come."""

DRAIN_S = 0.1
"""What is left behind ``[DONE]`` is the end of the body, already on its way."""

IDLE_CONNECTION_S = 15.0
DNS_CACHE_S = 300
MAX_STALE = 3
"""Kept-alive connections that turn out to be closed, in a row, before that counts as a failure."""

REQUEST_ID = "x-request-id"

BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError)
_WORDLESS = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)
_WHOLE = ("application/json", "text/html")


@dataclass(slots=True)
class _Connection:
    """What is known of the connection that one request goes over."""

    reused: bool = False


_CONNECTION: ContextVar[_Connection] = ContextVar("connection")


class _Connector(aiohttp.TCPConnector):
    """Tells whether a connection was used before: the server may have closed it just as the request was sent."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> aiohttp.connector.Connection:
        """A connection of the pool, or a new one; one with bytes that nobody asked for is never used again."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol: Any = connection.protocol
            news: select.poll | None = getattr(protocol, "news", None)
            _CONNECTION.get().reused = news is not None
            if news is None:
                protocol.news = _news(connection)
            elif protocol.should_close or news.poll(0):
                connection.close()
                continue
            return connection


def _news(connection: aiohttp.connector.Connection) -> select.poll:
    """Tells whether a connection has something to read: its end or, while it is idle, what was not asked for."""
    news = select.poll()
    if connection.transport is not None:
        news.register(connection.transport.get_extra_info("socket"), select.POLLIN)
    return news


class Answer:
    """A provider's reply with a good status, its body not yet read.

    ``request_id``: what the provider calls the request. Its reader says how it ended (``outcome``), and the ``tokens``
    that the provider counted.
    """

    def __init__(self, response: aiohttp.ClientResponse, options: ModelOptions, request_id: str | None) -> None:
        self.request_id = request_id
        self._response = response
        self._content = response.content
        self._options = options
        self._first = b""
        self._begun = False
        self._packed = "Content-Encoding" in response.headers
        self.outcome: Outcome = "ok"
        self.tokens: int | None = None

    @property
    def is_labelled_whole(self) -> bool:
        """Whether the body says that it is no stream of events; not every provider labels it right."""
        return self._response.content_type in _WHOLE

    @property
    def content_type(self) -> str:
        """What the provider says that the body is."""
        return self._response.content_type

    @property
    def at_end(self) -> bool:
        """Whether nothing is left to read."""
        return not self._first and self._content.at_eof()

    async def begin(self, patience_s: float) -> None:
        """Wait for the first byte; the time over, it will come later. Raises StreamError, as ``read_some`` does."""
        self._first = self._take_now()
        if self._first or self._content.at_eof():
            return
        scope = asyncio.timeout(patience_s)
        try:
            async with scope:
                self._first = await self.read_some()
        except TimeoutError:
            if not scope.expired():
                raise

    def read_now(self) -> bytes:
        """What has come already, without waiting for more. Raises StreamError when the connection broke."""
        first, self._first = self._first, b""
        return first + self._take_now()

    async def read_some(self) -> bytes:
        """The next bytes as they came; b"" at the end. Raises StreamError when the connection breaks or is silent."""
        if self._first:
            return self.read_now()
        if self._packed:  # what is unpacked piece by piece is always there, and others have their turn too
            await asyncio.sleep(0)
        try:
            piece = await self._content.readany()
        except BROKEN as error:
            raise self._broken(error) from error
        if not self._begun:
            self._start()
        return piece

    async def drain(self) -> None:
        """Read what is left, if it comes at once: then the connection can be used again."""
        content = self._content
        if content.at_eof():
            return
        with suppress(TimeoutError, GymletError, *BROKEN):
            async with asyncio.timeout(DRAIN_S):
                while not content.at_eof():
                    await content.readany()

    def fail(self, error: StreamError) -> None:
        """End it: whoever reads, or will read, gets the error."""
        self._content.set_exception(error)

    def close(self) -> None:
        """Give the connection back, or close it where something is left to read."""
        self._response.release()

    def _take_now(self) -> bytes:
        try:
            piece = self._content.read_nowait()
        except BROKEN as error:
            raise self._broken(error) from error
        if piece and not self._begun:
            self._start()
        return piece

    def _start(self) -> None:
        """From the first byte on, silence is measured by another clock."""
        self._begun = True
        connection = self._response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._options.idle_timeout_s
            connection.protocol.start_timeout()

    def _broken(self, error: BaseException) -> StreamError:
        if isinstance(error, TimeoutError):
            name, seconds = "idle_timeout_s", self._options.idle_timeout_s
            if not self._begun:
                name, seconds = "first_byte_timeout_s", self._options.first_byte_timeout_s
            return timed_out(f"the provider sent nothing for {seconds:g} s ({name})")
        garbled = isinstance(error.__cause__, ContentEncodingError)
        return StreamError(f"the provider's reply broke off: {cause(error)}", transient=not garbled)


class Transport:
    """Sends requests to one provider. Owns the session with its connections.

    What a session has for all requests, aiohttp tells a proxy too: headers with keys go with each request.
    """

    def __init__(self, provider: Provider, options: ModelOptions) -> None:
        self._provider = provider
        self._options = options
        self._urls = [endpoint.completions_url for endpoint in provider.endpoints]
        self._headers = [_headers(provider, endpoint) for endpoint in provider.endpoints]
        self._proxies = [provider.proxy_for(endpoint) for endpoint in provider.endpoints]
        self._proxy_headers = _basic(*provider.proxy_auth) if provider.proxy_auth else None
        tls = provider.tls() or True
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=0, ttl_dns_cache=DNS_CACHE_S, keepalive_timeout=IDLE_CONNECTION_S, ssl=tls),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=options.connect_timeout_s, sock_read=options.first_byte_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_CHUNK_BYTES,
        )

    async def close(self) -> None:
        """Give the connections back."""
        await self._session.close()

    async def send(self, lane: int, body: bytes) -> Answer:
        """The answer to one request. Raises ProviderError if the provider cannot be reached or refuses it."""
        response = await self._post(lane, body)
        if response.status < 300:
            request_id = response.headers.get(REQUEST_ID)
            return Answer(response, self._options, None if request_id is None else self._provider.redact(request_id))
        try:
            raise await self._refusal(lane, response)
        finally:
            response.release()

    async def _post(self, lane: int, body: bytes) -> aiohttp.ClientResponse:
        """A kept-alive connection that the server closed meanwhile says nothing of the server: another one is taken."""
        connection = _Connection()
        _CONNECTION.set(connection)
        for stale in range(MAX_STALE + 1):
            connection.reused = False
            try:
                return await self._post_once(lane, body)
            except _WORDLESS as error:
                if not connection.reused or stale == MAX_STALE:
                    raise self._lost(lane, error) from error
        raise AssertionError  # the last turn returns or raises

    async def _post_once(self, lane: int, body: bytes) -> aiohttp.ClientResponse:
        """Raises ProviderError, or one of _WORDLESS where the connection ended without an answer."""
        place = self._provider.endpoints[lane].place
        try:
            return await self._session.post(
                self._urls[lane],
                data=body,
                headers=self._headers[lane],
                allow_redirects=False,
                proxy=self._proxies[lane],
                proxy_headers=self._proxy_headers,
            )
        except aiohttp.ConnectionTimeoutError as error:
            seconds = self._options.connect_timeout_s
            message = f"{place} did not accept a connection in {seconds:g} s (connect_timeout_s)"
            raise ProviderError(
                message, status=504, failure_class="timeout", transient=True, unreachable=True
            ) from error
        except aiohttp.ServerTimeoutError as error:
            seconds = self._options.first_byte_timeout_s
            raise timed_out(f"{place} sent nothing for {seconds:g} s (first_byte_timeout_s)") from error
        except aiohttp.ClientHttpProxyError as error:
            message = f"{place} cannot be reached: its proxy answered {error.status}: {cause(error)}"
            raise ProviderError(message, transient=passes(error.status), unreachable=True) from error
        except aiohttp.ClientConnectorError as error:
            message = f"{place} cannot be reached: {cause(error)}"
            raise ProviderError(message, transient=True, unreachable=True) from error
        except _WORDLESS:
            raise
        except BROKEN as error:
            raise ProviderError(f"{place} did not answer in HTTP: {cause(error)}") from error

    def _lost(self, lane: int, error: BaseException) -> ProviderError:
        place = self._provider.endpoints[lane].place
        return ProviderError(f"{place} closed the connection without an answer: {cause(error)}", transient=True)

    async def _refusal(self, lane: int, response: aiohttp.ClientResponse) -> ProviderError:
        if response.status < 400:
            place = self._provider.endpoints[lane].place
            return ProviderError(f"{place} redirects elsewhere; name the final base_url")
        body = b""
        with suppress(TimeoutError, *BROKEN):
            async with asyncio.timeout(ERROR_BODY_S):
                body = await _read_up_to(response.content, MAX_ERROR_BODY_BYTES)
        error = read_error(
            response.status,
            body,
            retry_after=response.headers.get("Retry-After"),
            wait_s=asked_wait_s(response.status, response.headers, body, now_s=time.time()),
            request_id=response.headers.get(REQUEST_ID),
        )
        log.info("provider refused: status=%d class=%s", response.status, error.failure_class)
        return error


def timed_out(message: str) -> StreamError:
    """The provider was given up on."""
    return StreamError(message, status=504, failure_class="timeout")


def cause(error: BaseException) -> str:
    """An exception's words, without the URL, whose query may hold a key."""
    words = " ".join(error.message.split()) if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return words or type(error).__name__


def _headers(provider: Provider, endpoint: Endpoint) -> Mapping[str, str]:
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    return {**headers, **provider.headers}


def _basic(user: str, password: str) -> Mapping[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


async def _read_up_to(content: aiohttp.StreamReader, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    while max_bytes > 0 and (piece := await content.read(max_bytes)):
        pieces.append(piece)
        max_bytes -= len(piece)
    return b"".join(pieces)
