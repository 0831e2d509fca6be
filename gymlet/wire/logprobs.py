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
        return tuple(_token(token, score) for token, score in zip(raw["tokens"], scores, strict=False))
    return tuple(
        {
            **_token(entry["token"], entry["logprob"], entry.get("bytes")),
            "top_logprobs": [_score(top["token"], top["logprob"], top.get("bytes")) for top in _alternatives(entry)],
        }
        for entry in raw.get("content") or ()
    )


def tail(tokens: list[Json], chars: int) -> tuple[Json, ...]:
    """The last tokens, as many as it takes to spell ``chars`` characters."""
    start = len(tokens)
    while start and chars > 0:
        start -= 1
        chars -= len(tokens[start]["token"])
    return tuple(tokens[start:])


def _alternatives(entry: Json) -> list[Json]:
    return entry.get("top_logprobs") or []


def _token(token: str, score: float | None, raw: list[int] | None = None) -> Json:
    return {**_score(token, score, raw), "top_logprobs": []}


def _score(token: str, score: float | None, raw: list[int] | None = None) -> Json:
    return {"token": token, "logprob": score or 0.0, "bytes": list(token.encode()) if raw is None else raw}
