"""Deltas to Responses events: the state machine.

One item is open at a time; an item's events go

    message, reasoning    added → part added → delta* → text done → part done → item done
    function_call         added → delta* → arguments done → item done
    custom_tool_call      added → delta → input done → item done

and a delta of another kind closes what is open. White space opens nothing: it waits, and is dropped if something else
comes first. Parallel calls may arrive interleaved; fragments of a second call, and whatever else comes while the open
call's arguments are not yet whole, wait until they are.

Every event has the next sequence number; the terminal one repeats the finished items, exactly as they were closed.
What a delta event looks like is fixed when its item opens, so that the way of a token is one concatenation.
Sources: OpenAI's Responses API as recorded, the Open Responses specification of 2026-04-24.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gymlet.wire.deltas import (
    Arguments,
    Delta,
    Finish,
    Json,
    Reasoning,
    ReasoningDetails,
    Refusal,
    Run,
    Text,
    ToolCall,
    Usage,
)
from gymlet.wire.errors import GymletError
from gymlet.wire.seal import Seal, Thought, merge_details
from gymlet.wire.sse import DONE, frame
from gymlet.wire.tools import Toolbox

ReasoningOutput = Literal["summary", "content", "open_responses"]
ItemStatus = Literal["completed", "incomplete"]


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
INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Events:
    """Numbers events and collects their bytes. Owns the sequence number and the bytes not yet taken."""

    def __init__(self) -> None:
        self.number = 0
        self.pieces: list[bytes] = []

    def emit(self, kind: str, fields: Json) -> None:
        """Add one event."""
        self.pieces.append(frame(kind, orjson.dumps({"type": kind, "sequence_number": self.number, **fields})))
        self.number += 1

    def emit_deltas(self, prefix: bytes, texts: Sequence[str], suffix: bytes) -> None:
        """Add a delta event for each text; the constant parts were made before."""
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

    def emit(self, kind: str, fields: Json) -> None:
        """Nothing."""

    def emit_deltas(self, prefix: bytes, texts: Sequence[str], suffix: bytes) -> None:
        """Nothing."""


def _delta_ends(kind: str, fields: Json) -> tuple[bytes, bytes]:
    """A delta event around its sequence number and its text: the one comes first, the other last."""
    prefix = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":'.encode()
    return prefix, b"," + orjson.dumps(fields)[1:-1] + b',"delta":'


class _PartItem:
    """An open message or reasoning item. Owns its finished parts and the text of the open one."""

    def __init__(self, events: Events, shell: Json, index: int, form: PartForm) -> None:
        self._events = events
        self._shell = shell
        self._index = index
        self._parts: dict[str, list[Json]] = {"content": [], **({"summary": []} if "summary" in shell else {})}
        events.emit("response.output_item.added", {"output_index": index, "item": {**shell, "status": "in_progress"}})
        self._open_part(form)

    def turn_to(self, form: PartForm) -> None:
        """Go on in a part of this form."""
        if form is not self._form:
            self._close_part()
            self._open_part(form)

    def feed(self, *texts: str) -> None:
        self._pieces += texts
        self._events.emit_deltas(self._prefix, texts, self._suffix)

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
        self._events.emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item

    def _open_part(self, form: PartForm) -> None:
        self._form = form
        self._pieces: list[str] = []
        at = {f"{form.container}_index": len(self._parts[form.container])}
        self._where = {"item_id": self._shell["id"], "output_index": self._index, **at}
        self._prefix, self._suffix = _delta_ends(form.delta, {**self._where, **form.event_extra})
        self._events.emit(form.added, {**self._where, "part": self._part("")})

    def _close_part(self) -> None:
        form, text = self._form, "".join(self._pieces)
        part = self._part(text)
        self._events.emit(form.done, {**self._where, form.text_key: text, **form.event_extra})
        self._events.emit(form.part_done, {**self._where, "part": part})
        self._parts[form.container].append(part)

    def _part(self, text: str) -> Json:
        return {"type": self._form.part_type, self._form.text_key: text, **self._form.part_extra}


class _CallItem:
    """An open function call. Owns its arguments so far."""

    def __init__(self, events: Events, shell: Json, index: int, call: int) -> None:
        self._events = events
        self._shell = shell
        self._index = index
        self.call = call
        self._pieces: list[str] = []
        self._where = {"item_id": shell["id"], "output_index": index}
        self._prefix, self._suffix = _delta_ends("response.function_call_arguments.delta", self._where)
        events.emit("response.output_item.added", {"output_index": index, "item": {**shell, "status": "in_progress"}})

    def feed(self, *texts: str) -> None:
        self._pieces += texts
        self._events.emit_deltas(self._prefix, texts, self._suffix)

    def whole(self) -> bool:
        """Whether the arguments are JSON as they stand; with none yet, they may still come."""
        if not self._pieces or self._pieces[-1].rstrip()[-1:] not in "}]":
            return False
        try:
            orjson.loads("".join(self._pieces))
        except orjson.JSONDecodeError:
            return False
        return True

    def close(self, status: ItemStatus) -> Json:
        arguments = "".join(self._pieces)
        if not arguments.strip() and status == "completed":
            arguments = "{}"
        done = {**self._where, "name": self._shell["name"], "arguments": arguments}
        self._events.emit("response.function_call_arguments.done", done)
        item = {**self._shell, "arguments": arguments, "status": status}
        self._events.emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item


class _CustomCallItem(_CallItem):
    """An open call of a custom tool: its input is one string of the arguments, known once they are whole."""

    def feed(self, *texts: str) -> None:
        self._pieces += texts

    def close(self, status: ItemStatus) -> Json:
        text = _custom_input("".join(self._pieces))
        if text:
            self._events.emit("response.custom_tool_call_input.delta", {**self._where, "delta": text})
        self._events.emit("response.custom_tool_call_input.done", {**self._where, "input": text})
        item = {**self._shell, "input": text, "status": status}
        self._events.emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item


def _custom_input(arguments: str) -> str:
    """The string in the arguments; the arguments themselves, where the model did not keep to the form."""
    try:
        text = orjson.loads(arguments)["input"]
    except (ValueError, TypeError, KeyError):
        return arguments
    return text if isinstance(text, str) else arguments


class ResponseWriter:
    """Feed deltas, get the bytes of events. Owns the response: nothing else changes it.

    ``envelope`` is the response object without output (see request.envelope); ``new_id(prefix)`` mints item ids;
    ``now()`` is the time in whole seconds; ``tools`` is what the calls look like; ``seal`` makes the
    ``encrypted_content`` of reasoning items, where the client asked for it; without ``stream`` there are no events,
    only the response.
    """

    def __init__(
        self,
        envelope: Json,
        *,
        new_id: Callable[[str], str],
        now: Callable[[], int],
        reasoning_output: ReasoningOutput = "summary",
        tools: Toolbox | None = None,
        seal: Seal | None = None,
        stream: bool = True,
    ) -> None:
        self._envelope = envelope
        self._tools = tools or Toolbox()
        self._seal = seal
        self._details: list[Json] = []
        self._signatures: dict[str, Json] = {}
        self._new_id = new_id
        self._now = now
        self._reasoning_form = REASONING_FORMS[reasoning_output]
        self._events = Events() if stream else Silence()
        self._output: list[Json] = []
        self._open: _PartItem | _CallItem | None = None
        self._open_kind: type[Delta] | None = None
        self._feed_open: Callable[..., None] = _nothing_open
        self._blank: list[Text | Reasoning | Refusal] = []
        self._waiting: list[Delta] = []
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self.response = envelope

    def open(self) -> bytes:
        """``response.created`` and ``response.in_progress``."""
        self._events.emit("response.created", {"response": self._envelope})
        self._events.emit("response.in_progress", {"response": self._envelope})
        return self._events.take()

    def keep_alive(self) -> bytes:
        """A repeated ``response.in_progress``, for clients that give up on a silent stream."""
        self._events.emit("response.in_progress", {"response": self._envelope})
        return self._events.take()

    def feed(self, deltas: Iterable[Delta]) -> None:
        """Turn deltas into events; ``take`` has their bytes."""
        for delta in deltas:
            if isinstance(delta, Run):
                self._feed_run(delta)
            else:
                self._feed(delta)

    def _feed_run(self, run: Run) -> None:
        if run.kind is not self._open_kind:
            for delta in run.pieces():
                self._feed(delta)
        else:
            self._feed_open(*run.texts)

    def _feed(self, delta: Delta) -> None:
        if type(delta) is self._open_kind:
            self._feed_open(delta.text)  # type: ignore[union-attr]
        elif isinstance(delta, Finish | Usage) or self._is_own(delta):
            self._apply(delta)
            if self._waiting:
                self._release()
        elif self._waiting or self._must_wait():
            self._waiting.append(delta)
        else:
            self._apply(delta)

    def take(self) -> bytes:
        """The bytes of the events since the last call."""
        return self._events.take()

    def close(self) -> bytes:
        """The ``.done`` events, the terminal event and ``[DONE]``."""
        reason = INCOMPLETE_REASONS.get(self._finish.reason) if self._finish else None
        self._flush("incomplete" if reason else "completed")
        details = {"incomplete_details": {"reason": reason}} if reason else {"completed_at": self._now()}
        return self._end("incomplete" if reason else "completed", details)

    def fail(self, error: GymletError) -> bytes:
        """What is open ends incomplete; then ``error``, ``response.failed`` and ``[DONE]``."""
        self._flush("incomplete", keep_empty=False)
        code = error.code or error.type
        flat = {"code": code, "message": error.message, "param": error.param}
        self._events.emit("error", {**flat, "error": {"type": error.type, **flat}})
        return self._end("failed", {"error": {"code": code, "message": error.message}})

    def _end(self, status: str, details: Json) -> bytes:
        usage = None if self._usage is None else _usage(self._usage)
        self.response = {**self._envelope, **details, "status": status, "output": self._output, "usage": usage}
        self._events.emit(f"response.{status}", {"response": self.response})
        return self._events.take() + DONE

    def _is_own(self, delta: Delta) -> bool:
        """Whether it is a fragment of the open call."""
        return isinstance(delta, Arguments) and isinstance(self._open, _CallItem) and self._open.call == delta.index

    def _must_wait(self) -> bool:
        """Whether an open call, whose arguments are not whole, stands in the way of anything else."""
        return isinstance(self._open, _CallItem) and not self._open.whole()

    def _release(self) -> None:
        """Once the open call is whole, let what waited go on, up to the next call that is not."""
        while self._waiting and not self._must_wait():
            waiting, self._waiting = self._waiting, []
            for delta in waiting:
                if not self._is_own(delta) and (self._waiting or self._must_wait()):
                    self._waiting.append(delta)
                else:
                    self._apply(delta)

    def _apply(self, delta: Delta) -> None:
        match delta:
            case Text(text):
                self._part(delta, text, OUTPUT_TEXT)
            case Reasoning(text):
                self._part(delta, text, self._reasoning_form)
            case Refusal(text):
                self._part(delta, text, REFUSAL)
            case ReasoningDetails(fragments):
                self._details += fragments
            case ToolCall():
                self._open_call(delta)
            case Arguments(index, text):
                if isinstance(self._open, _CallItem) and self._open.call == index:
                    self._open.feed(text)
            case Finish():
                self._finish = delta
            case Usage():
                self._usage = delta

    def _open_call(self, call: ToolCall) -> None:
        """A new call; one that the client did not allow is left out, its arguments with it."""
        if self._tools.allowed is not None and call.name not in self._tools.allowed:
            return
        if call.extra_content:
            self._signatures[call.call_id] = call.extra_content
        self._close_open("completed")
        self._blank.clear()
        shell = self._call_shell(call.call_id, call.name)
        form = _CustomCallItem if shell["type"] == "custom_tool_call" else _CallItem
        self._open = form(self._events, shell, len(self._output), call.index)

    def _part(self, delta: Text | Reasoning | Refusal, text: str, form: PartForm) -> None:
        goes_on = self._open_kind is not None and (type(delta) is Reasoning) == (self._open_kind is Reasoning)
        if not goes_on and not text.strip():
            self._blank.append(delta)
            return
        item = self._open if goes_on else self._open_item(type(delta), form)
        assert isinstance(item, _PartItem)  # noqa: S101  the kind says so
        item.turn_to(form)
        item.feed(text)
        self._open_kind, self._feed_open = type(delta), item.feed

    def _open_item(self, kind: type[Delta], form: PartForm) -> _PartItem:
        """A new message or reasoning item, with the white space of its kind that waited."""
        self._close_open("completed", then=kind)
        shell = self._reasoning_shell() if kind is Reasoning else self._message_shell()
        self._open = item = _PartItem(self._events, shell, len(self._output), form)
        blank, self._blank = self._blank, []
        for delta in blank:
            if isinstance(delta, Text | Reasoning | Refusal) and type(delta) is kind:
                item.feed(delta.text)
        return item

    def _close_open(self, status: ItemStatus, then: type[Delta] | None = None) -> None:
        """Close what is open; what the provider wants back and no item carries has one of its own."""
        if self._open_kind is Reasoning and isinstance(self._open, _PartItem):
            self._output.append(self._open.close(status, **self._sealed(self._open.text)))
        elif self._open is not None:
            self._output.append(self._open.close(status))
        self._open = self._open_kind = None
        if self._seal and (self._details or self._signatures) and then is not Reasoning and status == "completed":
            self._add_bare_reasoning()

    def _sealed(self, text: str) -> dict[str, str]:
        """The field that holds this reasoning, and what came with it, for the way back."""
        thought = Thought(text, merge_details(self._details), self._signatures)
        self._details, self._signatures = [], {}
        return {} if self._seal is None else {"encrypted_content": self._seal.close(thought)}

    def _add_bare_reasoning(self) -> None:
        shell, index = self._reasoning_shell(), len(self._output)
        self._events.emit("response.output_item.added", {"output_index": index, "item": shell})
        item = {**shell, **self._sealed(""), "status": "completed"}
        self._events.emit("response.output_item.done", {"output_index": index, "item": item})
        self._output.append(item)

    def _flush(self, status: ItemStatus, *, keep_empty: bool = True) -> None:
        """Close everything; a reply with nothing at all still has one message."""
        while self._waiting:
            self._close_open("completed")
            self._release()
        self._close_open(status)
        if keep_empty and not self._output:
            self._open_item(Text, OUTPUT_TEXT)
            self._close_open(status)

    def _message_shell(self) -> Json:
        return {
            "id": self._new_id("msg_"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }

    def _reasoning_shell(self) -> Json:
        return {"id": self._new_id("rs_"), "type": "reasoning", "status": "in_progress", "summary": []}

    def _call_shell(self, call_id: str, name: str) -> Json:
        shape = {"type": "function_call", "name": name, **self._tools.shapes.get(name, {})}
        prefix, said = ("fc_", "arguments") if shape["type"] == "function_call" else ("ctc_", "input")
        return {"id": self._new_id(prefix), "status": "in_progress", "call_id": call_id, **shape, said: ""}


def _nothing_open(*_texts: str) -> None:
    raise AssertionError("no item is open")


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
