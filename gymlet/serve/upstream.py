"""The provider's side: one ClientSession per provider, its limit, and its failures as ProviderError."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass, field

import aiohttp
import orjson
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gymlet.wire.deltas import Json
from gymlet.wire.errors import ProviderError, StreamError
from gymlet.wire.provider_errors import read_error

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
READ_CHUNK_BYTES = 256 * 1024
"""Above it the provider's socket is not read until the client has taken what there is: the back-pressure."""

MAX_ERROR_BODY_BYTES = 1024 * 1024


DRAIN_S = 0.1
"""What is left behind ``[DONE]`` is the end of the body, already on its way."""

BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError)
_WHOLE = ("application/json", "text/html")


@dataclass(frozen=True, slots=True)
class Provider:
    """Where the model is, and how many requests it may have at once."""

    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    num_concurrent_requests: int = 1000

    @property
    def completions_url(self) -> URL:
        """The endpoint that every reply comes from; a query of the base_url (Azure's api-version) stays."""
        base = URL(self.base_url)
        return (base / "chat" / "completions").with_query(base.query)

    @property
    def place(self) -> str:
        """The endpoint as it may be shown."""
        return str(self.completions_url.with_query(None))

    def redact(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.api_key, "****") if self.api_key else text


class Answer:
    """A provider's reply with a good status, its body not yet read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def is_labelled_whole(self) -> bool:
        """Whether the body says that it is no stream of events; not every provider labels it right."""
        return self._response.content_type in _WHOLE

    @property
    def content_type(self) -> str:
        """What the provider says that the body is."""
        return self._response.content_type

    @property
    def request_id(self) -> str | None:
        """What the provider calls the request."""
        return self._response.headers.get("x-request-id")

    def interrupt(self, error: StreamError) -> None:
        """Whoever reads it, or is about to, meets ``error``."""
        self._response.content.set_exception(error)

    def read_now(self) -> bytes:
        """What has come already, without waiting for more. Raises StreamError when the connection broke."""
        try:
            return self._response.content.read_nowait()
        except BROKEN as error:
            raise StreamError(f"the provider's reply broke off: {_cause(error)}") from error

    async def read_some(self) -> bytes:
        """The next bytes as they came; b"" at the end. Raises StreamError when the connection breaks."""
        try:
            return await self._response.content.readany()
        except BROKEN as error:
            raise StreamError(f"the provider's reply broke off: {_cause(error)}") from error

    async def drain(self) -> None:
        """Read what is left, if it comes at once: then the connection can be used again."""
        content = self._response.content
        if content.at_eof():
            return
        with suppress(TimeoutError, StreamError, *BROKEN):
            async with asyncio.timeout(DRAIN_S):
                while not content.at_eof():
                    await content.readany()


class Upstream:
    """Calls one provider. Owns its session and its slots; first come, first served."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._url = provider.completions_url
        self._slots = asyncio.Semaphore(provider.num_concurrent_requests)
        self._open: set[Answer] = set()
        self._interrupted: StreamError | None = None
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if provider.api_key:
            headers["Authorization"] = f"Bearer {provider.api_key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            read_bufsize=READ_CHUNK_BYTES,
        )

    async def close(self) -> None:
        """Give the connections back."""
        await self._session.close()

    @asynccontextmanager
    async def call(self, body: Json) -> AsyncIterator[Answer]:
        """Send one chat request. Raises ProviderError if the provider cannot be reached or refuses it."""
        async with self._slots:
            self._check_interrupted()
            response = await self._send(orjson.dumps(body))
            try:
                self._check_interrupted()
                if response.status >= 300:
                    raise await self._refusal(response)
                answer = Answer(response)
                self._open.add(answer)
                try:
                    yield answer
                finally:
                    self._open.discard(answer)
                await answer.drain()
            finally:
                response.release()

    def interrupt(self, error: StreamError) -> None:
        """Let every open answer break off with ``error``, and every later call."""
        self._interrupted = error
        for answer in self._open:
            answer.interrupt(copy(error))

    def _check_interrupted(self) -> None:
        if self._interrupted is not None:
            raise copy(self._interrupted)

    async def _send(self, body: bytes) -> aiohttp.ClientResponse:
        try:
            return await self._session.post(self._url, data=body, allow_redirects=False)
        except TimeoutError as error:
            raise ProviderError(
                f"{self.provider.place} did not accept a connection in {CONNECT_TIMEOUT_S:g} s",
                status=504,
                failure_class="timeout",
            ) from error
        except OSError as error:
            raise ProviderError(f"{self.provider.place} cannot be reached: {_cause(error)}") from error
        except BROKEN as error:
            raise ProviderError(f"{self.provider.place} did not answer in HTTP: {_cause(error)}") from error

    async def _refusal(self, response: aiohttp.ClientResponse) -> ProviderError:
        if response.status < 400:
            return ProviderError(f"{self.provider.place} redirects elsewhere; name the final base_url")
        try:
            body = await _read_up_to(response.content, MAX_ERROR_BODY_BYTES)
        except BROKEN:
            body = b""
        error = read_error(
            response.status,
            body,
            retry_after=response.headers.get("Retry-After"),
            request_id=self.provider.redact(response.headers.get("x-request-id", "")) or None,
        )
        error.hide(self.provider.redact)
        log.info("provider refused: status=%d class=%s", response.status, error.failure_class)
        return error


async def _read_up_to(content: aiohttp.StreamReader, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    while max_bytes > 0 and (piece := await content.read(max_bytes)):
        pieces.append(piece)
        max_bytes -= len(piece)
    return b"".join(pieces)


def _cause(error: BaseException) -> str:
    return str(error) or type(error).__name__
