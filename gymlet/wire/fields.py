"""Checks of the client's JSON: each wrong field is named by its path, with what it should be."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError

NUMBER = (int, float)
MAX_ID_CHARS = 512
"""Ids and names come back in every event, and go to the provider each time."""

MAX_SHOWN_CHARS = 80
MAX_DEPTH = 200
_HEADROOM = 254 - MAX_DEPTH
"""What is sent on lies deeper than what came in; 254 levels are the most that can be written."""

_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def parse_object(body: bytes) -> Json:
    """The request body as a JSON object. Raises RequestError where it is none, or nested beyond MAX_DEPTH."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise RequestError(f"the body must be a JSON object, not {kind_of(payload)}")
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        check_depth(payload)
    return payload


def check_depth(payload: Json) -> None:
    """Raise RequestError, naming the key, for what is nested beyond MAX_DEPTH."""
    if _is_deep(payload):
        param = next((str(name) for name, value in payload.items() if _is_deep(value)), None)
        raise RequestError(f"'{param}' is nested deeper than {MAX_DEPTH} levels", param=param)


def _is_deep(value: object) -> bool:
    for _ in range(_HEADROOM):
        value = [value]
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False


def kind_of(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def check(value: object, kinds: tuple[type, ...], path: str) -> None:
    """Raise RequestError unless ``value`` is one of ``kinds``; a JSON boolean is no number."""
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return
    expected = "a number" if kinds == NUMBER else " or ".join(_NAMES[kind] for kind in kinds)
    raise RequestError(f"'{path}' must be {expected}, not {kind_of(value)}", param=path)


def check_fields(holder: Json, table: dict[str, tuple[type, ...]], path: str = "") -> None:
    """Check the fields that are there and not null."""
    for name, value in holder.items():
        if value is not None and name in table and type(value) not in table[name]:
            check(value, table[name], f"{path}{name}")


def need(holder: Json, name: str, kinds: tuple[type, ...], path: str) -> Any:
    """A field that must be there, and not be empty where it is a string."""
    value = holder.get(name)
    if value is None or value == "":
        raise RequestError(f"'{path}' requires a non-empty {name}", param=f"{path}.{name}" if path else name)
    check(value, kinds, f"{path}.{name}" if path else name)
    return value


def need_id(holder: Json, name: str, path: str) -> str:
    """An id, or a name, that must be there."""
    value: str = need(holder, name, (str,), path)
    check_length(value, f"{path}.{name}" if path else name)
    return value


def check_length(value: str, path: str) -> None:
    """Raise RequestError for an id of more than MAX_ID_CHARS characters."""
    if len(value) > MAX_ID_CHARS:
        raise RequestError(f"'{path}' has {len(value)} characters; the most is {MAX_ID_CHARS}", param=path)


def one_of(value: object, choices: Collection[str], path: str) -> None:
    """Raise RequestError unless ``value`` is one of ``choices``, with a near miss."""
    if isinstance(value, str) and value in choices:
        return
    known = sorted(choices)
    said = shown(value)
    near = get_close_matches(said, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    raise RequestError(f"'{path}' is '{said}': {hint}", param=path)


def shown(value: object) -> str:
    """What a client sent, as much of it as a message takes."""
    text = value if isinstance(value, str) else str(orjson.dumps(value), "utf-8")
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
