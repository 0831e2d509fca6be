"""What went wrong, in the provider's own words, out of the many shapes that providers put errors into."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html import unescape

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import FailureClass, ProviderError, StreamError

CONTEXT_OVERFLOW = (
    "context_length_exceeded",
    "exceed_context_size",
    "maximum context length",
    "context length exceeded",
    "exceeds the context",
    "exceed the context",
    "context window",
    "prompt is too long",
    "too many tokens",
)
"""How providers say that the prompt is too long; clients look for the code ``context_length_exceeded``."""

MAX_PAGE_CHARS = 10_000
MAX_DEPTH, MAX_ENTRIES = 8, 20
"""How far down, and how far along, the words are looked for."""

_PAGE = re.compile(r"\s*<(!doctype|html|head|body|!--|\?xml)", re.IGNORECASE)
_MARKUP = re.compile(r"<(script|style)\b.*?(</\1\s*>|\Z)|<!--.*?(-->|\Z)|<[^>]*(>|\Z)", re.IGNORECASE | re.DOTALL)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "too_many_requests",
}


def read_error(
    status: int,
    body: bytes,
    *,
    retry_after: str | None = None,
    wait_s: float | None = None,
    request_id: str | None = None,
) -> ProviderError:
    """The error behind a reply with ``status`` >= 400, keeping the provider's status, code and words.

    ``wait_s`` is what it asks to wait; where only that is known, ``Retry-After`` says it to the client.
    """
    payload = _parse(body)
    message = error_message(payload) or f"HTTP {status} without a message"
    code = _find_code(payload)
    kind, code, status = _classify(status, code, message)
    if retry_after is None and wait_s is not None:
        retry_after = str(math.ceil(wait_s))
    return ProviderError(
        f"the provider answered {status}: {message}",
        status=status,
        code=code,
        error_type=_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        failure_class=kind,
        retry_after=retry_after,
        wait_s=wait_s,
        request_id=request_id,
        transient=passes(status) and kind != "provider_quota_exhausted",
    )


def passes(status: int) -> bool:
    """Whether what the status tells may be over at another attempt."""
    return status in (408, 409, 425, 429) or status >= 500


def error_in_reply(payload: Json) -> StreamError:
    """The error that a provider puts into a reply with a good status; a number as its code is the status it means."""
    message = error_message(payload) or "the provider sent an error"
    error = payload.get("error")
    given = error.get("code") if isinstance(error, dict) else None
    code = None if given is None else str(given)
    number = int(code) if code is not None and code.isdecimal() and len(code) == 3 else 0
    if not 400 <= number < 600:
        return StreamError(message, code=code)
    kind, code, status = _classify(number, code, message)
    transient = passes(status) and kind != "provider_quota_exhausted"
    return StreamError(message, status=status, code=code, failure_class=kind, transient=transient)


def error_message(payload: object) -> str:
    """The most telling words in an error of any shape, not cut yet; "" if there are none."""
    for candidate in _candidates(payload):
        text = " ".join(plain_text(str(candidate)).split())
        if text:
            return text
    return ""


def plain_text(text: str) -> str:
    """The words of a page, where the text is one; other text as it is."""
    if not _PAGE.match(text):
        return text
    return unescape(_MARKUP.sub(" ", text[:MAX_PAGE_CHARS]))


def _candidates(payload: object, depth: int = 0) -> Iterator[object]:
    """The places where providers put their words, the most telling first."""
    if depth > MAX_DEPTH:
        return
    if isinstance(payload, list):
        for entry in payload[:MAX_ENTRIES]:
            yield from _candidates(entry, depth + 1)
    elif isinstance(payload, str):
        yield payload
    elif isinstance(payload, dict):
        metadata = payload.get("metadata")
        if isinstance(metadata, dict) and metadata.get("raw"):
            yield from _candidates(_parse_text(metadata["raw"]), depth + 1)
        if isinstance(payload.get("loc"), list | tuple) and payload.get("msg"):
            yield f"{'.'.join(map(str, payload['loc']))}: {payload['msg']}"
        for key in ("error", "base_resp", "message", "detail", "msg", "status_msg"):
            if payload.get(key):
                yield from _candidates(payload[key], depth + 1)


def _find_code(payload: object) -> str | None:
    error = payload[0] if isinstance(payload, list) and payload else payload
    nested = error.get("error") if isinstance(error, dict) else None
    for holder in (nested, error):
        if isinstance(holder, dict):
            code = holder.get("code") or holder.get("type")
            if isinstance(code, str):
                return code
    return None


def _classify(status: int, code: str | None, message: str) -> tuple[FailureClass, str | None, int]:
    words = f"{code or ''} {message}".lower()
    if status < 500 and status != 429 and any(phrase in words for phrase in CONTEXT_OVERFLOW):
        return "provider_rejected", "context_length_exceeded", 400
    if status == 429:
        spent = "insufficient_quota" in words or "quota" in (code or "")
        return ("provider_quota_exhausted" if spent else "provider_rate_limited"), code, status
    return ("provider_rejected" if status < 500 else "provider_unavailable"), code, status


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")


def _parse_text(text: object) -> object:
    return _parse(text.encode()) if isinstance(text, str) else text
