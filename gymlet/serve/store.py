"""The responses that a later request may begin from, or refer to: kept in memory, the oldest dropped first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError
from gymlet.wire.request import items_of

MAX_BYTES = 64 * 1024 * 1024
"""What all of them may be together."""

ITEM_REFERENCE = "item_reference"


class Recalled(NamedTuple):
    """A request with all that it refers to in its ``input``; the first ``earlier`` items come from these ``turns``."""

    request: Json
    earlier: int
    turns: tuple[bytes, ...]


class Stored(NamedTuple):
    """A response, and the turns up to its end, as JSON: a later one shares the bytes of those before it.

    ``size_bytes`` counts the shared ones as well: they live as long as any that has them.
    """

    response: bytes
    turns: tuple[bytes, ...]
    item_ids: list[str]
    failed: bool

    @property
    def size_bytes(self) -> int:
        """What it takes."""
        return len(self.response) + sum(map(len, self.turns))

    def to_json(self) -> Json:
        """For another process."""
        turns = [turn.decode() for turn in self.turns]
        return {"response": self.response.decode(), "turns": turns, "item_ids": self.item_ids, "failed": self.failed}

    @classmethod
    def from_json(cls, payload: Json) -> Stored:
        """As another process stored it."""
        turns = tuple(turn.encode() for turn in payload["turns"])
        return cls(payload["response"].encode(), turns, payload["item_ids"], payload["failed"])


class ResponseStore:
    """The last ``max_responses`` responses. Owns them; nothing outlives the process."""

    def __init__(self, max_responses: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, Stored] = OrderedDict()
        self._by_item: dict[str, str] = {}
        self._size_bytes = 0
        self._lent: dict[str, Stored] = {}

    def takes(self, request: Json) -> bool:
        """Whether the response to this request will be stored: unless the client does not want it."""
        return self._max_responses > 0 and request.get("store") is not False

    def recall(self, request: Json) -> Recalled:
        """A checked request with its earlier items. Raises RequestError for a response that is not here."""
        turns = self._turns(request["previous_response_id"]) if request.get("previous_response_id") else ()
        earlier = [item for turn in turns for item in orjson.loads(turn)]
        own = map(self._dereferenced, items_of(request))
        return Recalled({**request, "input": [*earlier, *own]}, len(earlier), turns)

    def keep(self, recalled: Recalled, response: Json, body: bytes, echo: list[Json]) -> None:
        """Store a response that has ended, and what it answered; ``echo`` is what it said, reasoning sealed."""
        turn = orjson.dumps([*recalled.request["input"][recalled.earlier :], *echo])
        item_ids = [item["id"] for item in echo]
        failed = response["status"] == "failed"
        stored = Stored(body, (*recalled.turns, turn), item_ids, failed)
        self._responses[response["id"]] = stored
        self._by_item |= dict.fromkeys(item_ids, response["id"])
        self._size_bytes += stored.size_bytes
        while len(self._responses) > self._max_responses or self._size_bytes > self._max_bytes:
            self._drop(next(iter(self._responses)))

    def find(self, name: str) -> Stored | None:
        """The response of this id, or that has an item of this id."""
        return self._responses.get(self._by_item.get(name, name))

    @contextmanager
    def lending(self, stored: Iterable[Stored]) -> Iterator[None]:
        """Responses that others keep can be recalled too, for as long as this lasts."""
        self._lent = {name: each for each in stored for name in (orjson.loads(each.response)["id"], *each.item_ids)}
        try:
            yield
        finally:
            self._lent = {}

    def get(self, response_id: str) -> bytes:
        """A stored response as JSON. Raises RequestError (404)."""
        return self._find(response_id).response

    def delete(self, response_id: str) -> None:
        """Forget a response. Raises RequestError (404)."""
        self._find(response_id)
        self._drop(response_id)

    def _find(self, response_id: str) -> Stored:
        stored = self._responses.get(response_id)
        if stored is None:
            raise RequestError(f"there is no stored response '{response_id}'", status=404, code="not_found")
        return stored

    def _drop(self, response_id: str) -> None:
        stored = self._responses.pop(response_id)
        self._size_bytes -= stored.size_bytes
        for item_id in stored.item_ids:
            del self._by_item[item_id]

    def _turns(self, response_id: str) -> tuple[bytes, ...]:
        stored = self._responses.get(response_id) or self._lent.get(response_id)
        if stored is None:
            raise RequestError(
                f"'previous_response_id': there is no stored response '{response_id}' (the last {self._max_responses} "
                "are kept, until the server stops); send the earlier items in 'input'",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        if stored.failed:
            raise RequestError(
                f"'previous_response_id': the response '{response_id}' failed; go on from the one before it",
                param="previous_response_id",
            )
        return stored.turns

    def _dereferenced(self, item: object) -> object:
        """The item that a reference names; a reference to nothing stays, and is refused when it is read."""
        if not isinstance(item, dict) or item.get("type") != ITEM_REFERENCE:
            return item
        name = str(item.get("id"))
        stored = self._responses[self._by_item[name]] if name in self._by_item else self._lent.get(name)
        if stored is None:
            return item
        turn = orjson.loads(stored.turns[-1])
        return next((each for each in turn if each.get("id") == name), item)


def references(request: Json) -> list[str]:
    """The ids of responses and items that an unchecked request refers to."""
    items = request.get("input")
    refs = [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []
    names = [
        request.get("previous_response_id"),
        *(each.get("id") for each in refs if each.get("type") == ITEM_REFERENCE),
    ]
    return [name for name in names if isinstance(name, str)]
