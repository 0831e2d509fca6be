"""What became of one request: how gymlet's reply ended, and what it said."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import orjson

Json = dict[str, Any]
End = Literal["completed", "refused", "failed", "broken"]
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


class Outcome(NamedTuple):
    """``completed``: a whole answer. ``refused``: an HTTP status. ``failed``: an error in band, after what was said.

    ``broken``: none of these, which must not happen; ``words`` says what is wrong.
    """

    end: End
    status: int
    text: str = ""
    code: str = ""
    words: str = ""


def ask(door: str, message: str, *, stream: bool, **more: object) -> Json:
    """The body of one request through a door."""
    said = {"input": message} if door == RESPONSES else {"messages": [{"role": "user", "content": message}]}
    return {**said, "stream": stream, **more}


def read_outcome(door: str, status: int, body: bytes, *, stream: bool) -> Outcome:
    """The outcome of a request to ``door``; any shape that is not documented is ``broken``."""
    try:
        if status != 200:
            return _refusal(status, orjson.loads(body)["error"])
        if not stream:
            return _WHOLE[door](orjson.loads(body))
        if not body.endswith(DONE):
            return Outcome("broken", status, words=f"the stream does not end with [DONE]: …{body[-100:]!r}")
        return _STREAMED[door](_events(body))
    except (orjson.JSONDecodeError, LookupError, TypeError) as error:
        return Outcome("broken", status, words=f"{error!r} in {body[:200]!r}")


def _refusal(status: int, error: Json) -> Outcome:
    return Outcome("refused", status, code=str(error["code"] or error["type"]), words=error["message"])


def _failure(text: str, error: Json) -> Outcome:
    return Outcome("failed", 200, text, str(error["code"] or error.get("type")), error["message"])


def _broken(text: str, words: str) -> Outcome:
    return Outcome("broken", 200, text, words=words)


def _whole_response(response: Json) -> Outcome:
    if response["status"] != "completed":
        return _broken(_output_text(response), f"status {response['status']} in a whole reply")
    return Outcome("completed", 200, _output_text(response))


def _whole_completion(completion: Json) -> Outcome:
    (choice,) = completion["choices"]
    if choice["finish_reason"] != "stop":
        return _broken(choice["message"]["content"], f"finish_reason {choice['finish_reason']}")
    return Outcome("completed", 200, choice["message"]["content"])


def _streamed_response(events: list[Json]) -> Outcome:
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    last = events[-1]
    text = _output_text(last["response"])
    if said != text:
        return _broken(text, f"the deltas say {said!r}")
    if last["type"] == "response.failed":
        return _failure(text, last["response"]["error"])
    if last["type"] != "response.completed":
        return _broken(text, f"ends with {last['type']}")
    return Outcome("completed", 200, text)


def _streamed_completion(chunks: list[Json]) -> Outcome:
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    if "error" in chunks[-1]:
        return _failure(text, chunks[-1]["error"])
    if choices[-1]["finish_reason"] != "stop":
        return _broken(text, f"finish_reason {choices[-1]['finish_reason']}")
    return Outcome("completed", 200, text)


def _output_text(response: Json) -> str:
    parts = [part for item in response["output"] for part in item.get("content") or ()]
    return "".join(part.get("text", "") for part in parts)


def _events(body: bytes) -> list[Json]:
    lines = (line for line in body.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]")
    return [orjson.loads(line[6:]) for line in lines]


_WHOLE = {RESPONSES: _whole_response, CHAT: _whole_completion}
_STREAMED = {RESPONSES: _streamed_response, CHAT: _streamed_completion}
