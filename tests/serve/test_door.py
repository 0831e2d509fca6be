"""What comes in over raw sockets: heads that are refused, and bytes that come too late or never."""

import asyncio
import logging
import socket
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import orjson
import pytest
import uvloop
from aiohttp import web
from wire.pipeline import end, text

from gymlet.config.schema import HeadServer
from gymlet.serve.door import listen, open_door

HEAD = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: 2\r\n\r\n{}"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SLOW = "+head_server.header_timeout_s=0.3", "+head_server.body_timeout_s=0.3"


async def connect(server):
    parts = urlsplit(server.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def say(server, *pieces, pause_s=0.0):
    """All that the server answers until it closes."""
    reader, writer = await connect(server)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(pause_s)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


def read(raw):
    """Status, headers and JSON of a reply."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, orjson.loads(body) if body else None


AMBIGUOUS = {
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "the same length twice": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunks twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks of gzip": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks not last": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "the identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n{}",
    "almost chunks": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a tab before chunks": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunks of HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a signed length": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -2\r\n\r\n{}",
    "a length of words": HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    "a length with an underscore": HEAD + b"Content-Length: 0_2\r\n\r\n{}",
    "an empty length": HEAD + b"Content-Length: \r\n\r\n",
    "a length without end": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "bare LF": (HEAD + LENGTH).replace(b"\r\n", b"\n"),
    "one bare LF": HEAD[:-2] + b"\n" + LENGTH,
    "bare CR": HEAD[:-2] + b"\r" + LENGTH,
    "a folded header": HEAD + b"X: a\r\n b\r\n" + LENGTH,
    "a folded first header": b"POST /v1/responses HTTP/1.1\r\n Host: x\r\n" + LENGTH,
    "a zero byte": HEAD + b"X: a\x00b\r\n" + LENGTH,
    "a name with a control character": HEAD + b"X\x01: a\r\n" + LENGTH,
    "a header without a name": HEAD + b": a\r\n" + LENGTH,
    "a header without a colon": HEAD + b"abc\r\n" + LENGTH,
    "two hosts": HEAD + b"Host: y\r\n" + LENGTH,
    "no host": b"POST /v1/responses HTTP/1.1\r\n" + LENGTH,
    "a chunk's size ends in LF": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "a chunk's size is no number": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk of negative size": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer than it says": CHUNKED + b"2\r\n{}0\r\n\r\n",
    "a chunk without end": CHUNKED + b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a length behind the chunks": CHUNKED + b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/1.2": HEAD.replace(b"1.1", b"1.2") + LENGTH,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a proxy's business": b"CONNECT there:80 HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no HTTP": b"hello\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("raw", AMBIGUOUS.values(), ids=AMBIGUOUS)
async def test_what_two_servers_may_read_differently_is_refused(provider, gymlet, caplog, raw):
    caplog.set_level(logging.INFO)
    status, headers, body = read(await say(await gymlet(provider.url), raw))
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert headers["x-request-id"].startswith("req_")
    assert provider.requests == []
    assert not caplog.records, "what strangers send fills no log"


@pytest.mark.parametrize("piece", [b"2\n{}\r\n", b"zz\r\n", b"2\r\n{}0"], ids=["LF", "no size", "too long"])
async def test_a_body_that_goes_wrong_after_its_head_is_refused(provider, gymlet, caplog, piece):
    raw = await say(await gymlet(provider.url), CHUNKED, piece, pause_s=0.1)
    status, headers, body = read(raw)
    assert (status, headers["connection"]) == (400, "close")
    assert "the body cannot be read" in body["error"]["message"]
    assert not caplog.records


NO_TEXT = {"an origin": (b"Origin", 403), "an expectation": (b"Expect", 400), "a key": (b"x-api-key", 200)}


@pytest.mark.parametrize(("name", "expected"), NO_TEXT.values(), ids=NO_TEXT)
async def test_a_header_that_is_no_text_is_answered_in_json(provider, gymlet, caplog, name, expected):
    asked = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + name + b": \xff\xfe\r\n\r\n"
    status, headers, _ = read(await say(await gymlet(provider.url), asked))
    assert (status, headers["content-type"]) == (expected, "application/json; charset=utf-8")
    assert not caplog.records


async def test_who_leaves_before_he_may_continue_fills_no_log(provider, gymlet, caplog):
    server = await gymlet(provider.url)
    for _ in range(20):
        _, writer = await connect(server)
        writer.write(HEAD + b"Expect: 100-continue\r\n" + LENGTH)
        writer.write_eof()
        await asyncio.sleep(0.01)
        writer.transport.abort()
    assert not caplog.records


TOO_LARGE = {
    "a long header": HEAD + b"X: " + b"x" * 9000 + b"\r\n",
    "a long name": HEAD + b"x" * 9000 + b": x\r\n",
    "a long path": b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n",
    "many headers": HEAD + b"X: y\r\n" * 200,
}


@pytest.mark.parametrize("head", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_head_that_is_too_large_is_a_431(provider, gymlet, caplog, head):
    status, _, body = read(await say(await gymlet(provider.url), head + LENGTH))
    assert (status, body["error"]["type"]) == (431, "invalid_request_error")
    assert "128 headers" in body["error"]["message"] or "8190 bytes" in body["error"]["message"]
    assert not caplog.records


async def test_what_cannot_be_expected_is_refused_as_json(provider, gymlet):
    raw = await say(await gymlet(provider.url), HEAD + b"Expect: wonders\r\nConnection: close\r\n" + LENGTH)
    status, _, body = read(raw)
    assert (status, body["error"]["type"]) == (417, "invalid_request_error")


async def test_a_body_that_is_awaited_is_asked_for(provider, gymlet):
    body = b'{"input":"hi"}'
    head = HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    raw = await say(await gymlet(provider.url), head, body, pause_s=0.1)
    assert raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


LATE = {
    "the rest of the head": ((HEAD,), "the head of the request did not come in 0.3 s"),
    "the body": ((HEAD + b"Content-Length: 2\r\n\r\n",), "no more of the body came for 0.3 s"),
    "the rest of the body": ((HEAD + b"Content-Length: 2\r\n\r\n{",), "no more of the body came for 0.3 s"),
    "the last chunk": ((CHUNKED + b"2\r\n{}\r\n",), "no more of the body came for 0.3 s"),
}


@pytest.mark.parametrize(("pieces", "words"), LATE.values(), ids=LATE)
async def test_what_does_not_come_is_not_waited_for(provider, gymlet, caplog, pieces, words):
    raw = await say(await gymlet(provider.url, "plain", *SLOW), *pieces, pause_s=0.02)
    status, headers, body = read(raw)
    assert (status, headers["connection"], headers["x-request-id"][:4]) == (408, "close", "req_")
    assert body["error"]["message"] == words
    assert not caplog.records


TRICKLES = {
    "head": (b"GET /", b"x", "+head_server.header_timeout_s=0.3", "the head of the request did not come in 0.3 s"),
    "body": (HEAD + b"Content-Length: 1000\r\n\r\n", b" ", "+head_server.body_timeout_s=0.05", "the body did not come in 0.5 s"),
}  # fmt: skip


@pytest.mark.parametrize(("start", "drop", "setting", "words"), TRICKLES.values(), ids=TRICKLES)
async def test_what_comes_drop_by_drop_is_not_waited_for(provider, gymlet, start, drop, setting, words):
    reader, writer = await connect(await gymlet(provider.url, "plain", setting))
    writer.write(start)

    async def trickle():
        while True:
            writer.write(drop)
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    try:
        async with asyncio.timeout(5):
            status, _, body = read(await reader.readuntil(b"}}"))
    finally:
        trickling.cancel()
        writer.close()
    assert (status, body["error"]["message"]) == (408, words)


NOT_LET_IN = {
    "stands still": (b"Content-Length: 9\r\n\r\n", b""),
    "has wrong chunks": (b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"),
    "is no gzip": (b"Content-Encoding: gzip\r\nContent-Length: 99\r\n\r\n", b"no gzip" * 9),
}


@pytest.mark.parametrize(("head", "piece"), NOT_LET_IN.values(), ids=NOT_LET_IN)
async def test_the_body_of_who_is_not_let_in_fills_no_log(provider, gymlet, caplog, head, piece):
    server = await gymlet(provider.url, "plain", "head_server.api_key=the-key", *SLOW)
    raw = await say(server, HEAD + head, piece, pause_s=0.1)
    assert read(raw)[0] == 401
    assert not caplog.records


async def test_requests_that_come_together_are_answered_in_turn(provider, gymlet):
    body = b'{"input":"hi"}'
    post = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    get = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    raw = await say(await gymlet(provider.url), post + get + b"\r\n" + post + get + b"Connection: close\r\n\r\n")
    bodies = [part.partition(b"\r\n\r\n")[2][:15] for part in raw.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b'{"id":"resp_' + bodies[0][12:], b'{"status":"ok"}', bodies[2], b'{"status":"ok"}']
    assert len(provider.requests) == 2


async def test_who_says_nothing_is_sent_away_without_a_word(provider, gymlet):
    assert await say(await gymlet(provider.url, "plain", *SLOW)) == b""


async def test_an_idle_connection_is_closed_after_a_while(provider, gymlet, monkeypatch):
    monkeypatch.setattr("gymlet.serve.door.KEEP_ALIVE_S", 0.2)
    raw = await say(await gymlet(provider.url), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert read(raw)[2] == {"status": "ok"}


async def test_a_stream_outlives_the_deadlines(serve_bytes, gymlet):
    upstream = await serve_bytes([text("a"), text("b"), end()], delay_s=0.4)
    server = await gymlet(upstream.url, "m", *SLOW)
    status, _, raw = await server.post("/v1/responses", {"input": "hi", "stream": True})
    assert (status, b"response.completed" in raw) == (200, True)


async def test_a_kept_connection_serves_a_request_after_the_other(provider, gymlet):
    server = await gymlet(provider.url, "plain", "head_server.header_timeout_s=1")
    reader, writer = await connect(server)
    for _ in range(3):
        for piece in (b"GET /health HT", b"TP/1.1\r\nHost: x\r\n\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.05)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(15) == b'{"status":"ok"}'
        await asyncio.sleep(1.2)
    writer.close()


async def test_the_clients_headers_do_not_reach_the_provider(serve, gymlet):
    seen = []

    async def hear(reader, writer):
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(hear, "127.0.0.1", 0)
    server = await gymlet(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", "m")
    given = {
        "Authorization": "Bearer of-the-client", "x-api-key": "of-the-client", "Cookie": "of-the-client=1",
        "x-request-id": "of-the-client", "X-Forwarded-For": "of-the-client", "TE": "trailers", "User-Agent": "of-the-client",
        "Proxy-Authorization": "of-the-client", "Accept-Encoding": "br", "Traceparent": "of-the-client",
    }  # fmt: skip
    for path in ("/v1/responses", "/v1/chat/completions"):
        await server.post(path, {"input": "hi", "messages": []}, **given)
    listener.close()
    names = sorted({line.partition(":")[0].lower() for head in seen for line in head.split("\r\n")[1:] if line})
    assert names == [
        "accept",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    ]
    assert "of-the-client" not in "".join(seen)
    assert "br" not in "".join(seen).split("Accept-Encoding: ")[1].split("\r\n")[0]


def test_several_are_let_in_in_one_turn_of_the_loop():
    """A server that is busy has long turns: who is new would wait for as many of them as there are others before."""

    async def turns_until_all_are_in(count):
        sock = listen("127.0.0.1", 0)
        async with open_door(web.Application(), [sock], HeadServer()) as door, AsyncExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(sock.getsockname()))
            turns = 0
            while len(door._web_server.connections) < count:
                await asyncio.sleep(0)
                turns += 1
            return turns

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns_until_all_are_in(96)) <= 96 // 4
