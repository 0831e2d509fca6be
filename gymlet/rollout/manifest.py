"""What a run was made of, so that the same command goes on with it, and another one does not spoil it."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from gymlet import __version__

Json = dict[str, Any]
SCHEMA_VERSION = 1
COMPARED = ("schema_version", "input", "expansion", "config")
"""The parts that must be the same for a run to be gone on with."""

MAX_SHOWN_CHARS = 80


def describe(input_path: Path, *, expansion: Json, config: Json) -> Json:
    """The manifest of a run that begins: its input's digest, how rows are expanded, the configuration (no secrets)."""
    digest = hashlib.blake2b(digest_size=16)
    with input_path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "schema_version": SCHEMA_VERSION,
        "input": {"name": input_path.name, "blake2b": digest.hexdigest()},
        "expansion": expansion,
        "config": config,
        "gymlet": __version__,
        "started": now(),
        "ended": None,
        "counts": None,
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def differences(old: Json, new: Json) -> list[str]:
    """What differs between two manifests, a line each: path, before, now."""
    return [line for part in COMPARED for line in _differences(old.get(part), new.get(part), part)]


def _differences(old: Any, new: Any, at: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}")
    elif old != new:
        yield f"{at}: was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def describe_end(manifest: Json, counts: Json) -> Json:
    """The manifest of a run that ended, or was stopped."""
    return {**manifest, "ended": now(), "counts": counts}
