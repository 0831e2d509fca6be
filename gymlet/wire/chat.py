"""Chat completions, as providers really send them, read into deltas.

Every provider's field names live here and nowhere else. The reader takes chunks and whole bodies alike. What may change
until the end (usage, the finish reason: some send them on every chunk, some repeat or move them) is kept and given out
by ``close``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gymlet.wire.calls import Calls
from gymlet.wire.deltas import (
    Delta,
    Finish,
    FinishReason,
    Json,
    Reasoning,
    ReasoningDetails,
    Refusal,
    Text,
    Usage,
)
from gymlet.wire.errors import StreamError
from gymlet.wire.fields import NUMBER
from gymlet.wire.logprobs import read_logprobs
from gymlet.wire.provider_errors import error_in_reply, error_message
from gymlet.wire.reasoning import TAGS

REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_text")
"""In order of trust; a provider that sends two of them sends the same text twice."""

CACHED_FIELDS = ("cached_input_tokens", "prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens")
"""Where the tokens of the prompt that were cached stand, if not in its details."""

FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "MAX_TOKENS": "length",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "BLOCKLIST": "content_filter",
    "SPII": "content_filter",
}
"""Whatever is listed neither here nor below (stop, tool_calls, eos, eos_token, end_turn, …) is a regular end."""

FAILURES = {
    "error",
    "insufficient_system_resource",
    "network_error",
    "abort",
    "cancelled",
    "timeout",
    "MALFORMED_FUNCTION_CALL",
}
"""Finish reasons that say that the model did not finish."""

MAX_COUNT = 1 << 53
"""No reply has so many tokens; JSON in other languages counts no further."""


class ChatReader:
    """Feed parsed chunks, get deltas. Owns the calls seen so far, the last usage and the last finish reason.

    ``new_id(prefix)`` mints the ids of calls that the provider left without one. ``failure`` is the error that the
    provider put into the stream, once it has.
    """

    def __init__(self, new_id: Callable[[str], str], *, completion_excludes_reasoning: bool = False) -> None:
        self._calls = Calls(new_id)
        self._excludes_reasoning = completion_excludes_reasoning
        self._fields = _ReasoningFields()
        self._usage: Json | None = None
        self._finish: str | None = None
        self._choices = False
        self.failure: StreamError | None = None

    def feed(self, chunk: Json) -> list[Delta]:
        """The deltas of one chunk; an error in it becomes the ``failure``."""
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        elif "x_groq" in chunk and (chunk["x_groq"] or {}).get("usage"):
            self._usage = chunk["x_groq"]["usage"]
        if "error" in chunk or "base_resp" in chunk:
            self._check(chunk)
        choices = chunk.get("choices")
        if not choices:
            return []
        self._choices = True
        choice = choices[0]
        if len(choices) > 1 or choice.get("index"):
            choice = _first_choice(choices)
        if choice.get("finish_reason") or choice.get("usage"):
            self._read_end(choice)
        delta = choice.get("delta")
        whole = delta is None
        message = choice.get("message") if whole else delta
        if not message:
            return []
        deltas = self._read(message, whole=whole)
        return _with_logprobs(deltas, choice["logprobs"]) if choice.get("logprobs") else deltas

    def close(self, *, done: bool, whole: bool = False) -> tuple[Finish, Usage | None]:
        """Finish and usage, at the end: ``done`` if a stream ended with ``[DONE]``, ``whole`` if it was no stream.

        It is a failure if the model never said that it had finished, and the reply may have been cut.
        """
        if whole and not self._choices:
            self._fail("the provider's reply has no choices")
        elif self._finish is None and not whole and not (done and self._calls.whole()):
            message = "the provider's stream ended before the model had finished (no finish_reason)"
            self._fail(message, transient=True)
        elif self._calls.nameless():
            self._fail("the provider sent a tool call without a name")
        finish = Finish(FINISH_REASONS.get(self._finish or "", "stop"))
        if self._usage is None:
            return finish, None
        return finish, read_usage(self._usage, excludes_reasoning=self._excludes_reasoning)

    @property
    def tokens(self) -> int | None:
        """How many tokens the provider has counted, prompt and reply together."""
        total = self._usage.get("total_tokens") if isinstance(self._usage, dict) else None
        return total if isinstance(total, int) and not isinstance(total, bool) else None

    @property
    def steady(self) -> bool:
        """Whether a reasoning field can be read without knowing what came before."""
        return self._fields.steady

    def _read_end(self, choice: Json) -> None:
        if choice.get("usage"):
            self._usage = choice["usage"]
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and finish:
            self._finish = finish
        if self._finish in FAILURES or choice.get("error"):
            self._fail(error_message(choice) or f"the provider ended the reply with an error (finish_reason {finish})")

    def _check(self, chunk: Json) -> None:
        error = chunk.get("error")
        if not error and not (chunk.get("base_resp") or {}).get("status_code"):
            return
        if FINISH_REASONS.get(self._finish or "") == "length":
            return  # the token limit, told a second time
        self.failure = self.failure or error_in_reply(chunk)

    def _fail(self, message: str, *, transient: bool = False) -> None:
        self.failure = self.failure or StreamError(message, transient=transient)

    def _read(self, message: Json, *, whole: bool) -> list[Delta]:
        content = message.get("content")
        said: list[Delta] = []
        if content:
            said = [Text(content)] if isinstance(content, str) else [*_read_parts(content)]
        thinking = self._fields.read(message, said, whole=whole)
        deltas = [*thinking, *(delta for delta in said if not isinstance(delta, Reasoning))] if thinking else said
        refusal = message.get("refusal")
        if refusal and isinstance(refusal, str):
            deltas.append(Refusal(refusal))
        calls = message.get("tool_calls")
        if calls:
            deltas += self._calls.read(calls, whole=whole)
        return deltas


class _ReasoningFields:
    """Reasoning in a field of its own. Owns what it takes to tell a repetition from something new.

    Some providers send in each chunk all that was thought so far: a second chunk that begins with the whole first one
    shows it. Some send the same text in tags as well: then the tags are read, and the field is not.
    """

    MIN_SNAPSHOT_CHARS = 8

    def __init__(self) -> None:
        self._said = ""
        self._cumulative: bool | None = None
        self._plain = False
        self._tagged = False

    @property
    def steady(self) -> bool:
        return self._cumulative is False

    def read(self, message: Json, content: list[Delta], *, whole: bool) -> list[Delta]:
        """The reasoning that stands beside this content; where the content says it too, there is none here."""
        found = _reasoning_in(message)
        details = message.get("reasoning_details")
        if not found and not details:
            return []
        if found and not self._plain and _in_tags(found, content, whole=whole):
            self._tagged = True
        self._plain = self._plain or bool(found)
        fragments = tuple(entry for entry in details or () if isinstance(entry, dict))
        shown = found
        if not self._plain:
            shown = "".join(str(entry.get("text") or entry.get("summary") or "") for entry in fragments)
        said: list[Delta] = [delta for delta in content if isinstance(delta, Reasoning)]
        if not said and shown and not self._tagged:
            new = self._new(shown)
            said = [Reasoning(new)] if new else []
            fragments = tuple({**entry, "text": new} if entry.get("text") == shown else entry for entry in fragments)
        return [*said, ReasoningDetails(fragments)] if fragments else said

    def _new(self, text: str) -> str:
        """What of ``text`` was not said before."""
        if self._cumulative is False:
            return text
        said, self._said = self._said, text
        if not said:
            return text
        if len(said) >= self.MIN_SNAPSHOT_CHARS and len(text) > len(said) and text.startswith(said):
            self._cumulative = True
            return text[len(said) :]
        if self._cumulative and text == said:
            return ""
        self._cumulative = False
        return text


def _reasoning_in(message: Json) -> str:
    for name in REASONING_FIELDS:
        text = message.get(name)
        if text and isinstance(text, str):
            return text
    return ""


def _in_tags(reasoning: str, content: list[Delta], *, whole: bool) -> bool:
    """Whether the content opens a block, and says in it what the reasoning says; either may be ahead in a stream."""
    start = content[0].text.lstrip() if content and isinstance(content[0], Text) else ""
    for tag in TAGS:
        if start.startswith(tag):
            inside, outside = start[len(tag) :].lstrip(), reasoning.lstrip()
            return inside.startswith(outside) or (not whole and outside.startswith(inside))
    return False


def _first_choice(choices: list[Json]) -> Json:
    return next((choice for choice in choices if not choice.get("index")), {})


def _with_logprobs(deltas: list[Delta], logprobs: Json) -> list[Delta]:
    """The log probabilities at the text that they belong to; a chunk has one."""
    tokens = read_logprobs(logprobs)
    return [Text(delta.text, tokens) if isinstance(delta, Text) else delta for delta in deltas]


def _read_parts(parts: Iterable[Json]) -> Iterator[Delta]:
    for part in parts:
        if part.get("type") == "thinking":
            text = "".join(inner.get("text", "") for inner in part.get("thinking", ()))
            kind: type[Text | Reasoning] = Reasoning
        else:
            text, kind = part.get("text") or "", Text
        if text and isinstance(text, str):
            yield kind(text)


def read_usage(raw: Json, *, excludes_reasoning: bool = False) -> Usage:
    """Token counts under whatever names the provider has for them.

    Output is ``completion_tokens``, except where the total is larger than prompt + completion: then reasoning was left
    out of it (xAI, Gemini), and output is total - prompt. Reasoning beyond the output is an upstream slip: clamped;
    unless the provider leaves reasoning out of both (``excludes_reasoning``): then it is added to both.
    """
    prompt, completion = _count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens"))
    total = _count(raw.get("total_tokens")) or prompt + completion
    output = max(completion, total - prompt)
    prompt_details = raw.get("prompt_tokens_details") or {}
    output_details = raw.get("completion_tokens_details") or {}
    reasoning = _count(output_details.get("reasoning_tokens")) or _count(raw.get("reasoning_output_tokens"))
    if excludes_reasoning and total == prompt + completion:
        output, total = output + reasoning, total + reasoning
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        total_tokens=total,
        cached_tokens=_count(prompt_details.get("cached_tokens")) or _cached_beside(raw),
        cache_write_tokens=_count(prompt_details.get("cache_write_tokens")),
        reasoning_tokens=min(output, reasoning),
    )


def _cached_beside(raw: Json) -> int:
    return next((count for name in CACHED_FIELDS if name in raw and (count := _count(raw[name]))), 0)


def _count(value: object) -> int:
    return int(value) if isinstance(value, NUMBER) and 0 < value < MAX_COUNT else 0
