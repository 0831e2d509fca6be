"""Where connections come in: sockets, what a request's head may be, and by when its bytes must have come.

aiohttp reads the requests, strictly. What it has not are deadlines for a head or a body that comes drop by drop, and
refusals that a client can read: it answers a bad head in plain text, with a traceback in the log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, InvalidHeader, InvalidURLError, LineTooLong
from aiohttp.streams import StreamReader

from gymlet.config.schema import HeadServer
from gymlet.serve.deadlines import Deadlines
from gymlet.serve.failures import UnreadableRequestError, error_body, http_error, to_response
from gymlet.serve.request_ids import HEADER, new_request_id, put_ids
from gymlet.wire.errors import RequestError

log = logging.getLogger(__name__)

BACKLOG = 65535
"""Connections that wait to be accepted; the system cuts it to what it allows (net.core.somaxconn)."""

ACCEPTED_A_TURN = 16
"""uvloop accepts one connection of a socket in a turn of the loop, and a busy turn takes a hundredth of a second."""

KEEP_ALIVE_S = 75.0
TAKE_S = 900.0
"""For so long a client may take nothing of what is ready for it; one that is gone without a word is given as long."""

MAX_LINE_BYTES = 8190
MAX_HEADERS = 128
BODY_TIMEOUTS = 10
"""So many ``body_timeout_s`` may a whole body take."""

_OF_STRANGERS = (UnreadableRequestError, web.RequestPayloadError, HttpProcessingError)
TOO_MANY_HEADERS = "Too many headers received"


class Connection(web.RequestHandler):
    """One connection. Owns what it waits for: a head, a body, or nothing."""

    __slots__ = ("_body", "_body_until", "_door", "_heard")

    def __init__(self, server: web.Server, door: Door, **options: Any) -> None:
        super().__init__(server, **options)
        self._door = door
        self._heard = False
        self._body: StreamReader | None = None
        self._body_until = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first head is due."""
        super().connection_made(transport)
        self._door.heads.begin(self)
        sock = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux; elsewhere it waits as long as the system does
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(TAKE_S * 1000))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is due any more."""
        self._door.heads.end(self)
        self._door.bodies.end(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came: the rest of a head, of a body, or the beginning of the next head."""
        heads = self._request_count
        super().data_received(data)
        if self._request_count != heads:
            self._head_came()
        elif self._body is not None:
            self._body_came()
        elif data and self._current_request is None:
            self._heard = True
            if self not in self._door.heads:
                self._door.heads.begin(self)

    def head_overdue(self) -> None:
        """Close; who sent the half of a head is told why."""
        if self._current_request is not None or self._messages:
            return
        if self._heard and self.transport is not None:
            timeout_s = self._door.heads.timeout_s
            self.transport.write(
                _raw(UnreadableRequestError(f"the head of the request did not come in {timeout_s:g} s", status=408))
            )
        self.force_close()

    def body_overdue(self) -> None:
        """Have the request answered with 408, unless it is we who do not read."""
        if self._reading_paused or self._buffer_paused:
            self._door.bodies.begin(self)
        else:
            timeout_s = self._door.bodies.timeout_s
            self._end_body(UnreadableRequestError(f"no more of the body came for {timeout_s:g} s", status=408))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A refused head as JSON; the log is not the place for what strangers send."""
        if not isinstance(exc, HttpProcessingError | UnicodeEncodeError | ConnectionError):
            return super().handle_error(request, status, exc, message)
        error = _refused_head(exc)
        log.debug("refused a request: %s", error.message)
        response = to_response(error)
        put_ids(request, response)
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Not what strangers send: aiohttp reads on in the body of a request that was answered, and meets it there."""
        if not isinstance(kwargs.get("exc_info"), _OF_STRANGERS):
            super().log_exception(*args, **kwargs)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As JSON also what aiohttp refuses before any of our code is asked, such as an unknown Expect."""
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = http_error(request, resp)
        return await super().finish_response(request, resp, start_time)

    def _head_came(self) -> None:
        self._heard = False
        self._door.heads.end(self)
        if self._body is not None and not self._body.is_eof():  # then it was no head, but what cannot be read
            self._end_body(UnreadableRequestError("the body cannot be read: its chunks are not what they say"))
            return
        payload = self._messages[-1][1] if self._messages else None
        self._body = None if payload is None or payload.is_eof() else payload
        if self._body is None:
            self._door.bodies.end(self)
        else:
            self._body_until = self._loop.time() + BODY_TIMEOUTS * self._door.bodies.timeout_s
            self._door.bodies.begin(self)

    def _body_came(self) -> None:
        assert self._body is not None  # noqa: S101  by the caller
        if self._body.is_eof() or self._body.exception() is not None:
            self._body = None
            self._door.bodies.end(self)
        elif self._loop.time() < self._body_until:
            self._door.bodies.begin(self)
        else:
            total_s = BODY_TIMEOUTS * self._door.bodies.timeout_s
            self._end_body(UnreadableRequestError(f"the body did not come in {total_s:g} s", status=408))

    def _end_body(self, error: UnreadableRequestError) -> None:
        """Whoever reads the body meets ``error``; after the answer the connection is closed."""
        self._door.bodies.end(self)
        if self._body is not None:
            self._body.set_exception(error)
        self._body = None
        self.close()


class Door:
    """Listens, and makes a Connection of whoever comes. Owns the deadlines of them all."""

    def __init__(self, server: web.Server, head: HeadServer) -> None:
        self._web_server = server
        self._loop = asyncio.get_running_loop()
        self._listening: list[tuple[asyncio.Server, socket.socket]] = []
        self.heads: Deadlines[Connection] = Deadlines(head.header_timeout_s, Connection.head_overdue)
        self.bodies: Deadlines[Connection] = Deadlines(head.body_timeout_s, Connection.body_overdue)

    async def open(self, sock: socket.socket) -> None:
        """Accept what comes to ``sock``. Its doubles are the same place to listen, and each is asked once a turn."""
        for each in (sock, *(sock.dup() for _ in range(ACCEPTED_A_TURN - 1))):
            server = await self._loop.create_server(self._connection, sock=each, backlog=BACKLOG)
            self._listening.append((server, each))

    def close(self) -> None:
        """Accept nothing more; the connections there are stay."""
        for server, sock in self._listening:
            server.close()
            sock.close()
        self._listening.clear()

    def stop(self) -> None:
        """Close, and forget what is due."""
        self.close()
        self.heads.stop()
        self.bodies.stop()

    def _connection(self) -> Connection:
        return Connection(
            self._web_server,
            self,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )


@asynccontextmanager
async def open_door(
    app: web.Application, socks: Iterable[socket.socket], head: HeadServer, *, linger_s: float = 1.0
) -> AsyncIterator[Door]:
    """Serve ``app`` on listening sockets; at the end handlers that still run have ``linger_s`` until cancelled."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=linger_s)
    await runner.setup()
    assert runner.server is not None  # noqa: S101  setup made it
    door = Door(runner.server, head)
    try:
        for sock in socks:
            await door.open(sock)
        yield door
    finally:
        door.stop()
        await runner.cleanup()


def listen(host: str, port: int, *, together: bool = False) -> socket.socket:
    """A listening socket; ``together``: others may listen there too, and the system divides who comes among them.

    Raises RequestError when the address is taken or is none.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=together)
    except OSError as error:
        raise RequestError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            f"stop what is there, or choose another port: +head_server.port={port + 1 if port < 65535 else port - 1}",
            param="head_server.port",
        ) from error


def listen_often(host: str, port: int, count: int) -> list[socket.socket]:
    """``count`` listening sockets on one port that nobody else listens on. Raises RequestError."""
    if count == 1:
        return [listen(host, port)]
    with listen(host, port) as alone:  # two servers that both listen together would share a port unawares
        port = alone.getsockname()[1]
    return [listen(host, port, together=True) for _ in range(count)]


def _refused_head(error: HttpProcessingError | UnicodeEncodeError | ConnectionError) -> UnreadableRequestError:
    if isinstance(error, ConnectionError):  # met by aiohttp when it answers an Expect
        return UnreadableRequestError("the client has left")
    if isinstance(error, UnicodeEncodeError):  # of an unknown Expect, which aiohttp wants to repeat
        return UnreadableRequestError("the request cannot be read: a header is no text")
    if isinstance(error, LineTooLong):
        return UnreadableRequestError(
            f"the request line, or a header, has more than {MAX_LINE_BYTES} bytes", status=431
        )
    if error.message == TOO_MANY_HEADERS:
        return UnreadableRequestError(f"the request has more than {MAX_HEADERS} headers", status=431)
    if isinstance(error, InvalidHeader | InvalidURLError):  # whose messages repeat what was sent
        return UnreadableRequestError("the request cannot be read: a header, or the URL, is invalid")
    words = error.message.partition("\n\n")[0].replace("\n ", "").removesuffix(":")
    return UnreadableRequestError(f"the request cannot be read: {words}")


def _raw(error: UnreadableRequestError) -> bytes:
    """The reply to a request that never came to be one."""
    body = orjson.dumps(error_body(error))
    lines = (
        f"HTTP/1.1 {error.status} Request Timeout",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        f"{HEADER}: {new_request_id()}",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body
