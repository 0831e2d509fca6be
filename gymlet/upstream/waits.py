"""How long to wait before a call is tried again: what the provider asks for, and what politeness does. Pure.

Sources: RFC 9110, 10.2.3 (Retry-After, seconds or a date); ``retry-after-ms`` (OpenAI, Azure); ``x-ratelimit-reset-*``
beside ``x-ratelimit-remaining-*`` (OpenAI, Groq, Together, Mistral, …: ``24m28.8s``, ``250ms``, seconds, or the time of
day as seconds or milliseconds since 1970); google.rpc.RetryInfo's ``retryDelay`` in the body (Gemini). All of them mean
something on errors only: some providers send them with every reply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from gymlet.wire.provider_errors import passes

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RETRY_DELAY = re.compile(rb'"retryDelay"\s*:\s*"(\d+(?:\.\d+)?)s"')
_EPOCH_S = 1_000_000_000
"""A greater number of seconds is a time of day, not a duration; a thousand times greater: in milliseconds."""

_RESET, _REMAINING = "x-ratelimit-reset", "x-ratelimit-remaining"


def asked_wait_s(status: int, headers: Mapping[str, str], body: bytes, *, now_s: float) -> float | None:
    """Seconds that an error's headers (any case) or body ask to wait; None where they ask for nothing.

    An error that does not pass by itself asks for nothing, and when limits are reset matters to who hit one: many
    providers send these headers whatever the status is. ``now_s`` is the time of day, in seconds since 1970.
    """
    if not passes(status):
        return None
    told = {name.lower(): value.strip() for name, value in headers.items()}
    for found in (
        _number(told.get("retry-after-ms"), scale=0.001),
        _retry_after(told.get("retry-after"), now_s),
        _resets(told, now_s) if status == 429 else None,
        _retry_delay(body),
    ):
        if found is not None:
            return max(0.0, found)
    return None


def backoff_s(attempt: int, *, base_s: float, most_s: float, chance: Callable[[], float]) -> float:
    """Full jitter (Brooker 2015, "Exponential Backoff And Jitter"): anything up to base · 2^(attempt - 1).

    ``attempt`` counts from 1; ``chance`` draws from [0, 1).
    """
    return chance() * min(most_s, base_s * 2.0 ** min(attempt - 1, 60))


def _number(text: str | None, *, scale: float = 1.0) -> float | None:
    try:
        value = float(text) * scale if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _retry_after(text: str | None, now_s: float) -> float | None:
    if not text:
        return None
    seconds = _number(text)
    if seconds is not None:
        return seconds
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return _duration(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s  # C's asctime names no zone


def _resets(told: Mapping[str, str], now_s: float) -> float | None:
    """When what is used up comes back; where nothing is said to be used up, what comes back first."""
    resets: list[float] = []
    used_up: list[float] = []
    for name, value in told.items():
        if name.startswith(_RESET):
            wait_s = _reset(value, now_s)
            if wait_s is not None:
                resets.append(wait_s)
                if _number(told.get(_REMAINING + name[len(_RESET) :])) == 0:
                    used_up.append(wait_s)
    return max(used_up) if used_up else min(resets, default=None)


def _reset(text: str, now_s: float) -> float | None:
    seconds = _number(text)
    if seconds is None:
        return _duration(text)
    if seconds >= _EPOCH_S * 1000:
        return seconds / 1000 - now_s
    return seconds - now_s if seconds >= _EPOCH_S else seconds


def _duration(text: str) -> float | None:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        return None
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    return seconds if math.isfinite(seconds) else None


def _retry_delay(body: bytes) -> float | None:
    found = _RETRY_DELAY.search(body)
    return _number(found[1].decode()) if found else None
