"""Chat completions, as providers really send them, read into deltas.

Every provider's field names live here and nowhere else. The reader takes chunks and whole bodies alike. What may change
until the end (usage, the finish reason: some send them on every chunk, some repeat or move them) is kept and given out
by ``close``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile

import orjson

from gymlet.wire.deltas import (
    Arguments,
    Delta,
    Finish,
    FinishReason,
    Json,
    Reasoning,
    ReasoningDetails,
    Refusal,
    Run,
    Text,
    ToolCall,
    Usage,
)
from gymlet.wire.errors import StreamError
from gymlet.wire.logprobs import read_logprobs
from gymlet.wire.provider_errors import error_message
from gymlet.wire.reasoning import TAGS
from gymlet.wire.sse import SseEvent

REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_text")
"""In order of trust; a provider that sends two of them sends the same text twice."""

FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "MAX_TOKENS": "length",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
    "SAFETY": "content_filter",
}
"""Whatever is not listed (stop, tool_calls, eos, eos_token, end_turn, …) is a regular end."""


class ChatReader:
    """Feed parsed chunks, get deltas. Owns the calls seen so far, the last usage and the last finish reason.

    ``new_id(prefix)`` mints the ids of calls that the provider left without one. ``failure`` is the error that the
    provider put into the stream, once it has.
    """

    def __init__(self, new_id: Callable[[str], str], *, completion_excludes_reasoning: bool = False) -> None:
        self._calls = _Calls(new_id)
        self._excludes_reasoning = completion_excludes_reasoning
        self._fields = _ReasoningFields()
        self._usage: Json | None = None
        self._finish: str | None = None
        self._choices = False
        self.failure: StreamError | None = None

    def feed(self, chunk: Json) -> list[Delta]:
        """The deltas of one chunk; an error in it becomes the ``failure``."""
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        if "error" in chunk or "base_resp" in chunk:
            self._check(chunk)
        choices = chunk.get("choices")
        if not choices:
            return []
        self._choices = True
        choice = choices[0]
        if len(choices) > 1 or choice.get("index"):
            choice = _first_choice(choices)
        if choice.get("finish_reason") or choice.get("usage"):
            self._read_end(choice)
        delta = choice.get("delta") or choice.get("message")
        if not delta:
            return []
        deltas = self._read(delta)
        return _with_logprobs(deltas, choice["logprobs"]) if choice.get("logprobs") else deltas

    def close(self, *, done: bool, whole: bool = False) -> list[Delta]:
        """Finish and usage, at the end: ``done`` if a stream ended with ``[DONE]``, ``whole`` if it was no stream.

        It is a failure if the model never said that it had finished, and the reply may have been cut.
        """
        if whole and not self._choices:
            self._fail("the provider's reply has no choices")
        elif self._finish is None and not whole and not (done and self._calls.whole()):
            self._fail("the provider's stream ended before the model had finished (no finish_reason)")
        deltas: list[Delta] = [Finish(FINISH_REASONS.get(self._finish or "", "stop"))]
        if self._usage is not None:
            deltas.append(read_usage(self._usage, excludes_reasoning=self._excludes_reasoning))
        return deltas

    @property
    def steady(self) -> bool:
        """Whether a reasoning field can be read without knowing what came before."""
        return self._fields.steady

    def _read_end(self, choice: Json) -> None:
        if choice.get("usage"):
            self._usage = choice["usage"]
        self._finish = choice.get("finish_reason") or self._finish
        if self._finish == "error" or choice.get("error"):
            self._fail(error_message(choice) or "the provider ended the reply with an error")

    def _check(self, chunk: Json) -> None:
        error = chunk.get("error")
        if not error and not (chunk.get("base_resp") or {}).get("status_code"):
            return
        if FINISH_REASONS.get(self._finish or "") == "length":
            return  # the token limit, told a second time
        self._fail(error_message(chunk) or "the provider sent an error", code=_code(error))

    def _fail(self, message: str, *, code: str | None = None) -> None:
        self.failure = self.failure or StreamError(message, code=code)

    def _read(self, message: Json) -> list[Delta]:
        content = message.get("content")
        deltas: list[Delta] = self._fields.read(message, content)
        if content:
            deltas += (Text(content),) if isinstance(content, str) else _read_parts(content)
        refusal = message.get("refusal")
        if refusal and isinstance(refusal, str):
            deltas.append(Refusal(refusal))
        calls = message.get("tool_calls")
        if calls:
            deltas += self._calls.read(calls, whole="delta" not in message and len(calls) > 1)
        return deltas


class _ReasoningFields:
    """Reasoning in a field of its own. Owns what it takes to tell a repetition from something new.

    Some providers send in each chunk all that was thought so far: a second chunk that begins with the whole first one
    shows it. Some send the same text in tags as well: then the tags are read, and the field is not.
    """

    MIN_SNAPSHOT_CHARS = 8

    def __init__(self) -> None:
        self._said = ""
        self._cumulative: bool | None = None
        self._plain = False
        self._tagged = False

    @property
    def steady(self) -> bool:
        return self._cumulative is False

    def read(self, message: Json, content: object) -> list[Delta]:
        found = next(
            (text for text in map(message.get, REASONING_FIELDS) if text and isinstance(text, str)),
            "",
        )
        details = message.get("reasoning_details")
        if not found and not details:
            return []
        if found and isinstance(content, str) and not self._plain and _begins_block(content):
            self._tagged = True
        self._plain = self._plain or bool(found)
        fragments = tuple(entry for entry in details or () if isinstance(entry, dict))
        if not self._plain:
            found = "".join(str(entry.get("text") or entry.get("summary") or "") for entry in fragments)
        found = self._new(found) if found and not self._tagged else ""
        deltas: list[Delta] = [Reasoning(found)] if found else []
        return [*deltas, ReasoningDetails(fragments)] if fragments else deltas

    def _new(self, text: str) -> str:
        """What of ``text`` was not said before."""
        if self._cumulative is False:
            return text
        said, self._said = self._said, text
        if not said:
            return text
        if len(said) >= self.MIN_SNAPSHOT_CHARS and len(text) > len(said) and text.startswith(said):
            self._cumulative = True
            return text[len(said) :]
        if self._cumulative:
            return "" if said.startswith(text) else text
        self._cumulative = False
        return text


def _begins_block(content: str) -> bool:
    start = content.lstrip()
    return bool(start) and any(start.startswith(tag) or tag.startswith(start) for tag in TAGS)


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
        end = start + len(texts)
        if "" in texts:
            texts = [text for text in texts if text]
        return Run(self._kind, texts) if texts else None, end

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
        self._misses = 0 if (before + b'"', b'"' + after) == (self._before, self._after) else self._misses + 1
        self._before, self._after, self._kind = before + b'"', b'"' + after, type(delta)

    def _strings(self, events: list[SseEvent], start: int) -> list[bytes]:
        """The bytes that stand between the quotes."""
        before, after = self._before, self._after
        strings: list[bytes] = []
        if not before:
            return strings
        first, last = len(before), -len(after)
        for name, data in events[start : start + self.MAX_RUN]:
            if name or not data.startswith(before) or not data.endswith(after):
                break
            strings.append(data[first:last])
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


def _first_choice(choices: list[Json]) -> Json:
    return next((choice for choice in choices if not choice.get("index")), {})


def _with_logprobs(deltas: list[Delta], logprobs: Json) -> list[Delta]:
    """The log probabilities at the text that they belong to; a chunk has one."""
    tokens = read_logprobs(logprobs)
    return [Text(delta.text, tokens) if isinstance(delta, Text) else delta for delta in deltas]


def _code(error: object) -> str | None:
    code = error.get("code") if isinstance(error, dict) else None
    return None if code is None else str(code)


def _read_parts(parts: Iterable[Json]) -> Iterator[Delta]:
    for part in parts:
        if part.get("type") == "thinking":
            text = "".join(inner.get("text", "") for inner in part.get("thinking", ()))
            kind: type[Text | Reasoning] = Reasoning
        else:
            text, kind = part.get("text") or "", Text
        if text and isinstance(text, str):
            yield kind(text)


class _Call:
    """One call as it comes in; its arguments wait while its name is not known."""

    def __init__(self, index: int, provider_id: str) -> None:
        self.index = index
        self.provider_id = provider_id
        self.started = False
        self.pieces: list[str] = []

    def whole(self) -> bool:
        """Whether the arguments so far are JSON."""
        try:
            orjson.loads("".join(self.pieces) or "{}")
        except orjson.JSONDecodeError:
            return False
        return self.started


class _Calls:
    """Which fragment belongs to which call: by index, else by id, else to the last.

    A new call begins with an unseen index; with the same index and another id; without an index, with another id or
    with a name after arguments that are whole.
    """

    def __init__(self, new_id: Callable[[str], str]) -> None:
        self._new_id = new_id
        self._all: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def whole(self) -> bool:
        """Whether there are calls, and the last one's arguments are JSON."""
        return bool(self._all) and self._all[-1].whole()

    def read(self, fragments: list[Json], *, whole: bool) -> Iterator[Delta]:
        for position, fragment in enumerate(fragments):
            index = fragment.get("index")
            if whole and index is None and not fragment.get("id"):
                index = position
            yield from self._feed(fragment, index)

    def _feed(self, fragment: Json, index: int | None) -> Iterator[Delta]:
        function = fragment.get("function") or {}
        name = str(function.get("name") or "")
        call = self._find(index, str(fragment.get("id") or ""), name)
        if not call.started and name:
            call.started = True
            extra = fragment.get("extra_content")
            yield ToolCall(call.index, call.provider_id or self._new_id("call_"), name, extra or None)
            if call.pieces:
                yield Arguments(call.index, "".join(call.pieces))
        text = _arguments_text(function.get("arguments"))
        if text:
            call.pieces.append(text)
            if call.started:
                yield Arguments(call.index, text)

    def _find(self, index: int | None, call_id: str, name: str) -> _Call:
        known = self._known(index, call_id, name)
        if known is None:
            known = _Call(len(self._all), call_id)
            self._all.append(known)
        if isinstance(index, int):
            self._by_index[index] = known
        return known

    def _known(self, index: int | None, call_id: str, name: str) -> _Call | None:
        if isinstance(index, int):
            call = self._by_index.get(index)
            other = call is not None and call_id and call.provider_id and call_id != call.provider_id
            return None if other else call
        if call_id:
            return next((call for call in self._all if call.provider_id == call_id), None)
        last = self._all[-1] if self._all else None
        return None if last is None or (name and last.whole()) else last


def _arguments_text(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else orjson.dumps(arguments).decode()


def read_usage(raw: Json, *, excludes_reasoning: bool = False) -> Usage:
    """Token counts under whatever names the provider has for them.

    Output is ``completion_tokens``, except where the total is larger than prompt + completion: then reasoning was left
    out of it (xAI, Gemini), and output is total - prompt. Reasoning beyond the output is an upstream slip: clamped;
    unless the provider leaves reasoning out of both (``excludes_reasoning``): then it is added to both.
    """
    prompt, completion = _count(raw, "prompt_tokens"), _count(raw, "completion_tokens")
    total = _count(raw, "total_tokens") or prompt + completion
    output = max(completion, total - prompt)
    prompt_details = raw.get("prompt_tokens_details") or {}
    output_details = raw.get("completion_tokens_details") or {}
    reasoning = _count(output_details, "reasoning_tokens") or _count(raw, "reasoning_output_tokens")
    if excludes_reasoning and total == prompt + completion:
        output, total = output + reasoning, total + reasoning
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        total_tokens=total,
        cached_tokens=_count(prompt_details, "cached_tokens")
        or _count(raw, "cached_input_tokens", "prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens"),
        cache_write_tokens=_count(prompt_details, "cache_write_tokens"),
        reasoning_tokens=min(output, reasoning),
    )


def _count(raw: Json, *names: str) -> int:
    for name in names:
        value = raw.get(name)
        if isinstance(value, int | float) and value > 0:
            return int(value)
    return 0
