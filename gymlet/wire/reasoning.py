"""Splitters: what is answer, what is reasoning.

A dialect without tags needs none: its reasoning has a field of its own, and the reader already told it apart. With
tags, the answer's text begins with ``<think>…</think>``, and no tag may be assumed to arrive whole: a splitter holds
back what may still become a tag, and not one character more. Its three states:

    START      only white space so far; the beginning of an opening tag is held  white space given out as Text
    REASONING  inside the block; the beginning of a closing tag is held          given out as Reasoning
    ANSWER     everything else; tags are literal text here                       given out as it comes

A block opens only at the start of the answer, or after a tool call; the first closing tag ends it; once a stream has
shown reasoning in a field, its text is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from gymlet.wire.deltas import Arguments, Delta, Reasoning, Text, ToolCall

TAGS = {
    "<think>": "</think>",
    "<thought>": "</thought>",
    "<thinking>": "</thinking>",
    "◁think▷": "◁/think▷",
}


class Splitter(Protocol):
    """What every splitter does: ``feed`` gives out what is certain, ``close`` what was held back."""

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """The deltas that are certain once these are known."""
        ...

    def close(self) -> Iterable[Delta]:
        """The rest, at the end of the stream."""
        ...


class Plain:
    """No parsing: content passes untouched, a separate reasoning field is not read (as NeMo Gym without its parser)."""

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """Everything but reasoning."""
        return [delta for delta in deltas if type(delta) is not Reasoning]

    def close(self) -> Iterable[Delta]:
        """Nothing is ever held."""
        return ()


class Verbatim:
    """Everything as it came."""

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """The deltas themselves."""
        return deltas

    def close(self) -> Iterable[Delta]:
        """Nothing is ever held."""
        return ()


class Tagged:
    """Reasoning in a field of its own, or between tags at the start of the text. Owns the held text."""

    def __init__(self) -> None:
        self._state: Literal["start", "reasoning", "answer"] = "start"
        self._held = ""
        self._closing = ""

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """Sort deltas; text may wait until it is known not to be a tag."""
        sorted_: list[Delta] = []
        for delta in deltas:
            kind = type(delta)
            if kind is Text:
                if self._state == "answer":
                    sorted_.append(delta)
                else:
                    sorted_ += self._text(delta.text)  # type: ignore[union-attr]
            elif kind is Arguments:
                sorted_.append(delta)
            else:
                sorted_ += self._settle("start" if kind is ToolCall else "answer")
                sorted_.append(delta)
        return sorted_

    def close(self) -> Iterable[Delta]:
        """Let go of the held text: it was no tag."""
        return self._settle(self._state)

    def _settle(self, state: Literal["start", "reasoning", "answer"]) -> tuple[Delta, ...]:
        held, self._held = self._held, ""
        kind = Reasoning if self._state == "reasoning" else Text
        self._state = state
        return (kind(held),) if held else ()

    def _text(self, text: str) -> Iterable[Delta]:
        text, self._held = self._held + text, ""
        return self._reason(text) if self._state == "reasoning" else self._start(text)

    def _start(self, text: str) -> Iterable[Delta]:
        stripped = text.lstrip()
        for opening, closing in TAGS.items():
            if stripped.startswith(opening):
                self._state, self._closing = "reasoning", closing
                return self._reason(stripped[len(opening) :])
        if any(opening.startswith(stripped) for opening in TAGS):
            self._held = stripped
            text = text[: len(text) - len(stripped)]
        else:
            self._state = "answer"
        return (Text(text),) if text else ()

    def _reason(self, text: str) -> Iterable[Delta]:
        reasoning, tag, answer = text.partition(self._closing)
        if tag:
            self._state = "answer"
        else:
            kept = _overlap(text, self._closing)
            reasoning, self._held = text[: len(text) - kept], text[len(text) - kept :]
        return [kind(piece) for kind, piece in ((Reasoning, reasoning), (Text, answer)) if piece]


def _overlap(text: str, tag: str) -> int:
    """How many of the last characters of ``text`` may be the beginning of ``tag``."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-size:]):
            return size
    return 0
