"""Tool calls out of the fragments that providers stream, whatever index and id they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson

from gymlet.wire.deltas import Arguments, Delta, Json, ToolCall
from gymlet.wire.json_text import JsonText


class _Call:
    """One call as it comes in; its arguments wait while its name is not known."""

    def __init__(self, index: int, call_id: str) -> None:
        self.index = index
        self.id = call_id
        self.name = ""
        self.arguments = JsonText()

    def is_over(self, name: str, text: str, *, placed: bool) -> bool:
        """Whether a fragment like this begins another call; ``placed``: it says where it belongs."""
        if not name or not self.name:
            return False
        if self.arguments:
            return self.arguments.whole() and (bool(text) or not placed)
        return name != self.name and not placed


class Calls:
    """Which fragment belongs to which call: by index, else by id, else to the last.

    A new call begins with an unseen index or id; with the same index and another id; and with a name and arguments
    after arguments that are whole.
    """

    def __init__(self, new_id: Callable[[str], str]) -> None:
        self._new_id = new_id
        self._all: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def whole(self) -> bool:
        """Whether there are calls, and the arguments of all of them are JSON."""
        return bool(self._all) and all(call.name and call.arguments.whole() for call in self._all)

    def nameless(self) -> bool:
        """Whether there is a call whose name never came."""
        return any(not call.name for call in self._all)

    def read(self, fragments: list[Json], *, whole: bool) -> Iterator[Delta]:
        """The deltas of one chunk's fragments; ``whole`` says that each is a call of its own."""
        for fragment in fragments:
            function = fragment.get("function") or {}
            name = str(function.get("name") or "")
            text = _arguments_text(function.get("arguments"))
            call = self._find(
                None if whole else fragment.get("index"), str(fragment.get("id") or ""), name, text, whole
            )
            yield from self._feed(call, name, text, fragment.get("extra_content"))

    def _feed(self, call: _Call, name: str, text: str, extra: Json | None) -> Iterator[Delta]:
        if not call.name and name:
            call.name = name
            yield ToolCall(call.index, call.id or self._new_id("call_"), name, extra or None)
            if call.arguments:
                yield Arguments(call.index, str(call.arguments))
        if text:
            call.arguments.feed(text)
            if call.name:
                yield Arguments(call.index, text)

    def _find(self, index: object, call_id: str, name: str, text: str, whole: bool) -> _Call:
        known = None if whole else self._known(index, call_id)
        if known is not None and known.is_over(name, text, placed=isinstance(index, int) or bool(call_id)):
            known = None
        if known is None:
            known = _Call(len(self._all), "" if call_id in self._by_id else call_id)
            self._all.append(known)
            if call_id:
                self._by_id[call_id] = known
        if isinstance(index, int):
            self._by_index[index] = known
        return known

    def _known(self, index: object, call_id: str) -> _Call | None:
        if isinstance(index, int):
            call = self._by_index.get(index)
            other = call is not None and call_id and call.id and call_id != call.id
            return None if other else call
        if call_id:
            return self._by_id.get(call_id)
        return self._all[-1] if self._all else None


def _arguments_text(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else orjson.dumps(arguments).decode()
