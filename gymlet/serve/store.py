"""The responses that a later request may begin from, or refer to: kept in memory, the oldest dropped first."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError
from gymlet.wire.request import items_of

MAX_BYTES = 64 * 1024 * 1024
"""What all of them may be together, as JSON."""


class Recalled(NamedTuple):
    """A request with all that it refers to in its ``input``; the first ``earlier`` items come from the store."""

    request: Json
    earlier: int


class Stored(NamedTuple):
    """A response, and the conversation up to its end: a later one shares the items of those before it."""

    response: Json
    items: list[Json]
    item_ids: list[str]
    size_bytes: int


class ResponseStore:
    """The last ``max_responses`` responses. Owns them and their items; nothing outlives the process."""

    def __init__(self, max_responses: int, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, Stored] = OrderedDict()
        self._items: dict[str, Json] = {}
        self._size_bytes = 0

    def takes(self, request: Json) -> bool:
        """Whether the response to this request will be stored: unless the client does not want it."""
        return self._max_responses > 0 and request.get("store") is not False

    def recall(self, request: Json) -> Recalled:
        """A checked request with its earlier items. Raises RequestError for a response that is not here."""
        earlier = self._conversation(request["previous_response_id"]) if request.get("previous_response_id") else []
        return Recalled({**request, "input": [*earlier, *map(self._dereferenced, items_of(request))]}, len(earlier))

    def keep(self, recalled: Recalled, response: Json, echo: list[Json]) -> None:
        """Store a response that has ended, with what it answered; ``echo`` is what it said, reasoning sealed."""
        items = recalled.request["input"]
        item_ids = [item["id"] for item in echo]
        size_bytes = len(orjson.dumps([items[recalled.earlier :], echo]))
        self._responses[response["id"]] = Stored(response, [*items, *echo], item_ids, size_bytes)
        self._items |= zip(item_ids, echo, strict=True)
        self._size_bytes += size_bytes
        while len(self._responses) > self._max_responses or self._size_bytes > self._max_bytes:
            self._drop(next(iter(self._responses)))

    def get(self, response_id: str) -> Json:
        """A stored response. Raises RequestError (404)."""
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
            self._items.pop(item_id, None)

    def _conversation(self, response_id: str) -> list[Json]:
        stored = self._responses.get(response_id)
        if stored is None:
            raise RequestError(
                f"'previous_response_id': there is no stored response '{response_id}' (the last {self._max_responses} "
                "are kept, until the server stops); send the earlier items in 'input'",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        if stored.response["status"] == "failed":
            raise RequestError(
                f"'previous_response_id': the response '{response_id}' failed; go on from the one before it",
                param="previous_response_id",
            )
        return stored.items

    def _dereferenced(self, item: object) -> object:
        """The item that a reference names; a reference to nothing stays, and is refused when it is read."""
        if isinstance(item, dict) and item.get("type") == "item_reference":
            return self._items.get(str(item.get("id")), item)
        return item
