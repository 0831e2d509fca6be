"""Who may come in: who has a key where one is set, no web page that is not named, no request of two meanings."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterator
from hashlib import sha256

from aiohttp import HttpVersion11, hdrs, web

from gymlet.config.problems import Problem
from gymlet.config.schema import HeadServer
from gymlet.serve.failures import UnreadableRequestError
from gymlet.serve.request_ids import HEADER, PROVIDER_HEADER
from gymlet.wire.errors import RequestError

OPEN_PATH = "/health"
KEY_HEADER = "x-api-key"
ANY_ORIGIN = "*"
PREFLIGHT_S = 600

_METHODS = "GET, POST, DELETE"
_EXPOSED = f"{HEADER}, {PROVIDER_HEADER}, retry-after"


class AccessError(RequestError):
    """The client may not come in: it has no key, or the wrong one."""

    status = 401
    type = "authentication_error"


class Gate:
    """The rules of one server."""

    def __init__(self, head: HeadServer) -> None:
        self._digests = tuple(sha256(key.encode()).digest() for key in head.keys)
        self._origins = frozenset(origin.rstrip("/") for origin in head.cors_origins)

    def check(self, request: web.Request) -> None:
        """Raises RequestError (400, 401, 403) for a request that may not come in."""
        headers = request.headers
        if request.version != HttpVersion11 or hdrs.TRANSFER_ENCODING in headers or request.method == hdrs.METH_CONNECT:
            _check_framing(request)
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None:
            self._check_origin(origin)
        if self._digests and request.path != OPEN_PATH and not is_preflight(request):
            self._check_key(request)

    def mark(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Let the page that asked read the response, if it may."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and self._lets_in(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
            response.headers[hdrs.VARY] = hdrs.ORIGIN

    def _lets_in(self, origin: str) -> bool:
        return origin in self._origins or ANY_ORIGIN in self._origins

    def _check_origin(self, origin: str) -> None:
        if not self._lets_in(origin):
            raise RequestError(
                f"web pages of '{origin[:100]}' may not use this server; to let them, list the origin in "
                "head_server.cors_origins",
                status=403,
                code="origin_not_allowed",
                failure_class="agent_error",
            )

    def _check_key(self, request: web.Request) -> None:
        scheme, _, bearer = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given += request.headers.getall(KEY_HEADER, ())
        digests = [sha256(key.encode("utf-8", "surrogateescape")).digest() for key in given if key]
        known = [hmac.compare_digest(digest, ours) for digest in digests for ours in self._digests]
        if not any(known):
            which = "the key is not one of this server's" if digests else "this server wants a key"
            message = f"{which}; send 'Authorization: Bearer <key>' with one of head_server.api_key"
            raise AccessError(message, code="invalid_api_key", failure_class="agent_error")


def check_reach(head: HeadServer) -> Iterator[Problem]:
    """What speaks against listening as configured: others let in without a key, a key that is none."""
    if "" in head.keys or head.api_key == ():
        yield Problem("must not be empty; null lets in whoever reaches the port", key="head_server.api_key")
    elif not head.keys and not head.allow_anonymous and not is_loopback(head.host):
        yield Problem(
            f"is required to listen on {head.host}, where other machines can spend your provider's key: set it in "
            "env.yaml, or say head_server.allow_anonymous=true to let in whoever comes",
            key="head_server.api_key",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_framing(request: web.Request) -> None:
    """Refuse what aiohttp reads in its way and another server on the way here perhaps in another."""
    coding = request.headers.get(hdrs.TRANSFER_ENCODING)
    if request.version < (1, 0):
        raise UnreadableRequestError("the request is of HTTP/0.9; send HTTP/1.1")
    if request.method == hdrs.METH_CONNECT:
        raise UnreadableRequestError("this is no proxy: CONNECT has no meaning here")
    if coding is not None and (request.version < HttpVersion11 or coding.lower() != "chunked"):
        raise UnreadableRequestError(
            f"'Transfer-Encoding: {coding[:100]}' is not read; send 'chunked', or a Content-Length"
        )


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks what a page may ask. It never has a key with it."""
    headers = request.headers
    return (
        request.method == hdrs.METH_OPTIONS and hdrs.ORIGIN in headers and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
    )


async def answer_preflight(request: web.Request) -> web.StreamResponse:
    """The page may ask; its origin has been checked."""
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    headers = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS, hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S)}
    if wanted:
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    return web.Response(status=204, headers=headers)
