"""The hostile provider does on the wire what its table says."""

import asyncio
import gzip
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from serve.faults import until

from scripts.hostile.answers import answer_text, stream_events, whole_body
from scripts.hostile.client import Client
from scripts.hostile.faults import FAULTS, MIXED, find
from scripts.hostile.http1 import Body, End, MessageReader, Unreadable, chunk
from scripts.hostile.outcome import CHAT, RESPONSES, ask

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 10.0
A_MOMENT_S = 0.05
"""A connection that says nothing for so long is held open."""

HEAD, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n"


def request(behaviour, message, *, stream, key="sk-0123"):
    body = orjson.dumps(ask(CHAT, message, stream=stream, model=behaviour))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def exchange(hostile, behaviour, message="hi", *, stream=True, enough=lambda got: ends(got) > 0):
    """What comes, and how it ends: open, closed or reset. Once it is ``enough``, an end is not waited for long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hostile.port)
    writer.write(request(behaviour, message, stream=stream))
    got = bytearray()
    try:
        while True:
            async with asyncio.timeout(A_MOMENT_S if enough(got) else BOUND_S):
                piece = await reader.read(1 << 16)
            if not piece:
                return bytes(got), "closed"
            got += piece
    except TimeoutError:
        return bytes(got), "open"
    except ConnectionResetError:
        return bytes(got), "reset"
    finally:
        writer.close()


def ends(raw):
    """How many replies are whole."""
    try:
        return sum(isinstance(event, End) for event in MessageReader().feed(bytes(raw)))
    except Unreadable:
        return 0


def to_its_end(_got):
    return False


def body_of(raw):
    """The whole body of the first reply; b"" if it is not whole."""
    pieces = []
    for event in MessageReader().feed(raw):
        if isinstance(event, Body):
            pieces.append(event.data)
        elif isinstance(event, End):
            return b"".join(pieces)
    return b""


GOOD_STREAM, GOOD_WHOLE = b"".join(stream_events("hi")), whole_body("hi")
HALF = HEAD + b"Content-Type: text/event-stream\r\n" + CHUNKED + b"\r\n" + b"".join(map(chunk, stream_events("hi")[:3]))


@pytest.mark.parametrize(
    "behaviour", ["ok", "slow:0.01", "paced:0.01", "trickle:0", "retry-after-200", "close-kept-alive"]
)
@pytest.mark.parametrize(("stream", "good"), [(True, GOOD_STREAM), (False, GOOD_WHOLE)], ids=["streamed", "whole"])
async def test_a_good_answer_is_whole_and_the_connection_stays(hostile, behaviour, stream, good):
    raw, end = await exchange(await hostile(), behaviour, stream=stream)
    assert (body_of(raw), end) == (good, "open")


REFUSALS = {
    "throttle": (429, None),
    "throttle-after:7": (429, b"Retry-After: 7\r\n"),
    "throttle-date:1": (429, b" GMT\r\n"),
    "throttle-ms:200": (429, b"retry-after-ms: 200\r\n"),
    "throttle-reset:1s": (429, b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 1s\r\n"),
    "quota": (429, b'"code":"insufficient_quota"'),
    "quota-day": (429, b"Retry-After: 86400\r\n"),
    "status:503": (503, b'"code":"overloaded"'),
    "html:502": (502, b"<h1>"),
    "redirect": (307, b"Location: http://127.0.0.1:9/elsewhere\r\n"),
    "leak": (401, b"Bearer sk-0123"),
    "no-such-thing": (404, b"there is no behaviour"),
    "throtle": (404, b"did you mean 'throttle'?"),
}


@pytest.mark.parametrize(("behaviour", "expected"), REFUSALS.items(), ids=REFUSALS)
async def test_a_refusal_has_its_status_and_header(hostile, behaviour, expected):
    raw, end = await exchange(await hostile(), behaviour)
    status, part = expected
    assert raw.startswith(b"HTTP/1.1 %d " % status)
    assert (part or b"") in raw
    assert (part is None) <= (b"etry-" not in raw)
    assert end == "open"


BREAKS = {
    "reset-before-headers": (b"", "reset"),
    "reset-after-headers": (HALF[: HALF.index(b"\r\n\r\n") + 4], "reset"),
    "reset-mid-stream": (HALF, "reset"),
    "stall-before-headers": (b"", "open"),
    "stall-after-headers": (HALF[: HALF.index(b"\r\n\r\n") + 4], "open"),
    "stall-mid-stream": (HALF, "open"),
    "half-close": (HALF, "closed"),
    "truncated-chunk": (HALF + b"400\r\n" + GOOD_STREAM[:50], "closed"),
    "garbage": (b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n", "closed"),
}


@pytest.mark.parametrize(("behaviour", "expected"), BREAKS.items(), ids=BREAKS)
async def test_a_break_is_where_it_should_be(hostile, behaviour, expected):
    still_open = expected[1] == "open"
    assert await exchange(await hostile(), behaviour, enough=lambda got: still_open and got == expected[0]) == expected


LENGTHS = {
    "wrong-length:long": (len(GOOD_WHOLE) + 100, GOOD_WHOLE),
    "wrong-length:short": (len(GOOD_WHOLE) // 2, GOOD_WHOLE),
    "bad-gzip": (len(GOOD_WHOLE), GOOD_WHOLE),
}


@pytest.mark.parametrize(("behaviour", "expected"), LENGTHS.items(), ids=LENGTHS)
async def test_a_length_is_as_wrong_as_said(hostile, behaviour, expected):
    raw, _ = await exchange(
        await hostile(), behaviour, stream=False, enough=to_its_end if "length" in behaviour else ends
    )
    length, body = expected
    assert b"Content-Length: %d\r\n" % length in raw
    assert raw.partition(b"\r\n\r\n")[2] == body


async def test_gzip_is_right_and_cut_gzip_is_cut(hostile):
    provider = await hostile()
    raw, _ = await exchange(provider, "gzip", stream=False)
    assert gzip.decompress(body_of(raw)) == GOOD_WHOLE
    raw, _ = await exchange(provider, "cut-gzip", stream=False)
    with pytest.raises(EOFError):
        gzip.decompress(body_of(raw))


async def test_an_error_with_a_good_status(hostile):
    provider = await hostile()
    for stream, prefix in ((True, b"data: "), (False, b"")):
        raw, _ = await exchange(provider, "error-200:429", stream=stream)
        assert raw.startswith(HEAD)
        assert orjson.loads(body_of(raw).strip().removeprefix(prefix))["error"]["code"] == 429


async def test_endless_bodies_end_when_the_client_hangs_up(hostile):
    provider = await hostile()
    for number, behaviour in enumerate(("comments:0.001", "flood", "long-line", "stall-mid-stream"), 1):
        client = await Client.connect("127.0.0.1", provider.port)
        client.send(CHAT, ask(CHAT, behaviour, stream=True, model=behaviour))
        await until(lambda: provider.provider.in_flight == 1)
        await asyncio.sleep(A_MOMENT_S)
        client.leave()
        await until(lambda: not (provider.provider.in_flight or provider.provider.connections))
        assert provider.counts.closed_early == number
        assert provider.counts.departures[-1]["model"] == behaviour
    assert provider.counts.sent_bytes < 1 << 30


async def test_long_headers_and_no_last_chunk(hostile):
    provider = await hostile()
    raw, _ = await exchange(provider, "long-headers:20000")
    assert b"x-long: " + b"x" * 20000 in raw
    raw, end = await exchange(provider, "no-last-chunk", enough=to_its_end)
    assert raw.endswith(chunk(b"data: [DONE]\n\n"))
    assert end == "closed"


@pytest.mark.parametrize(("behaviour", "end"), [("close-kept-alive", "closed"), ("close-kept-alive:rst", "reset")])
async def test_a_kept_connection_is_closed_as_the_next_request_comes(hostile, behaviour, end):
    provider = await hostile()
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    writer.write(request(behaviour, "one", stream=False))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Connection: keep-alive\r\n" in head
    assert orjson.loads(await reader.readexactly(len(whole_body("one")))) == orjson.loads(whole_body("one"))
    writer.write(request(behaviour, "two", stream=False))
    try:
        assert (await reader.read(), end) == (b"", "closed")
    except ConnectionResetError:
        assert end == "reset"
    finally:
        writer.close()
    assert (provider.counts.requests, provider.counts.dropped_unread) == (1, 1)


async def test_two_answers_to_one_request(hostile):
    raw, _ = await exchange(await hostile(), "double-answer", stream=False, enough=lambda got: ends(got) == 2)
    assert ends(raw) == 2
    assert body_of(raw) == GOOD_WHOLE


ONCE = ["status-once:503", "throttle-once", "throttle-after:1", "reset-mid-stream-once", "error-200-once:500"]


@pytest.mark.parametrize("behaviour", ONCE)
async def test_once_is_counted_by_the_message(hostile, behaviour):
    provider = await hostile()
    for message in ("hi", "you"):
        first, _ = await exchange(provider, behaviour, message, stream=False)
        second, _ = await exchange(provider, behaviour, message, stream=False)
        assert body_of(first) != whole_body(message)
        assert body_of(second) == whole_body(message)
        assert provider.attempts(message) == 2


async def test_every_name_of_the_mix_is_known():
    assert [model for model in MIXED if find(model)[0] not in FAULTS.values()] == []


async def test_the_mix_is_the_same_for_the_same_seed(hostile):
    drawn = []
    for seed in (1, 1, 2):
        provider = await hostile(faults=0.5, seed=seed)
        client = await Client.connect("127.0.0.1", provider.port)
        calls = [provider.provider._draw(Draw(f"message {number}")) for number in range(400)]
        client.leave()
        drawn.append(calls)
    assert drawn[0] == drawn[1] != drawn[2]
    assert 140 < drawn[0].count("ok") < 260
    assert set(drawn[0]) <= {"ok", *MIXED}


class Draw:
    """As much of a call as a draw looks at."""

    def __init__(self, message):
        self.message, self.attempt = message, 1


async def test_the_hidden_limit_refuses_what_is_above_it(hostile):
    provider = await hostile(max_concurrent=3, retry_after_s=2)
    clients = [await Client.connect("127.0.0.1", provider.port) for _ in range(3)]
    for client in clients:
        client.send(CHAT, ask(CHAT, "held", stream=True, model="hold"))
    await until(lambda: provider.provider.in_flight == 3)
    for _ in range(2):
        raw, _ = await exchange(provider, "ok", stream=False)
        assert raw.startswith(b"HTTP/1.1 429")
        assert b"Retry-After: 2\r\n" in raw
    provider.provider.release()
    async with asyncio.timeout(BOUND_S):
        assert all([(await client.reply()).complete for client in clients])
    assert (await exchange(provider, "ok", stream=False))[0].startswith(HEAD)
    assert (provider.counts.most_in_flight, provider.counts.throttled, provider.counts.completed) == (3, 2, 4)


async def test_requests_above_a_minutes_number_are_refused(hostile):
    provider = await hostile(rpm=2)
    replies = [await exchange(provider, "ok", f"m{number}", stream=False) for number in range(3)]
    assert [raw[9:12] for raw, _ in replies] == [b"200", b"200", b"429"]


async def test_a_held_stream_goes_on_until_it_is_released(hostile):
    provider = await hostile()
    client = await Client.connect("127.0.0.1", provider.port)
    client.send(CHAT, ask(CHAT, "hi", stream=True, model="hold:0.05"))
    await asyncio.sleep(0.3)
    async with asyncio.timeout(5):
        control = await Client.connect("127.0.0.1", provider.port)
        assert orjson.loads((await control.ask("/release", {})).body) == {"released": 1}
        reply = await client.reply()
    assert reply.complete
    assert reply.body.count(b" \xe2\x80\xa6") >= 2
    assert reply.body.endswith(b"data: [DONE]\n\n")


async def test_the_counts_are_shown_and_forgotten(hostile):
    provider = await hostile()
    client = await Client.connect("127.0.0.1", provider.port)
    await client.ask(CHAT, ask(CHAT, "a", stream=False, model="ok"), {"Authorization": "Bearer sk-abcd"})
    await client.ask(CHAT, ask(CHAT, "b", stream=False, model="throttle"))
    stats = orjson.loads((await client.get("/stats")).body)
    expected = {
        "requests": 2, "completed": 1, "throttled": 1, "in_flight": 0, "most_in_flight": 1, "open_connections": 1,
        "dropped_unread": 0, "by_fault": {"ok": 1, "throttle": 1}, "by_key": {"…abcd": 1, "…": 1},
        "closed_early": {"count": 0, "last": []},
    }  # fmt: skip
    assert {key: value for key, value in stats.items() if key != "sent_bytes"} == expected
    await client.ask("/reset", {})
    assert orjson.loads((await client.get("/stats")).body)["requests"] == 0


async def test_requests_may_come_in_pieces_chunked_and_one_behind_the_other(hostile):
    provider = await hostile()
    body = orjson.dumps(ask(CHAT, "hi", stream=False, model="ok"))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    raw = (head + chunk(body[:10]) + chunk(body[10:]) + b"0\r\n\r\n") * 2
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    for byte in raw:
        writer.write(bytes((byte,)))
        await asyncio.sleep(0)
    for _ in range(2):
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(GOOD_WHOLE)) == GOOD_WHOLE
    writer.close()


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"model":"ok"}'])
async def test_what_is_no_chat_request_is_refused(hostile, raw):
    provider = await hostile()
    with socket.create_connection(("127.0.0.1", provider.port)) as sock:
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        assert (await asyncio.to_thread(sock.recv, 100)).startswith(b"HTTP/1.1 400 ")


def test_an_answer_tells_whose_it_is_and_whether_it_is_whole():
    assert answer_text("a", 3) == "echo 86f7e437faa5a7fce15d1ddcb9eaeaea377667b8 1 2"
    assert answer_text("a") != answer_text("b")


def test_the_page_shows_every_behaviour():
    listed = subprocess.run(
        [sys.executable, "scripts/hostile_provider.py", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"```text\n{listed.stdout}```" in (ROOT / "docs" / "hostile_provider.md").read_text()


async def test_a_request_through_gymlet_may_choose_the_behaviour(hostile, gymlet):
    server = await gymlet((await hostile()).url, "ok")
    for door in (CHAT, RESPONSES):
        metadata = {"extra_body": '{"behaviour": "status:404"}'}
        assert (await server.post(door, ask(door, "hi", stream=False, metadata=metadata)))[0] == 404
        assert (await server.post(door, ask(door, "hi", stream=False)))[0] == 200
