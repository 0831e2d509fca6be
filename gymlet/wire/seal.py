"""What a provider wants back on the next turn, as the opaque ``encrypted_content`` of a reasoning item.

It is a round trip, not a secret: anyone can read it. It carries a version and an integrity tag over the provider and
the model that it came from, so that what is damaged, or belongs to another model, is refused instead of sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError

VERSION = "gymlet1"
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Thought:
    """One stretch of reasoning, with all that its provider may want back.

    ``details``: OpenRouter's reasoning_details, fragments merged. ``signatures``: Gemini's extra_content by call_id.
    """

    text: str = ""
    details: list[Json] = field(default_factory=list)
    signatures: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seal:
    """Closes thoughts for one provider and model (``origin`` names both), and opens them again."""

    origin: str

    def close(self, thought: Thought) -> str:
        """The thought as text for the client to keep."""
        fields = {"text": thought.text, "details": thought.details, "signatures": thought.signatures}
        payload = orjson.dumps({key: value for key, value in fields.items() if value})
        return f"{VERSION}.{base64.urlsafe_b64encode(self._tag(payload) + payload).decode()}"

    def open(self, text: str, path: str) -> Thought:
        """The thought again. Raises RequestError, naming ``path``, for what this seal did not close."""
        version, _, encoded = text.partition(".")
        if version != VERSION:
            raise _refusal(path, "was not made by this server")
        try:
            raw = base64.b64decode(encoded, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _refusal(path, "is damaged") from None
        tag, payload = raw[:TAG_BYTES], raw[TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(payload)):
            raise _refusal(path, "is damaged, or comes from another provider or model")
        thought = _thought(payload)
        if thought is None:
            raise _refusal(path, "is damaged")
        return thought

    def _tag(self, payload: bytes) -> bytes:
        key = hashlib.blake2b(self.origin.encode()).digest()
        return hashlib.blake2b(payload, key=key, digest_size=TAG_BYTES).digest()


def _refusal(path: str, why: str) -> RequestError:
    return RequestError(
        f"'{path}' {why}; send the reasoning item without it", param=path, code="invalid_encrypted_content"
    )


def _thought(payload: bytes) -> Thought | None:
    """The thought in a payload; anyone can make a tag, so that its shape is checked."""
    try:
        thought = Thought(**orjson.loads(payload))
    except (orjson.JSONDecodeError, TypeError):
        return None
    details, signatures = thought.details, thought.signatures
    shaped = isinstance(thought.text, str) and isinstance(details, list) and isinstance(signatures, dict)
    entries = (*details, *signatures.values()) if shaped else (None,)
    return thought if all(isinstance(entry, dict) for entry in entries) else None


def merge_details(fragments: list[Json]) -> list[Json]:
    """Streamed fragments of reasoning_details as the whole entries that they make: by type and index."""
    merged: dict[tuple[str, str], Json] = {}
    texts: dict[tuple[str, str], dict[str, list[str]]] = {}
    for position, fragment in enumerate(fragments):
        index = fragment.get("index")
        key = (str(fragment.get("type")), str(position if index is None else index))
        entry, said = merged.setdefault(key, {}), texts.setdefault(key, {})
        for name, value in fragment.items():
            if name in ("text", "summary") and isinstance(value, str):
                said.setdefault(name, []).append(value)
                entry[name] = ""
            elif value is not None or name not in entry:
                entry[name] = value
    for key, said in texts.items():
        merged[key] |= {name: "".join(pieces) for name, pieces in said.items()}
    return list(merged.values())
