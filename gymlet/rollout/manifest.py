"""What a run was made of, so that the same command goes on with it, and another one does not spoil it."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson

from gymlet import __version__
from gymlet.config.schema import ModelOptions
from gymlet.rollout.sources import Source
from gymlet.rollout.whole_file import reading
from gymlet.wire.errors import RequestError
from gymlet.wire.profile import Profile

Json = dict[str, Any]
SCHEMA_VERSION = 1
COMPARED = ("schema_version", "input", "expansion", "config")
"""The parts that must be the same for a run to be gone on with."""

UNCOMPARED = ({each.name for each in fields(ModelOptions)} - {each.name for each in fields(Profile)}) | {"num_workers"}
"""Options that say how many calls are made at once, how long one may take, how often it is tried: not what is asked."""

MAX_SHOWN_CHARS = 80


def describe(source: Source, *, expansion: Json, config: Json) -> Json:
    """The manifest of a run that begins: its input's digest, how rows are expanded, the configuration (no secrets)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source.label,
        "input": {"digest": source.fingerprint()},
        "expansion": expansion,
        "config": config,
        "versions": {"gymlet": __version__, "python": platform.python_version()},
        "started": now(),
        "ended": None,
        "counts": None,
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def compare(path: Path, new: Json, *, force: bool) -> Json:
    """The manifest in ``path``. Raises RequestError with what differs from it, unless ``force``."""
    with reading(path):
        text = path.read_bytes()
    try:
        old = orjson.loads(text)
    except orjson.JSONDecodeError:
        old = None
    if not isinstance(old, dict):
        raise RequestError(f"{path} is no manifest; +overwrite=true moves it aside, with the run, and starts afresh")
    lines = differences(old, new)
    if lines and not force:
        shown = "".join(f"\n    {line}" for line in lines)
        raise RequestError(
            f"{path.parent} holds another run, which differs in:{shown}\n"
            "  +overwrite=true moves it aside and starts afresh, +force_resume=true goes on with it all the same, "
            "and another output_jsonl_fpath leaves it alone"
        )
    return old


def differences(old: Json, new: Json) -> list[str]:
    """What differs between two manifests, a line each: path, before, now."""
    return [line for part in COMPARED for line in _differences(old.get(part), new.get(part), part)]


def _differences(old: Any, new: Any, at: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            if key in UNCOMPARED:
                continue
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}")
    elif old != new:
        yield f"{at}: was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def describe_end(manifest: Json, counts: Json) -> Json:
    """The manifest of a run that ended, or was stopped."""
    return {**manifest, "ended": now(), "counts": counts}
