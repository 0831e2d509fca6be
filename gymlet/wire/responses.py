"""Deltas to Responses events: the state machine.

One item is open at a time (see gymlet.wire.items), and a delta of another kind closes what is open. White space opens
nothing: it waits, and is dropped if something else comes first. Parallel calls may arrive interleaved; fragments of a
second call, and whatever else comes while the open call's arguments are not yet whole, wait until they are.

Every event has the next sequence number; the terminal one repeats the finished items, exactly as they were closed.
Sources: OpenAI's Responses API as recorded, the Open Responses specification of 2026-04-24.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
from gymlet.wire.items import (
    OUTPUT_TEXT,
    REASONING_FORMS,
    REFUSAL,
    CallItem,
    CustomCallItem,
    Events,
    ItemStatus,
    PartForm,
    PartItem,
    ReasoningOutput,
    Silence,
)
from gymlet.wire.seal import Seal, Thought, merge_details
from gymlet.wire.sse import DONE
from gymlet.wire.tools import Toolbox

INCOMPLETE_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a reply was cut off, by the provider's finish reason."""

SPOKEN = (Text, Reasoning, Refusal)
"""What makes the parts of items, and no item of its own."""

FORMS: dict[ReasoningOutput, dict[type[Delta], PartForm]] = {
    output: {Text: OUTPUT_TEXT, Reasoning: form, Refusal: REFUSAL} for output, form in REASONING_FORMS.items()
}

Keep = Callable[[Json, bytes, list[Json]], None]
"""Takes the ended response, its JSON, and its output with all reasoning sealed: what a later turn may begin from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a response is shown.

    ``stream``: as events; else there is only the response. ``tools``: what the calls look like. ``seal`` makes the
    ``encrypted_content`` of reasoning items, which the client sees where it asked for it (``encrypted``).
    """

    stream: bool = True
    reasoning_output: ReasoningOutput = "summary"
    tools: Toolbox = field(default_factory=Toolbox)
    seal: Seal | None = None
    encrypted: bool = False


class Waiting:
    """What came while a call was open, in order; the fragments of each call that waits stand together."""

    def __init__(self) -> None:
        self.groups: deque[list[Delta]] = deque()
        self._calls: dict[int, list[Delta]] = {}

    def add(self, delta: Delta) -> None:
        """Wait as well."""
        if isinstance(delta, Arguments) and delta.index in self._calls:
            self._calls[delta.index].append(delta)
            return
        self.groups.append([delta])
        if isinstance(delta, ToolCall):
            self._calls[delta.index] = self.groups[-1]

    def take(self) -> list[Delta]:
        """The first that waits."""
        group = self.groups.popleft()
        if isinstance(group[0], ToolCall):
            del self._calls[group[0].index]
        return group


class ResponseWriter:
    """Feed deltas, get the bytes of events. Owns the response: nothing else changes it.

    ``envelope`` is the response object without output (see request.envelope); ``new_id(prefix)`` mints item ids;
    ``now()`` is the time in whole seconds; ``keep`` is called once the response has ended, before anyone sees it,
    unless it failed and none of it was shown.
    """

    def __init__(
        self,
        envelope: Json,
        view: View,
        *,
        new_id: Callable[[str], str],
        now: Callable[[], int],
        keep: Keep | None = None,
    ) -> None:
        self._envelope = envelope
        self._view = view
        self._new_id = new_id
        self._now = now
        self._keep = keep
        self._forms = FORMS[view.reasoning_output]
        self._events = Events() if view.stream else Silence()
        self._output: list[Json] = []
        self._echo: list[Json] = []
        self._open: PartItem | CallItem | None = None
        self._open_kind: type[Delta] | None = None
        self._blank: list[Text | Reasoning | Refusal] = []
        self._waiting = Waiting()
        self._details: list[Json] = []
        self._signatures: dict[str, Json] = {}
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self.response = envelope
        self.body = b""

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
        if run.kind is self._open_kind and isinstance(self._open, PartItem):
            self._open.feed(*run.texts)
            return
        for delta in run.pieces():
            self._feed(delta)

    def _feed(self, delta: Delta) -> None:
        if type(delta) is self._open_kind:
            self._open.go_on(delta)  # type: ignore[union-attr, arg-type]
        elif isinstance(self._open, CallItem) or self._waiting.groups:
            self._feed_beside_a_call(delta)
        else:
            self._apply(delta)

    def _feed_beside_a_call(self, delta: Delta) -> None:
        if isinstance(delta, (Finish, Usage)) or self._is_own(delta):
            self._apply(delta)
            self._release()
        elif self._waiting.groups or self._must_wait():
            self._waiting.add(delta)
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
        self.body = orjson.dumps(self.response)
        shown = status != "failed" or (self._view.stream and self._output)
        if self._keep and shown:
            self._keep(self.response, self.body, self._echo)
        self._events.emit(f"response.{status}", {"response": orjson.Fragment(self.body)})
        return self._events.take() + DONE

    def _is_own(self, delta: Delta) -> bool:
        """Whether it is a fragment of the open call."""
        return isinstance(delta, Arguments) and isinstance(self._open, CallItem) and self._open.call == delta.index

    def _must_wait(self) -> bool:
        """Whether an open call, whose arguments are not whole, stands in the way of anything else."""
        return isinstance(self._open, CallItem) and not self._open.whole()

    def _release(self) -> None:
        """Once the open call is whole, let what waited go on, up to the next call that is not."""
        while self._waiting.groups and not self._must_wait():
            for delta in self._waiting.take():
                self._apply(delta)

    def _apply(self, delta: Delta) -> None:
        if isinstance(delta, SPOKEN):
            self._part(delta, self._forms[type(delta)])
            return
        match delta:
            case ReasoningDetails(fragments):
                self._details += fragments
            case ToolCall():
                self._open_call(delta)
            case Arguments(index, text):
                if isinstance(self._open, CallItem) and self._open.call == index:
                    self._open.feed(text)
            case Finish():
                self._finish = delta
            case Usage():
                self._usage = delta

    def _open_call(self, call: ToolCall) -> None:
        """A new call; one that the client did not allow is left out, its arguments with it."""
        if self._view.tools.allowed is not None and call.name not in self._view.tools.allowed:
            return
        if call.extra_content:
            self._signatures[call.call_id] = call.extra_content
        self._close_open("completed", then=ToolCall)
        self._blank.clear()
        shell = self._call_shell(call.call_id, call.name)
        form = CustomCallItem if shell["type"] == "custom_tool_call" else CallItem
        self._open = form(self._events, shell, len(self._output), call.index)

    def _part(self, delta: Text | Reasoning | Refusal, form: PartForm) -> None:
        goes_on = self._open_kind is not None and (type(delta) is Reasoning) == (self._open_kind is Reasoning)
        if not goes_on and not delta.text.strip():
            self._blank.append(delta)
            return
        item = self._open if goes_on else self._open_item(type(delta), form)
        assert isinstance(item, PartItem)  # noqa: S101  the kind says so
        item.turn_to(form)
        item.go_on(delta)
        self._open_kind = type(delta)

    def _open_item(self, kind: type[Delta], form: PartForm) -> PartItem:
        """A new message or reasoning item, with the white space of its kind that waited."""
        self._close_open("completed", then=kind)
        shell = self._reasoning_shell() if kind is Reasoning else self._message_shell()
        self._open = item = PartItem(self._events, shell, len(self._output), form)
        blank, self._blank = self._blank, []
        for delta in blank:
            if type(delta) is kind:
                item.go_on(delta)
        return item

    def _close_open(self, status: ItemStatus, then: type[Delta] | None = None) -> None:
        """Close what is open; what the provider wants back and no item carries has its own, but not between calls."""
        between_calls = then is ToolCall and isinstance(self._open, CallItem)
        if self._open_kind is Reasoning and isinstance(self._open, PartItem):
            sealed = self._sealed(self._open)
            self._add(self._open.close(status, **(sealed if self._view.encrypted else {})), sealed)
        elif self._open is not None:
            self._add(self._open.close(status))
        self._open = self._open_kind = None
        carried = then is Reasoning or between_calls or status == "incomplete"
        if self._view.seal and (self._details or self._signatures) and not carried:
            self._add_bare_reasoning()

    def _add(self, item: Json, sealed: dict[str, str] | None = None) -> None:
        self._output.append(item)
        self._echo.append({**item, **sealed} if sealed else item)

    def _sealed(self, item: PartItem | None) -> dict[str, str]:
        """The field that holds an item's reasoning, and what came with it, for the way back."""
        details, self._details = self._details, []
        signatures, self._signatures = self._signatures, {}
        if self._view.seal is None:
            return {}
        text = "" if item is None else item.text
        return {"encrypted_content": self._view.seal.close(Thought(text, merge_details(details), signatures))}

    def _add_bare_reasoning(self) -> None:
        shell, index = self._reasoning_shell(), len(self._output)
        item = {**shell, **self._sealed(None), "status": "completed"}
        if not self._view.encrypted:
            self._echo.append(item)
            return
        self._events.emit("response.output_item.added", {"output_index": index, "item": shell})
        self._events.emit("response.output_item.done", {"output_index": index, "item": item})
        self._add(item)

    def _flush(self, status: ItemStatus, *, keep_empty: bool = True) -> None:
        """Close everything; what waits for a call that was cut is cut with it. A reply with nothing has one message."""
        while self._waiting.groups and status == "completed":
            self._close_open("completed", then=ToolCall)
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
        shape = {"type": "function_call", "name": name, **self._view.tools.shapes.get(name, {})}
        prefix, said = ("fc_", "arguments") if shape["type"] == "function_call" else ("ctc_", "input")
        return {"id": self._new_id(prefix), "status": "in_progress", "call_id": call_id, **shape, said: ""}


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
