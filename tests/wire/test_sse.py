"""The decoder follows the standard, wherever the bytes are cut."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gymlet.wire.errors import StreamError
from gymlet.wire.sse import SseDecoder

pytestmark = pytest.mark.pure

CASES = {
    "one event": (b"data: a\n\n", [("", b"a")]),
    "no space after the colon": (b"data:a\n\n", [("", b"a")]),
    "only one space is dropped": (b"data:  a\n\n", [("", b" a")]),
    "data lines are joined by LF": (b"data: a\ndata: b\n\n", [("", b"a\nb")]),
    "an event has a name": (b"event: error\ndata: a\n\n", [("error", b"a")]),
    "a name without data is no event": (b"event: ping\n\ndata: a\n\n", [("", b"a")]),
    "comments are skipped": (b": OPENROUTER PROCESSING\n\ndata: a\n\n", [("", b"a")]),
    "id and retry are skipped": (b"id: 1\nretry: 5\ndata: a\n\n", [("", b"a")]),
    "CR ends lines": (b"data: a\r\rdata: b\r\r", [("", b"a"), ("", b"b")]),
    "CRLF ends lines": (b"data: a\r\ndata: b\r\n\r\n", [("", b"a\nb")]),
    "a BOM is dropped": (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
    "U+2028 ends no line": ("data: a\u2028b\n\n".encode(), [("", "a\u2028b".encode())]),
    "empty data is no event": (b"data:\n\ndata: \n\ndata\n\ndata: a\n\n", [("", b"a")]),
    "an empty data line counts": (b"data\ndata: a\n\n", [("", b"\na")]),
    "the last event needs no blank line": (b"data: a", [("", b"a")]),
    "an error line is an event": (b'error: {"detail":"x"}\n\n', [("error", b'{"detail":"x"}')]),
}


def decode(body, sizes):
    decoder = SseDecoder()
    events = []
    start = 0
    for size in sizes:
        events += decoder.feed(body[start : start + size])
        start += size
    return events + decoder.feed(body[start:]) + decoder.close()


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_decodes(body, expected):
    assert decode(body, []) == expected


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_decodes_byte_by_byte(body, expected):
    assert decode(body, [1] * len(body)) == expected


@given(st.lists(st.sampled_from([*(body for body, _ in CASES.values())]), max_size=5), st.lists(st.integers(0, 7)))
def test_cuts_change_nothing(bodies, sizes):
    body = b"".join(bodies)
    assert decode(body, sizes) == decode(body, [])


LINES = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data: a", b"data:", b"event: e", b": c", b"error: x"])).map(
    b"".join
)


@given(LINES | st.binary(max_size=200), st.lists(st.integers(0, 9)))
@example(b"data: a\r\n\ndata: b", [1] * 20)
def test_any_bytes_decode_alike_however_cut(body, sizes):
    assert decode(body, sizes) == decode(body, [])


@pytest.mark.parametrize(
    "body", [b"data: " + b"x" * 200, b"data: xxxx\n" * 40, b"error: xxxx\n" * 40], ids=["one", "many", "errors"]
)
def test_an_endless_event_is_refused(body):
    decoder = SseDecoder(max_event_bytes=100)
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    with pytest.raises(StreamError, match="more than 100 bytes"):
        _ = [decoder.feed(piece) for piece in pieces]


def test_many_events_do_not_add_up_to_the_limit():
    decoder = SseDecoder(max_event_bytes=100)
    assert len([event for _ in range(1000) for event in decoder.feed(b"data: xxxxxxxxxx\n\n")]) == 1000
