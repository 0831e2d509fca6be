"""Harmony, the format of gpt-oss, where a server lets it leak into the answer instead of parsing it.

    <|start|>assistant<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>

A header goes from ``<|start|>`` or ``<|channel|>`` to ``<|message|>`` and says what its body is: ``analysis`` is
reasoning, ``to=functions.NAME`` is a call, the rest (``final``, the preambles of ``commentary``) is the answer.
Source: OpenAI's description of the harmony response format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from gymlet.wire.deltas import Arguments, Delta, Reasoning, Text, ToolCall
from gymlet.wire.overlap import overlap

STARTS = ("<|channel|>", "<|start|>")
_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_TOOL = re.compile(r"to=functions\.([\w.-]+)")
_FIRST_CALL = 1_000_000
"""Calls that leak are counted from here, apart from those that the server did parse."""


class Harmony:
    """Feed text, get deltas. Owns the header or the end of a body that is not yet whole."""

    def __init__(self, new_id: Callable[[str], str]) -> None:
        self._new_id = new_id
        self._held = ""
        self._in_body = False
        self._make: Callable[[str], Delta] = Text
        self._calls = 0

    def feed(self, text: str) -> Iterator[Delta]:
        """What is certain once this text is known."""
        text, self._held = self._held + text, ""
        while text:
            if self._in_body:
                body, text = self._split_body(text)
                if body:
                    yield self._make(body)
            else:
                header, found, text = text.partition(_MESSAGE)
                if not found:
                    self._held = header
                    return
                yield from self._open(header)

    def close(self) -> Iterator[Delta]:
        """The end of a body that looked like the beginning of a token; half a header says nothing."""
        held, self._held = self._held, ""
        if held and self._in_body:
            yield self._make(held)

    def _split_body(self, text: str) -> tuple[str, str]:
        """The body up to its end, and what follows it; what may be the beginning of a token is held."""
        ends = [(text.find(token), token) for token in _ENDS if token in text]
        if ends:
            at, token = min(ends)
            self._in_body = False
            return text[:at], text[at:] if token in STARTS else text[at + len(token) :]
        kept = max(overlap(text, token) for token in _ENDS)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], ""

    def _open(self, header: str) -> Iterator[Delta]:
        self._in_body = True
        tool = _TOOL.search(header)
        if tool:
            index = _FIRST_CALL + self._calls
            self._calls += 1
            self._make = lambda text: Arguments(index, text)
            yield ToolCall(index, self._new_id("call_"), tool[1])
        else:
            self._make = Reasoning if "analysis" in header else Text
