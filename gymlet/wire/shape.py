"""The way past the JSON parser: chunks that are the same bytes around another text."""

from __future__ import annotations

from itertools import takewhile

import orjson

from gymlet.wire.deltas import Delta, Reasoning, Run, Text
from gymlet.wire.sse import SseEvent


class TextShape:
    """The chunk that comes again and again, with another text in it.

    Most chunks of a stream are the same bytes around one string. Once one was parsed and gave nothing but text, chunks
    with the same bytes around a string say the same with that text: many of them are read by parsing one list of
    strings. Providers that put something new into each chunk are given up on after MAX_MISSES.
    """

    MAX_MISSES = 8
    MAX_RUN = 256

    def __init__(self) -> None:
        self._before = b""
        self._after = b""
        self._kind: type[Text | Reasoning] = Text
        self._misses = 0

    def run(self, events: list[SseEvent], start: int) -> tuple[Run | None, int]:
        """What the events of this shape say, from ``start`` on, and where they end."""
        strings = self._strings(events, start)
        texts = _parse_strings(strings) if strings else []
        if strings and not texts:
            self._forget()
        return Run(self._kind, texts) if texts else None, start + len(texts)

    def learn(self, data: bytes, deltas: list[Delta], *, steady: bool) -> None:
        """Take the shape of a chunk that was parsed; ``steady`` says whether its reasoning needs no memory."""
        if self._misses >= self.MAX_MISSES or len(deltas) != 1:
            return
        delta = deltas[0]
        if not isinstance(delta, Text | Reasoning) or (isinstance(delta, Reasoning) and not steady):
            return
        if isinstance(delta, Text) and delta.logprobs:
            return
        before, _, after = data.partition(orjson.dumps(delta.text))
        if not after or orjson.dumps(delta.text) in after:
            return
        if self._before:
            self._misses = 0 if (before + b'"', b'"' + after) == (self._before, self._after) else self._misses + 1
        self._before, self._after, self._kind = before + b'"', b'"' + after, type(delta)

    def _forget(self) -> None:
        """What looks like the shape says something else: looking on would cost more than it saves."""
        self._before = self._after = b""
        self._misses += 1

    def _strings(self, events: list[SseEvent], start: int) -> list[bytes]:
        """The bytes that stand between the quotes."""
        before, after = self._before, self._after
        strings: list[bytes] = []
        if not before:
            return strings
        first, last = len(before), -len(after)
        for name, data in events[start : start + self.MAX_RUN]:
            string = data[first:last]
            if name or not string or not data.startswith(before) or not data.endswith(after):
                break
            strings.append(string)
        return strings


def _parse_strings(strings: list[bytes]) -> list[str]:
    """The strings, up to the first that is none: a quote that is not escaped would make two of one."""
    texts = _parse_list(b'["' + b'","'.join(strings) + b'"]')
    if len(texts) == len(strings):
        return texts
    one_by_one = (_parse_list(b'["' + string + b'"]') for string in strings)
    return [texts[0] for texts in takewhile(lambda texts: len(texts) == 1, one_by_one)]


def _parse_list(raw: bytes) -> list[str]:
    try:
        parsed: list[str] = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return []
    return parsed
