"""Tool calls out of the fragments that providers stream, whatever index and id they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson

from gymlet.wire.deltas import Arguments, Delta, Json, ToolCall


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


class Calls:
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
        """The deltas of one chunk's fragments; ``whole`` says that they are whole calls, one each."""
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
