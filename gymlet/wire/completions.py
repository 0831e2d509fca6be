"""Deltas to chat completions: what /v1/chat/completions sends, whatever dialect came in.

Reasoning is in ``reasoning_content``; calls count from 0; a chunk with usage comes last, and only if it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

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
from gymlet.wire.seal import merge_details
from gymlet.wire.sse import DONE


class CompletionWriter:
    """Feed deltas, get chunks. Owns the message so far: nothing else changes it.

    ``envelope`` has id, created and model, the same in every chunk and in the whole.
    """

    def __init__(self, envelope: Json, *, include_usage: bool = False) -> None:
        self._envelope = envelope
        self._include_usage = include_usage
        self._pieces: list[bytes] = []
        head = orjson.dumps({**envelope, "object": "chat.completion.chunk"})[:-1]
        self._prefix = b"data: " + head + b',"choices":[{"index":0,"delta":'
        self._texts: dict[str, list[str]] = {"content": [], "reasoning_content": [], "refusal": []}
        self._calls: dict[int, Json] = {}
        self._arguments: dict[int, list[str]] = {}
        self._positions: dict[int, int] = {}
        self._details: list[Json] = []
        self._logprobs: list[Json] = []
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self.response: Json = {}

    @property
    def body(self) -> bytes:
        """The whole reply as JSON."""
        return orjson.dumps(self.response)

    def open(self) -> bytes:
        """The first chunk: the role."""
        self._chunk({"role": "assistant", "content": ""})
        return self.take()

    def keep_alive(self) -> bytes:
        """A comment, for clients that give up on a silent stream."""
        return b": keep-alive\n"

    def feed(self, deltas: Iterable[Delta]) -> None:
        """Turn deltas into chunks; ``take`` has their bytes."""
        for delta in deltas:
            for each in delta.pieces() if isinstance(delta, Run) else (delta,):
                self._apply(each)

    def take(self) -> bytes:
        """The bytes of the chunks since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken

    def close(self) -> bytes:
        """The finish reason, usage if asked for, and ``[DONE]``."""
        finish = self._finish_reason()
        self._chunk({}, finish)
        usage = None if self._usage is None else _usage(self._usage)
        if usage and self._include_usage:
            last = {**self._envelope, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            self._pieces.append(b"data: " + orjson.dumps(last) + b"\n\n")
        logprobs = {"content": self._logprobs} if self._logprobs else None
        choice = {"index": 0, "message": self._message(), "logprobs": logprobs, "finish_reason": finish}
        whole = {**self._envelope, "object": "chat.completion", "choices": [choice]}
        self.response = {**whole, "usage": usage} if usage else whole
        return self.take() + DONE

    def fail(self, error: GymletError) -> bytes:
        """An error in band, as OpenAI's own clients read it, and ``[DONE]``."""
        body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        self._pieces.append(b"data: " + orjson.dumps({"error": body}) + b"\n\n")
        return self.take() + DONE

    def _apply(self, delta: Delta) -> None:
        match delta:
            case Text(text, logprobs):
                self._texts["content"].append(text)
                self._logprobs += logprobs
                self._chunk({"content": text}, logprobs=logprobs)
            case Reasoning(text):
                self._text("reasoning_content", text)
            case Refusal(text):
                self._text("refusal", text)
            case ReasoningDetails(fragments):
                self._details += fragments
                self._chunk({"reasoning_details": fragments})
            case ToolCall(index, call_id, name, extra):
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
                self._calls[index] = {**call, "extra_content": extra} if extra else call
                self._positions[index] = len(self._positions)
                self._arguments[index] = []
                self._chunk({"tool_calls": [{"index": self._positions[index], **self._calls[index]}]})
            case Arguments(index, text):
                self._arguments[index].append(text)
                self._chunk({"tool_calls": [{"index": self._positions[index], "function": {"arguments": text}}]})
            case Finish():
                self._finish = delta
            case Usage():
                self._usage = delta

    def _text(self, key: str, text: str) -> None:
        self._texts[key].append(text)
        self._chunk({key: text})

    def _chunk(self, delta: Json, finish: str | None = None, logprobs: tuple[Json, ...] = ()) -> None:
        scores = b',"logprobs":' + orjson.dumps({"content": logprobs}) if logprobs else b""
        tail = b',"finish_reason":' + orjson.dumps(finish) + b"}]}\n\n"
        self._pieces += (self._prefix, orjson.dumps(delta), scores, tail)

    def _finish_reason(self) -> str:
        reason = self._finish.reason if self._finish else "stop"
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _message(self) -> Json:
        texts = {key: "".join(pieces) for key, pieces in self._texts.items() if pieces}
        calls = [
            {**call, "function": {**call["function"], "arguments": "".join(self._arguments[index]) or "{}"}}
            for index, call in self._calls.items()
        ]
        content = texts.pop("content", None if calls else "")
        message: Json = {"role": "assistant", "content": content, "refusal": None, **texts}
        if self._details:
            message["reasoning_details"] = merge_details(self._details)
        return {**message, "tool_calls": calls} if calls else message


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
