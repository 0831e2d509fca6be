"""What a model said, in pieces that belong to no protocol.

A reader per provider dialect makes deltas, a splitter sorts answer from reasoning, a writer per door turns them into
events. Nothing here is ever changed after it was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Json = dict[str, Any]
"""A JSON object as it crosses the wire."""

FinishReason = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer; never empty. ``logprobs``: its tokens', as chat completions have them, where asked for."""

    text: str
    logprobs: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the chain of thought; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces of one kind that came at once; none is empty. It says what its pieces say one by one, and costs less."""

    kind: type[Text] | type[Reasoning]
    texts: list[str]

    def pieces(self) -> Iterator[Text | Reasoning]:
        """The deltas that it stands for."""
        return map(self.kind, self.texts)


@dataclass(frozen=True, slots=True)
class ReasoningDetails:
    """Fragments of OpenRouter's reasoning_details as they came: what the provider wants back, not what is shown."""

    fragments: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A piece of a refusal; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call begins. ``index`` counts the calls of one reply from 0, whatever index the provider used.

    ``extra_content`` is what the provider wants back with the call (Gemini's thought signature).
    """

    index: int
    call_id: str
    name: str
    extra_content: Json | None = None


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the JSON arguments of call ``index``; never empty."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Why the model stopped. Usage may still follow; the last one counts."""

    reason: FinishReason


class Usage(NamedTuple):
    """Tokens of one reply. ``output_tokens`` includes the reasoning tokens."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


Delta = Text | Reasoning | Run | ReasoningDetails | Refusal | ToolCall | Arguments | Finish | Usage
