"""The items of a response while they are open: each turns its pieces into events, and closes as the finished item.

    message, reasoning    added → part added → delta* → text done → part done → item done
    function_call         added → delta* → arguments done → item done
    custom_tool_call      added → delta → input done → item done

What a delta event looks like is fixed when its item opens, so that the way of a token is one concatenation.
Sources: OpenAI's Responses API as recorded, the Open Responses specification of 2026-04-24.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import orjson

from gymlet.wire.deltas import Json, Reasoning, Refusal, Text
from gymlet.wire.json_text import JsonText
from gymlet.wire.sse import frame

ReasoningOutput = Literal["summary", "content", "open_responses"]
ItemStatus = Literal["completed", "incomplete"]
LONGEST_ESCAPE = 12
"""Characters of a surrogate pair in JSON: so many at the end of a cut string may say nothing yet."""

_INPUT = re.compile(r'\s*\{\s*"input"\s*:\s*"')


@dataclass(frozen=True, slots=True)
class PartForm:
    """How one kind of text shows: where it is kept, and what its events are called."""

    part_type: str
    container: Literal["content", "summary"]
    text_key: str
    added: str
    delta: str
    done: str
    part_done: str
    part_extra: Json = field(default_factory=dict)
    event_extra: Json = field(default_factory=dict)

    def part(self, text: str) -> Json:
        """The part with this text in it."""
        return {"type": self.part_type, self.text_key: text, **self.part_extra}


def _form(part_type: str, events: str, text_key: str = "text", **extra: Any) -> PartForm:
    return PartForm(
        part_type=part_type,
        container="content",
        text_key=text_key,
        added="response.content_part.added",
        delta=f"response.{events}.delta",
        done=f"response.{events}.done",
        part_done="response.content_part.done",
        **extra,
    )


OUTPUT_TEXT = _form("output_text", "output_text", part_extra={"annotations": []}, event_extra={"logprobs": []})
REFUSAL = _form("refusal", "refusal", text_key="refusal")
REASONING_FORMS: dict[ReasoningOutput, PartForm] = {
    "summary": PartForm(
        part_type="summary_text",
        container="summary",
        text_key="text",
        added="response.reasoning_summary_part.added",
        delta="response.reasoning_summary_text.delta",
        done="response.reasoning_summary_text.done",
        part_done="response.reasoning_summary_part.done",
    ),
    "content": _form("reasoning_text", "reasoning_text"),
    "open_responses": _form("reasoning_text", "reasoning"),
}


DeltaEnds = tuple[bytes, bytes]
"""A delta event around its sequence number and its text: the one comes first, the other last."""


class Events:
    """Numbers events and collects their bytes. Owns the sequence number and the bytes not yet taken.

    ``heard``: whether anyone reads them; what they would say need not be put together otherwise.
    """

    heard: ClassVar[bool] = True

    def __init__(self) -> None:
        self.number = 0
        self.pieces: list[bytes] = []

    def emit(self, kind: str, fields: Json) -> None:
        """Add one event."""
        self.pieces.append(frame(kind, orjson.dumps({"type": kind, "sequence_number": self.number, **fields})))
        self.number += 1

    def delta_ends(self, kind: str, fields: Json) -> DeltaEnds:
        """What of a delta event is always the same."""
        prefix = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":'.encode()
        return prefix, b"," + orjson.dumps(fields)[1:-1] + b',"delta":'

    def emit_deltas(self, ends: DeltaEnds, texts: Sequence[str]) -> None:
        """Add a delta event for each text."""
        prefix, suffix = ends
        self.pieces += [
            b"%b%d%b%b}\n\n" % (prefix, number, suffix, orjson.dumps(text))
            for number, text in enumerate(texts, self.number)
        ]
        self.number += len(texts)

    def take(self) -> bytes:
        """The bytes since the last call."""
        taken = b"".join(self.pieces)
        self.pieces.clear()
        return taken


class Silence(Events):
    """For a reply that is given out whole: nobody reads its events."""

    heard: ClassVar[bool] = False

    def emit(self, kind: str, fields: Json) -> None:
        """Nothing."""

    def emit_deltas(self, ends: DeltaEnds, texts: Sequence[str]) -> None:
        """Nothing."""


class PartItem:
    """An open message or reasoning item. Owns its finished parts and the text of the open one."""

    def __init__(self, events: Events, shell: Json, index: int, form: PartForm) -> None:
        self._events = events
        self._shell = shell
        self._index = index
        self._parts: dict[str, list[Json]] = {"content": [], **({"summary": []} if "summary" in shell else {})}
        if events.heard:
            added = {"output_index": index, "item": {**shell, "status": "in_progress"}}
            events.emit("response.output_item.added", added)
        self._open_part(form)

    def turn_to(self, form: PartForm) -> None:
        """Go on in a part of this form."""
        if form is not self._form:
            self._close_part()
            self._open_part(form)

    def feed(self, *texts: str) -> None:
        """Add pieces, each a delta event."""
        self._pieces += texts
        if self._events.heard:
            self._events.emit_deltas(self._ends, texts)

    def go_on(self, delta: Text | Reasoning | Refusal) -> None:
        """Add one delta, with the log probabilities that it has."""
        if not isinstance(delta, Text) or not delta.logprobs:
            self.feed(delta.text)
            return
        self._pieces.append(delta.text)
        self._logprobs += delta.logprobs
        if self._events.heard:
            fields = {**self._where, "logprobs": delta.logprobs, "delta": delta.text}
            self._events.emit(self._form.delta, fields)

    @property
    def text(self) -> str:
        """All that was said in the item so far."""
        whole = [part.get("text", "") for parts in self._parts.values() for part in parts]
        return "".join((*whole, *self._pieces))

    def close(self, status: ItemStatus, **more: str) -> Json:
        """The finished item; ``more`` joins its fields."""
        self._close_part()
        parts = {key: parts for key, parts in self._parts.items() if parts}
        item = {**self._shell, **parts, **more, "status": status}
        if self._events.heard:
            self._events.emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item

    def _open_part(self, form: PartForm) -> None:
        self._form = form
        self._pieces: list[str] = []
        self._logprobs: list[Json] = []
        if self._events.heard:
            self._announce(form)

    def _announce(self, form: PartForm) -> None:
        at = {f"{form.container}_index": len(self._parts[form.container])}
        self._where = {"item_id": self._shell["id"], "output_index": self._index, **at}
        self._ends = self._events.delta_ends(form.delta, {**self._where, **form.event_extra})
        self._events.emit(form.added, {**self._where, "part": form.part("")})

    def _close_part(self) -> None:
        form, text = self._form, "".join(self._pieces)
        scores = {"logprobs": self._logprobs} if self._logprobs else {}
        part = {**form.part(text), **scores}
        if self._events.heard:
            self._events.emit(form.done, {**self._where, form.text_key: text, **form.event_extra, **scores})
            self._events.emit(form.part_done, {**self._where, "part": part})
        self._parts[form.container].append(part)


class CallItem:
    """An open function call. Owns its arguments so far."""

    def __init__(self, events: Events, shell: Json, index: int, call: int) -> None:
        self._events = events
        self._shell = shell
        self._index = index
        self.call = call
        self._arguments = JsonText()
        self._where = {"item_id": shell["id"], "output_index": index}
        self._ends = events.delta_ends("response.function_call_arguments.delta", self._where)
        events.emit("response.output_item.added", {"output_index": index, "item": {**shell, "status": "in_progress"}})

    def feed(self, *texts: str) -> None:
        """Add pieces, each a delta event."""
        self._arguments.feed(*texts)
        self._events.emit_deltas(self._ends, texts)

    def whole(self) -> bool:
        """Whether the arguments are JSON as they stand; with none yet, they may still come."""
        return self._arguments.whole()

    def close(self, status: ItemStatus) -> Json:
        """The finished item."""
        arguments = str(self._arguments)
        if not arguments.strip() and status == "completed":
            arguments = "{}"
        done = {**self._where, "name": self._shell["name"], "arguments": arguments}
        self._events.emit("response.function_call_arguments.done", done)
        item = {**self._shell, "arguments": arguments, "status": status}
        self._events.emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item


class CustomCallItem(CallItem):
    """An open call of a custom tool: its input is one string of the arguments, known once they are whole."""

    def feed(self, *texts: str) -> None:
        """Add pieces, and wait for the rest."""
        self._arguments.feed(*texts)

    def close(self, status: ItemStatus) -> Json:
        """The finished item."""
        text = _custom_input(str(self._arguments))
        if text:
            self._events.emit("response.custom_tool_call_input.delta", {**self._where, "delta": text})
        self._events.emit("response.custom_tool_call_input.done", {**self._where, "input": text})
        item = {**self._shell, "input": text, "status": status}
        self._events.emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item


def _custom_input(arguments: str) -> str:
    """The string in the arguments, as far as it came; the arguments themselves, where they have another form."""
    try:
        text = orjson.loads(arguments)["input"]
    except (ValueError, TypeError, KeyError):
        return _cut_input(arguments)
    return text if isinstance(text, str) else arguments


def _cut_input(arguments: str) -> str:
    begun = _INPUT.match(arguments)
    if not begun:
        return arguments
    rest = arguments[begun.end() :]
    for end in range(len(rest), max(len(rest) - LONGEST_ESCAPE, -1), -1):
        try:
            return str(orjson.loads(f'"{rest[:end]}"'))
        except orjson.JSONDecodeError:
            continue
    return arguments
