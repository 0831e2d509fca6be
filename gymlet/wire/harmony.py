"""Harmony, the format of gpt-oss, where a server lets it leak into the answer instead of parsing it.

    <|start|>assistant<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>

A header goes from ``<|start|>`` or ``<|channel|>`` to ``<|message|>`` and says what its body is: ``analysis`` is
reasoning, ``to=functions.NAME`` is a call, the rest (``final``, the preambles of ``commentary``) is the answer. Text
without a header is the answer too, and so is what only began like one.
Source: OpenAI's description of the harmony response format.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gymlet.wire.deltas import Arguments, Delta, Reasoning, Text, ToolCall
from gymlet.wire.overlap import overlap

STARTS = ("<|channel|>", "<|start|>")
MAX_HEADER_CHARS = 300
_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>", *STARTS)
_END = re.compile("|".join(map(re.escape, _ENDS)))
_TOOL = re.compile(r"to=functions\.([\w.-]+)")
_CUT_HEADER = re.compile(
    r"(<\|start\|>\w*( to=\S*)?)?(<\|channel\|>\w*( to=[^<\s]*)?\s*(<\|constrain\|>)?\s*\w*)?(<\|?\w*\|?)?"
)
_FIRST_CALL = 1_000_000
"""Calls that leak are counted from here, apart from those that the server did parse."""


class Harmony:
    """Feed text, get deltas. Owns the header, or the end of a body, that is not yet whole."""

    def __init__(self, new_id: Callable[[str], str]) -> None:
        self._new_id = new_id
        self._held = ""
        self._in_body = False
        self._make: Callable[[str], Delta] = Text
        self._calls = 0

    def feed(self, text: str) -> list[Delta]:
        """What is certain once this text is known."""
        text, self._held = self._held + text, ""
        said: list[Delta] = []
        at = 0
        while at < len(text):
            at = self._body(text, at, said) if self._in_body else self._header(text, at, said)
        return said

    def close(self) -> list[Delta]:
        """What was held: no token, or no header; a header that was cut off says nothing."""
        held, self._held = self._held, ""
        if not held or (not self._in_body and _CUT_HEADER.fullmatch(held)):
            return []
        return [self._make(held) if self._in_body else Text(held)]

    def _body(self, text: str, at: int, said: list[Delta]) -> int:
        """The body up to its end; what may be the beginning of a token is held."""
        end = _END.search(text, at)
        if end is None:
            stop = max(at, len(text) - max(overlap(text, token) for token in _ENDS))
            self._held = text[stop:]
        else:
            stop, self._in_body = end.start(), False
        if stop > at:
            said.append(self._make(text[at:stop]))
        if end is None:
            return len(text)
        return stop if end[0] in STARTS else end.end()

    def _header(self, text: str, at: int, said: list[Delta]) -> int:
        head = text[at : at + MAX_HEADER_CHARS]
        token = next((start for start in STARTS if start.startswith(head[: len(start)])), None)
        if token is None:
            self._in_body, self._make = True, Text
            return at
        message = head.find(_MESSAGE)
        if message >= 0:
            self._open(head[:message], said)
            return at + message + len(_MESSAGE)
        if len(head) < MAX_HEADER_CHARS:
            self._held = head
            return len(text)
        self._in_body, self._make = True, Text
        said.append(Text(token))
        return at + len(token)

    def _open(self, header: str, said: list[Delta]) -> None:
        self._in_body = True
        tool = _TOOL.search(header)
        if tool:
            index = _FIRST_CALL + self._calls
            self._calls += 1
            self._make = lambda text: Arguments(index, text)
            said.append(ToolCall(index, self._new_id("call_"), tool[1]))
        else:
            self._make = Reasoning if "analysis" in header else Text
