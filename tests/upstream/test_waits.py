"""How long providers ask to wait, in all the ways they say it."""

import random
import time

import pytest

from gymlet.upstream.waits import asked_wait_s, backoff_s

NOW_S = 1_790_000_000.0  # 2026-09-21T14:13:20Z

ASKED = {
    "seconds": ({"Retry-After": "7"}, b"", 7.0),
    "a fraction": ({"retry-after": "0.5"}, b"", 0.5),
    "a date": ({"Retry-After": "Mon, 21 Sep 2026 14:13:50 GMT"}, b"", 30.0),
    "a date in C's form": ({"Retry-After": "Mon Sep 21 14:13:50 2026"}, b"", 30.0),
    "a date gone by": ({"Retry-After": "Mon, 21 Sep 2026 14:00:00 GMT"}, b"", 0.0),
    "a duration": ({"Retry-After": "1m30s"}, b"", 90.0),
    "milliseconds": ({"retry-after-ms": "250"}, b"", 0.25),
    "milliseconds before seconds": ({"retry-after": "1", "retry-after-ms": "0"}, b"", 0.0),
    "Groq": ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "24m28.8s"}, b"", 1468.8),
    "what is used up counts": (
        {
            "x-ratelimit-remaining-requests": "12",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        b"",
        360.0,
    ),
    "what comes back first": ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "6m0s"}, b"", 0.02),
    "a time of day": ({"x-ratelimit-reset": "1790000012"}, b"", 12.0),
    "a time of day in milliseconds": ({"X-RateLimit-Reset": "1790000012000"}, b"", 12.0),
    "plain seconds": ({"x-ratelimit-reset": "3"}, b"", 3.0),
    "Gemini": ({}, b'{"error":{"details":[{"retryDelay": "33s"}]}}', 33.0),
    "negative": ({"Retry-After": "-5"}, b"", 0.0),
    "nothing": ({}, b"{}", None),
    "nonsense": ({"Retry-After": "soon", "x-ratelimit-reset": "x5s", "retry-after-ms": "nan"}, b"", None),
    "endless": ({"Retry-After": "inf"}, b"", None),
    "endless digits": ({"x-ratelimit-reset-requests": "9" * 400 + "s", "Retry-After": "9" * 400}, b"", None),
    "endless digits of Gemini": ({}, b'{"retryDelay": "%ss"}' % (b"9" * 400), None),
}  # fmt: skip


@pytest.fixture
def far_from_greenwich(monkeypatch):
    """Where this machine stands says nothing of a date in HTTP."""
    with monkeypatch.context() as here:
        here.setenv("TZ", "UTC+5")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(("headers", "body", "expected"), ASKED.values(), ids=ASKED)
@pytest.mark.usefixtures("far_from_greenwich")
def test_what_a_provider_asks_for(headers, body, expected):
    found = asked_wait_s(429, headers, body, now_s=NOW_S)
    assert found == (expected if expected is None else pytest.approx(expected))


OTHERS = {
    "a request's own fault": (400, {"Retry-After": "7", "x-ratelimit-reset-tokens": "24m28.8s"}, None),
    "a key's": (401, {"retry-after-ms": "700"}, None),
    "overload": (503, {"Retry-After": "7", "x-ratelimit-reset-tokens": "24m28.8s"}, 7.0),
    "limits that nobody hit": (500, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "24m"}, None),
}


@pytest.mark.parametrize(("status", "headers", "expected"), OTHERS.values(), ids=OTHERS)
def test_what_other_errors_ask_for(status, headers, expected):
    assert asked_wait_s(status, headers, b"", now_s=NOW_S) == expected


def test_backoff_is_anything_up_to_a_doubling_bound():
    chance = random.Random(1).random
    for attempt, most in ((1, 0.5), (2, 1.0), (3, 2.0), (8, 60.0), (10_000, 60.0)):
        drawn = [backoff_s(attempt, base_s=0.5, most_s=60.0, chance=chance) for _ in range(1000)]
        assert 0 <= min(drawn) < 0.05 * most
        assert 0.95 * most < max(drawn) <= most
