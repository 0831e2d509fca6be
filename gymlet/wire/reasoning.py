"""Splitters: what is answer, what is reasoning.

A dialect without tags needs none: its reasoning has a field of its own, and the reader already told it apart. With
tags, the answer's text begins with ``<think>…</think>``, and no tag may be assumed to arrive whole: a splitter holds
back what may still become a tag, and not one character more. Its three states:

    START      only white space so far; the beginning of an opening tag is held  white space given out as Text
    REASONING  inside the block; the beginning of a closing tag is held          given out as Reasoning
    ANSWER     everything else; tags are literal text here                       given out as it comes

A block opens only at the start of the answer, or after a tool call; the first closing tag ends it; once a stream has
shown reasoning in a field, its text is left alone. Some templates open the block themselves, so that the reply begins
inside it (``implicit``): then START looks for what shows the opposite, and a stream that stops without ever closing the
block has its text given out once more, as the answer. Where that is not known, a closing tag that nothing opened is
dropped. Text that begins with a harmony token is read by gymlet.wire.harmony.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from gymlet.wire.deltas import Arguments, Delta, Finish, Json, Reasoning, ReasoningDetails, Run, Text, ToolCall
from gymlet.wire.harmony import STARTS, Harmony
from gymlet.wire.logprobs import tail
from gymlet.wire.overlap import overlap

TAGS = {
    "<think>": "</think>",
    "<thought>": "</thought>",
    "<thinking>": "</thinking>",
    "◁think▷": "◁/think▷",
}
IMPLICIT_CLOSING = "</think>"
"""What ends a block that a template opened: every template known to do so uses this tag."""

OPENING = "<think>"
QUOTES = ("`", "'", '"')
State = Literal["start", "reasoning", "answer"]


class Splitter(Protocol):
    """What every splitter does: ``feed`` gives out what is certain, ``close`` what was held back."""

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """The deltas that are certain once these are known."""
        ...

    def close(self, finish: Finish | None) -> Iterable[Delta]:
        """The rest, at the end of the stream; ``finish`` is None if it broke off."""
        ...


class Plain:
    """No parsing: content passes untouched, a separate reasoning field is not read (as NeMo Gym without its parser)."""

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """Everything but reasoning."""
        return [delta for delta in deltas if not _is_reasoning(delta)]

    def close(self, _finish: Finish | None) -> Iterable[Delta]:
        """Nothing is ever held."""
        return ()


def _is_reasoning(delta: Delta) -> bool:
    return isinstance(delta, Reasoning | ReasoningDetails) or (isinstance(delta, Run) and delta.kind is Reasoning)


class Verbatim:
    """Everything as it came: reasoning in a field is reasoning, tags are text."""

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """The deltas themselves."""
        return deltas

    def close(self, _finish: Finish | None) -> Iterable[Delta]:
        """Nothing is ever held."""
        return ()


class Tagged:
    """Reasoning in a field of its own, or between tags. Owns the state and the held text.

    ``implicit``: the reply begins inside a block. ``json``: an answer is JSON, so that a first bracket shows that it is
    one. ``unclosed``: what a block is that the model stopped in. ``interleaved``: a block may open anywhere.
    ``new_id(prefix)`` mints the ids of calls that leak as harmony.
    """

    def __init__(
        self,
        new_id: Callable[[str], str],
        *,
        implicit: bool = False,
        json: bool = False,
        unclosed: Literal["reasoning", "answer"] = "reasoning",
        interleaved: bool = False,
    ) -> None:
        self._new_id = new_id
        self._implicit = implicit
        self._json = json
        self._unclosed_is_answer = unclosed == "answer" or implicit
        self._interleaved = interleaved
        self._state: State = "start"
        self._held = ""
        self._closing = ""
        self._bare_closing = not implicit
        self._block: list[str] = []
        self._harmony: Harmony | None = None
        self._logprobs: list[Json] = []

    def feed(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        """Sort deltas; text may wait until it is known not to be a tag."""
        sorted_: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, Run):
                sorted_ += self._run(delta)
            else:
                sorted_ += self._sort(delta)
        return sorted_

    def close(self, finish: Finish | None) -> Iterable[Delta]:
        """Let go of the held text: it was no tag."""
        if self._harmony is not None:
            return self._harmony.close()
        inside = self._state == "reasoning"
        last = list(self._settle(self._state))
        if inside and self._unclosed_is_answer and finish is not None and finish.reason == "stop":
            last += [Text(whole) for whole in ("".join(self._block),) if whole]
        return last

    def _run(self, run: Run) -> Iterable[Delta]:
        """As a whole, where none of its pieces can be part of a tag; else piece by piece."""
        if self._state == "answer" and not self._held and self._harmony is None:
            said = "".join(run.texts) if run.kind is Text else ""
            if "<" not in said and "◁" not in said:
                return (run,)
        return [delta for piece in run.pieces() for delta in self._sort(piece)]

    def _sort(self, delta: Delta) -> Iterable[Delta]:
        match delta:
            case Text(text, logprobs):
                said = self._text(text)
                return self._scored([*said], logprobs) if logprobs or self._logprobs else said
            case Arguments() | ReasoningDetails():
                return (delta,)
        settled = self._settle("start" if isinstance(delta, ToolCall) else "answer")
        if isinstance(delta, Reasoning):
            self._implicit = self._bare_closing = False
        return (*settled, delta)

    def _scored(self, said: list[Delta], logprobs: tuple[Json, ...]) -> list[Delta]:
        """The log probabilities go with the answer: to the last piece of it, as many as spell it."""
        self._logprobs += logprobs
        if said:
            last = said[-1]
            if isinstance(last, Text):
                said[-1] = Text(last.text, tail(self._logprobs, last.text))
            self._logprobs = []
        return said

    def _settle(self, state: State) -> Iterable[Delta]:
        held, self._held = self._held, ""
        was, self._state = self._state, state
        if not held:
            return ()
        if was == "reasoning":
            self._block.append(held)
            return (Reasoning(held),)
        return self._scored([Text(held)], ())

    def _text(self, text: str) -> list[Delta]:
        if self._harmony is not None:
            return self._harmony.feed(text)
        text, self._held = self._held + text, ""
        said: list[Delta] = []
        at = 0
        while at < len(text):
            at = _STEPS[self._state](self, text, at, said)
        return said

    def start(self, text: str, at: int, said: list[Delta]) -> int:
        """Only white space so far."""
        stripped = text[at:].lstrip()
        begin = len(text) - len(stripped)
        _say(Text, text[at:begin], said)
        for opening, closing in TAGS.items():
            if stripped.startswith(opening):
                self._enter(closing)
                return begin + len(opening)
        if stripped.startswith(STARTS):
            self._harmony = Harmony(self._new_id)
            said += self._harmony.feed(stripped)
            return len(text)
        if any(opening.startswith(stripped) for opening in (*TAGS, *STARTS)):
            self._held = stripped
            return len(text)
        if self._implicit and not (self._json and stripped[0] in "{["):
            self._enter(IMPLICIT_CLOSING)
            return begin
        self._state = "answer"
        return begin

    def _enter(self, closing: str) -> None:
        self._state, self._closing, self._bare_closing, self._implicit = "reasoning", closing, False, False
        self._block = []

    def reason(self, text: str, at: int, said: list[Delta]) -> int:
        """Inside a block, up to its closing tag."""
        end = text.find(self._closing, at)
        closed = end >= 0
        if not closed:
            end = self._hold_tag(text, at, self._closing)
        _say(Reasoning, text[at:end], said)
        if self._unclosed_is_answer:
            self._block.append(text[at:end])
        if not closed:
            return len(text)
        self._state = "answer"
        return end + len(self._closing)

    def answer(self, text: str, at: int, said: list[Delta]) -> int:
        """Tags are text here, but for a closing tag that nothing opened, and for blocks that may open anywhere."""
        if self._interleaved:
            return self._answer_up_to_a_block(text, at, said)
        if self._bare_closing:
            return self._answer_up_to_a_bare_closing(text, at, said)
        said.append(Text(text[at:]))
        return len(text)

    def _answer_up_to_a_block(self, text: str, at: int, said: list[Delta]) -> int:
        opening = text.find(OPENING, at)
        if opening < 0:
            _say(Text, text[at : self._hold_tag(text, at, OPENING)], said)
            return len(text)
        _say(Text, text[at:opening], said)
        self._enter(IMPLICIT_CLOSING)
        return opening + len(OPENING)

    def _answer_up_to_a_bare_closing(self, text: str, at: int, said: list[Delta]) -> int:
        closing = text.find(IMPLICIT_CLOSING, at)
        end = closing if closing >= 0 else len(text)
        if OPENING in text[at:end] or (closing > at and text[closing - 1] in QUOTES):
            self._bare_closing = False
            return at
        if closing < 0:
            _say(Text, text[at : self._hold_tag(text, at, IMPLICIT_CLOSING, OPENING)], said)
            return len(text)
        _say(Text, text[at:closing], said)
        self._bare_closing = False
        return closing + len(IMPLICIT_CLOSING)

    def _hold_tag(self, text: str, at: int, *tags: str) -> int:
        """Keep the end of the text if a tag may begin there; where that is."""
        begin = max(at, len(text) - max(overlap(text, tag) for tag in tags))
        self._held = text[begin:]
        return begin


def _say(kind: type[Text] | type[Reasoning], text: str, said: list[Delta]) -> None:
    if text:
        said.append(kind(text))


_STEPS: dict[State, Callable[[Tagged, str, int, list[Delta]], int]] = {
    "start": Tagged.start,
    "reasoning": Tagged.reason,
    "answer": Tagged.answer,
}
