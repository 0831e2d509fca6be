"""What becomes of each fault of a provider: the table that the tests run and the documentation shows.

A row: the behaviour of the hostile provider (docs/hostile_provider.md), then the outcome of a streamed and of a whole
reply. Both doors must agree. ``attempts`` is how often the provider was asked; with two retries, three is all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, NamedTuple

ALL = 3
"""The first attempt and two retries."""

RETRIES = {"max_retries": ALL - 1, "retry_base_s": 0.01}
IMPATIENT = {"first_byte_timeout_s": 0.5, "idle_timeout_s": 0.5, "total_timeout_s": 1.5}


class Expected(NamedTuple):
    """An outcome. ``words`` are part of the message; ``kind`` is the failure class, which is told with a status."""

    end: Literal["completed", "refused", "failed"]
    attempts: int = 1
    status: int = 200
    kind: str | None = None
    words: str = ""
    retry_after: str | None = None


class Row(NamedTuple):
    """One fault."""

    behaviour: str
    streamed: Expected
    whole: Expected


def good(attempts: int = 1) -> Expected:
    """The right answer, whole."""
    return Expected("completed", attempts)


def refused(status: int, kind: str, attempts: int, words: str = "", retry_after: str | None = None) -> Expected:
    """An HTTP status and an error in JSON."""
    return Expected("refused", attempts, status, kind, words, retry_after)


def in_band(words: str) -> Expected:
    """What was said is kept, then an error, in a stream with status 200; never asked again."""
    return Expected("failed", words=words)


def both(behaviour: str, expected: Expected) -> Row:
    """Streamed or whole, the same."""
    return Row(behaviour, expected, expected)


BROKEN_WHOLE = refused(502, "provider_stream_broken", ALL, "broke off")
BROKEN = (in_band("broke off"), BROKEN_WHOLE)

TABLE = [
    # good, if unusual
    both("ok", good()),
    both("ok:40", good()),
    both("slow:0.1", good()),
    both("paced:0.02", good()),
    both("trickle:0", good()),
    both("gzip", good()),
    both("retry-after-200", good()),
    both("double-answer", good()),
    both("close-kept-alive", good()),
    # throttled
    both("throttle", refused(429, "provider_rate_limited", ALL, "slow down")),
    both("throttle-once", good(2)),
    both("throttle-after:1", good(2)),
    both("throttle-date:1", good(2)),
    both("throttle-ms:200", good(2)),
    both("throttle-reset:200ms", good(2)),
    both("quota", refused(429, "provider_quota_exhausted", 1, "exceeded your current quota")),
    both("quota-day", refused(429, "provider_quota_exhausted", 1, retry_after="86400")),
    # refused
    *(both(f"status:{status}", refused(status, "provider_rejected", 1, f"refuses with {status}"))
      for status in (400, 401, 403, 404, 422)),
    *(both(f"status:{status}", refused(status, "provider_rejected", ALL, f"refuses with {status}"))
      for status in (408, 409, 425)),
    *(both(f"status:{status}", refused(status, "provider_unavailable", ALL, f"refuses with {status}"))
      for status in (500, 502, 503, 504, 529)),
    both("status-once:503", good(2)),
    both("html:503", refused(503, "provider_unavailable", ALL, "Bad gateway, says the page")),
    both("leak", refused(401, "provider_rejected", 1, "Incorrect API key provided: Bearer ****")),
    both("redirect", refused(502, "provider_unavailable", 1, "redirects elsewhere")),
    # an error that says it is none
    both("error-200:429", refused(429, "provider_rate_limited", ALL, "says 429 with a good status")),
    both("error-200:500", refused(500, "provider_unavailable", ALL, "says 500 with a good status")),
    both("error-200:400", refused(400, "provider_rejected", 1, "says 400 with a good status")),
    both("error-200-once:429", good(2)),
    both("error-200-once:500", good(2)),
    # no HTTP, or none that makes sense
    both("html", refused(502, "provider_unavailable", 1, "instead of a reply")),
    both("garbage", refused(502, "provider_unavailable", 1, "did not answer in HTTP")),
    both("long-headers", refused(502, "provider_unavailable", 1, "did not answer in HTTP")),
    both("bad-gzip", refused(502, "provider_stream_broken", 1, "gzip")),
    Row("cut-gzip", in_band(""), refused(502, "provider_stream_broken", 1)),
    Row("wrong-length:short", in_band(""), refused(502, "provider_stream_broken", 1, "not JSON")),
    # the connection breaks
    both("reset-before-headers", refused(502, "provider_unavailable", ALL, "without an answer")),
    both("reset-before-headers-once", good(2)),
    both("reset-after-headers", refused(502, "provider_stream_broken", ALL, "broke off")),
    both("reset-after-headers-once", good(2)),
    Row("reset-mid-stream", *BROKEN),
    Row("reset-mid-stream-once", in_band("broke off"), good(2)),
    Row("half-close", *BROKEN),
    Row("half-close-once", in_band("broke off"), good(2)),
    Row("truncated-chunk", *BROKEN),
    Row("truncated-chunk-once", in_band("broke off"), good(2)),
    Row("wrong-length:long", good(), BROKEN_WHOLE),  # a stream is whole with its [DONE]
    Row("no-last-chunk", good(), BROKEN_WHOLE),
]  # fmt: skip

TIMEOUTS = [
    both("stall-before-headers", refused(504, "timeout", 1, "(first_byte_timeout_s)")),
    both("stall-after-headers", refused(504, "timeout", 1, "(first_byte_timeout_s)")),
    Row("stall-mid-stream", in_band("(idle_timeout_s)"), refused(504, "timeout", 1, "(idle_timeout_s)")),
    Row("trickle:0.05", in_band("(total_timeout_s)"), refused(504, "timeout", 1, "(total_timeout_s)")),
    Row("comments:0.05", in_band("(total_timeout_s)"), refused(504, "timeout", 1, "(total_timeout_s)")),
]


async def until(holds: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Wait for a condition. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  what is watched has no event
            await asyncio.sleep(0.005)
