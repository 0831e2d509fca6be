"""The id of a request: what the client, the provider and the log call it.

It is the client's own ``x-request-id`` where that is harmless, else the provider's, else a fresh one; the provider's
goes out as ``x-provider-request-id`` as well.
"""

from __future__ import annotations

import re

from aiohttp import web

from gymlet.serve.ids import new_id

HEADER = "x-request-id"
PROVIDER_HEADER = "x-provider-request-id"

_HARMLESS = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_PRINTABLE = re.compile(r"[!-~]{1,256}")
_ID = web.RequestKey("id", str)
_PROVIDER_ID = web.RequestKey("provider_id", str)


def new_request_id() -> str:
    """A fresh id."""
    return new_id("req_")


def request_id(request: web.BaseRequest) -> str:
    """The id of ``request``; once asked for, it stays."""
    known = request.get(_ID)
    if known is None:
        given = request.headers.get(HEADER)
        harmless = given is not None and _HARMLESS.fullmatch(given) is not None
        known = given if given and harmless else request.get(_PROVIDER_ID) or new_request_id()
        request[_ID] = known
    return known


def note_provider_id(request: web.Request, provider_id: str | None) -> None:
    """Remember what the provider called it; to be told before the reply begins."""
    if provider_id is not None and _PRINTABLE.fullmatch(provider_id):
        request[_PROVIDER_ID] = provider_id


def put_ids(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Write the ids into the headers of a response that has not begun."""
    response.headers[HEADER] = request_id(request)
    provider_id = request.get(_PROVIDER_ID)
    if provider_id is not None:
        response.headers[PROVIDER_HEADER] = provider_id
