"""The bytes of answers: good ones, which a client can tell to be its own, and errors."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

Json = dict[str, Any]

CHUNKS = 5
REASONS = {
    200: "OK",
    302: "Found",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    503: "Service Unavailable",
}
CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "model_not_found",
    429: "rate_limit_exceeded",
    503: "overloaded",
}


def answer_text(message: str, chunks: int = CHUNKS) -> str:
    """What a good answer of so many chunks to ``message`` says: its hash, and numbers that show whether it is whole."""
    return "".join(answer_pieces(message, chunks))


def answer_pieces(message: str, chunks: int = CHUNKS) -> list[str]:
    """The same, as it is streamed."""
    return [f"echo {hashlib.sha1(message.encode()).hexdigest()}", *(f" {number}" for number in range(1, chunks))]  # noqa: S324


def stream_events(message: str, chunks: int = CHUNKS) -> list[bytes]:
    """The events of a streamed answer, the last two its finish and [DONE]."""
    deltas = [content_event(piece) for piece in answer_pieces(message, chunks)]
    usage = {"prompt_tokens": 7, "completion_tokens": chunks, "total_tokens": 7 + chunks}
    finish = _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage})
    return [*deltas, finish, b"data: [DONE]\n\n"]


def content_event(text: str) -> bytes:
    """One chunk of a stream that says ``text``."""
    return _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def whole_body(message: str, chunks: int = CHUNKS) -> bytes:
    """A whole answer."""
    said = {"role": "assistant", "content": answer_text(message, chunks)}
    usage = {"prompt_tokens": 7, "completion_tokens": chunks, "total_tokens": 7 + chunks}
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    return orjson.dumps({**_TOP, "object": "chat.completion", "choices": [choice], "usage": usage})


def error_body(status: int, words: str, code: str | None = None) -> bytes:
    """An error as most providers write it."""
    kind = code or CODES.get(status, "server_error")
    return orjson.dumps({"error": {"message": words, "type": kind, "code": kind}})


def head(status: int, content_type: str, length: int | None, headers: dict[str, str] | None = None) -> bytes:
    """A reply's head; without a length its body is chunked."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = [
        f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}",
        f"Content-Type: {content_type}",
        framing,
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _event(fields: Json) -> bytes:
    return b"data: " + orjson.dumps({**_TOP, "object": "chat.completion.chunk", **fields}) + b"\n\n"


_TOP: Json = {"id": "chatcmpl-hostile", "created": 1, "model": "hostile"}
