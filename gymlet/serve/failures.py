"""From an error to a status and a body: the only place where this is decided."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gymlet.serve.request_ids import note_provider_id, request_id
from gymlet.wire.deltas import Json
from gymlet.wire.errors import GymletError, ProviderError, RequestError

log = logging.getLogger(__name__)

FAILURE_CLASS_HEADER = "x-gymlet-failure-class"
"""Tells a collector that calls over HTTP under which name to file a failed rollout."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADER_VALUE = re.compile(r"[ -~]{1,128}")
_HTTP_CODES = {404: ("not_found", "not_found"), 413: ("invalid_request_error", "request_too_large")}


class UnreadableRequestError(RequestError):
    """Nobody knows where the request ends, or whether: the connection is closed behind the answer."""


def to_response(error: GymletError) -> web.Response:
    """The reply for an error that happened before the first byte."""
    headers: dict[str, str] = {FAILURE_CLASS_HEADER: error.failure_class}
    retry_after: str | None = getattr(error, "retry_after", None)
    if retry_after is not None and _HEADER_VALUE.fullmatch(retry_after):
        headers["Retry-After"] = retry_after
    response = json_response(error_body(error), status=error.status, headers=headers)
    if isinstance(error, UnreadableRequestError):
        response.force_close()
    return response


def error_body(error: GymletError) -> Json:
    """The JSON of an error, as OpenAI's clients read it."""
    return _error(error.message, error.type, error.param, error.code)


def _error(message: str, kind: str, param: str | None, code: str | None) -> Json:
    """What a header said may be part of the message, and need not be UTF-8."""
    message = message.encode("utf-8", "replace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def json_response(payload: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """``payload`` as a JSON reply; bytes are JSON already."""
    body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json", charset="utf-8")


@web.middleware
async def failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error with JSON; what nobody expected is logged, and told without its details."""
    try:
        _check_size(request)
        return await handler(request)
    except GymletError as error:
        if isinstance(error, ProviderError):
            note_provider_id(request, error.request_id)
        return to_response(error)
    except (web.RequestPayloadError, HttpProcessingError) as error:
        return to_response(UnreadableRequestError(f"the body cannot be read: {error}"))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return http_error(request, error)
    except Exception:
        log.exception("unexpected error: %s %s (%s)", request.method, request.rel_url.raw_path, request_id(request))
        return to_response(GymletError("internal error; the server's log has the details"))


def _check_size(request: web.Request) -> None:
    """Refuse a body that says it is too large before any of it is read."""
    size, most = request.content_length or 0, request.client_max_size
    if size > most:
        raise RequestError(f"the body has {size} bytes; the most is {most}", status=413, code="request_too_large")


def http_error(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """What aiohttp has to say, as JSON."""
    kind, code = _HTTP_CODES.get(error.status, ("invalid_request_error", None))
    message = f"{request.method} {request.rel_url.raw_path}: {error.reason}"
    headers = {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    return json_response(_error(message, kind, None, code), status=error.status, headers=headers)
