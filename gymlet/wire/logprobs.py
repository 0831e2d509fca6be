"""Log probabilities of tokens: asked for, read in the shapes that providers have, and kept with the answer's text."""

from __future__ import annotations

from gymlet.wire.deltas import Json

INCLUDE = "message.output_text.logprobs"
"""What a Responses client includes that wants them."""


def ask_for_logprobs(request: Json) -> Json:
    """The chat parameters for a checked Responses request."""
    top = request.get("top_logprobs")
    if top:
        return {"logprobs": True, "top_logprobs": top}
    return {"logprobs": True} if INCLUDE in (request.get("include") or ()) else {}


def read_logprobs(raw: Json) -> tuple[Json, ...]:
    """A choice's ``logprobs`` as OpenAI has them: OpenAI's own form, or the parallel lists of older servers."""
    if isinstance(raw.get("tokens"), list):
        scores = raw.get("token_logprobs") or []
        pairs = zip(raw["tokens"], scores, strict=False)
        return tuple({**_score({"token": token, "logprob": score}), "top_logprobs": []} for token, score in pairs)
    return tuple(
        {
            **_score(entry),
            "top_logprobs": [_score(top) for top in entry.get("top_logprobs") or ()],
        }
        for entry in raw.get("content") or ()
    )


def tail(tokens: list[Json], text: str) -> tuple[Json, ...]:
    """The last tokens, as many as it takes to spell ``text``; a character may be made of several."""
    start, size = len(tokens), len(text.encode())
    while start and size > 0:
        start -= 1
        size -= len(tokens[start]["bytes"])
    return tuple(tokens[start:])


def _score(entry: Json) -> Json:
    token, score, raw = entry["token"], entry.get("logprob"), entry.get("bytes")
    if not isinstance(token, str):
        raise TypeError(token)
    known = isinstance(raw, list) and all(isinstance(byte, int) for byte in raw)
    return {
        "token": token,
        "logprob": score if isinstance(score, int | float) else 0.0,
        "bytes": raw if known else list(token.encode()),
    }
