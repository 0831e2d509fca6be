"""Providers that misbehave on a real socket, and clients that send what cannot be read."""

import asyncio
import gzip

import orjson
import pytest
from aiohttp import web
from wire.pipeline import DONE, check_grammar, chunk, end, parse_events, shape, text

KEY = "sk-very-secret-0123456789"
SSE = {"input": "hi", "stream": True}
LEAK = orjson.dumps({"error": {"message": f"Incorrect API key: {KEY}", "code": "invalid_api_key"}})
OPTIONS = "++policy_model.responses_api_models.inference_provider."


@pytest.fixture
async def serve_raw(serve):
    """A provider that answers with these bytes and headers, and leaves the connection open for a while."""

    async def start(*pieces, content_type="text/event-stream", linger_s=0.0, **headers):
        async def completions(request):
            await request.read()
            response = web.StreamResponse(headers={"Content-Type": content_type, **headers})
            await response.prepare(request)
            for piece in pieces:
                if isinstance(piece, bytes):
                    await response.write(piece)
                else:
                    await asyncio.sleep(piece)
            await asyncio.sleep(linger_s)
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        return await serve(app)

    return start


async def stream(server):
    _, _, raw = await server.post("/v1/responses", SSE)
    events = parse_events(raw)
    check_grammar(events)
    return events


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_done_ends_a_reply_whose_connection_stays_open(serve_raw, gymlet, streamed):
    provider = await serve_raw(text("a") + chunk({}, "stop") + DONE, linger_s=3)
    server = await gymlet(provider.url, "m", f"{OPTIONS}num_concurrent_requests=1")
    async with asyncio.timeout(2):
        for _ in range(2):
            status, _, raw = await server.post("/v1/responses", {"input": "hi", "stream": streamed})
            assert status == 200
            assert b'"status":"completed"' in raw


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json", "text/plain"])
async def test_a_key_in_a_reply_with_a_good_status_is_hidden(serve_raw, gymlet, path, streamed, content_type):
    body = b"data: " + LEAK + b"\n\n" if content_type == "text/event-stream" else LEAK
    server = await gymlet((await serve_raw(body, content_type=content_type)).url)
    _, _, raw = await server.post(path, {"input": "hi", "messages": [], "stream": streamed})
    assert b"Incorrect API key: ****" in raw
    assert KEY.encode() not in raw


async def test_a_key_in_a_header_or_behind_an_escape_is_hidden(gymlet, serve):
    async def completions(_request):
        body = LEAK.replace(b"very", b"v\\u0065ry")
        return web.Response(status=401, body=body, headers={"x-request-id": KEY}, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    status, headers, raw = await (await gymlet((await serve(app)).url)).post("/v1/responses", {"input": "hi"})
    assert (status, headers["x-request-id"]) == (401, "****")
    assert KEY.encode() not in raw


SILENT = {
    "silence": (0.4, end()),
    "comments": (*(b": processing\n\n", 0.05) * 8, end()),
    "empty chunks": (*(chunk({}), 0.05) * 8, end()),
}


@pytest.mark.parametrize("pieces", SILENT.values(), ids=SILENT)
async def test_a_client_that_hears_nothing_is_told_that_all_is_well(serve_raw, gymlet, monkeypatch, pieces):
    monkeypatch.setattr("gymlet.serve.streaming.KEEP_ALIVE_S", 0.1)
    events = await stream(await gymlet((await serve_raw(text("a"), *pieces)).url))
    assert [event["type"] for event in events].count("response.in_progress") >= 3


async def test_a_whole_body_that_is_late_is_waited_for_with_signs_of_life(serve_raw, gymlet, monkeypatch):
    monkeypatch.setattr("gymlet.serve.streaming.KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr("gymlet.upstream.call.FIRST_BYTE_PATIENCE_S", 0.05)
    body = orjson.dumps({"choices": [{"message": {"content": "late"}, "finish_reason": "stop"}]})
    provider = await serve_raw(0.4, body, content_type="application/json")
    events = await stream(await gymlet(provider.url))
    assert [event["type"] for event in events].count("response.in_progress") >= 3
    assert shape(events[-1]["response"]) == [("message", "late")]


async def test_bytes_that_are_not_compressed_as_they_say_fail_in_band(gymlet, serve):
    async def completions(request):
        await request.read()
        body = text("a") + end()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        request.transport.write(head.encode() + body)
        await asyncio.sleep(0.5)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    server = await gymlet((await serve(app)).url)
    status, _, raw = await server.post("/v1/responses", SSE)
    assert status == 502 or parse_events(raw)[-1]["type"] == "response.failed"
    assert (await server.post("/v1/responses", {"input": "hi"}))[0] == 502


@pytest.mark.parametrize(
    "asked", [b"1\x01", b"\x7f", b"\xff", b"1" * 5000], ids=["control", "delete", "no text", "long"]
)
async def test_a_retry_after_that_is_no_header_is_not_passed_on(gymlet, serve, caplog, asked):
    async def completions(request):
        await request.read()
        request.transport.write(b"HTTP/1.1 429 No\r\nRetry-After: " + asked + b"\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.5)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    status, headers, _ = await (await gymlet((await serve(app)).url)).post("/v1/responses", SSE)
    assert (status, headers.get("Retry-After")) == (429, None)
    assert not caplog.records


WHOLE = orjson.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "text/event-stream"])
@pytest.mark.parametrize("body", [WHOLE, b"\xef\xbb\xbf\n " + WHOLE], ids=["plain", "BOM"])
async def test_a_body_is_what_its_first_byte_says(serve_raw, gymlet, body, content_type, streamed):
    server = await gymlet((await serve_raw(body, content_type=content_type)).url)
    _, _, raw = await server.post("/v1/responses", {"input": "hi", "stream": streamed})
    response = parse_events(raw)[-1]["response"] if streamed else orjson.loads(raw)
    assert shape(response) == [("message", "hi")]


async def test_a_body_without_end_is_not_kept(serve_raw, gymlet, monkeypatch):
    monkeypatch.setattr("gymlet.serve.streaming.MAX_BODY_BYTES", 100_000)
    provider = await serve_raw(b"{", *(b" " * 60_000,) * 3, content_type="application/json")
    status, answer = await (await gymlet(provider.url)).post_json("/v1/responses", {"input": "hi"})
    assert status == 502
    assert "more than 100000 bytes" in answer["error"]["message"]


async def test_a_small_stream_that_unpacks_to_a_large_one_holds_nobody_up(serve_raw, gymlet):
    packed = gzip.compress((b": " + b"x" * 1000 + b"\n\n") * 100_000 + text("so much") + end(), 1)
    server = await gymlet((await serve_raw(packed, **{"Content-Encoding": "gzip"})).url)
    large = asyncio.create_task(server.post("/v1/responses", SSE))
    while (await server.get_json("/policy_model/limits"))[1]["sent"] == 0:
        pass
    for _ in range(5):
        assert (await server.get_json("/health"))[0] == 200
    assert not large.done()
    assert b'"status":"completed"' in (await large)[2]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_a_stream_without_end_is_ended(serve_raw, gymlet, monkeypatch, path):
    monkeypatch.setattr("gymlet.serve.streaming.MAX_STREAM_BYTES", 100_000)
    provider = await serve_raw(*(text("so much"), *(text("x" * 1000),) * 1000), linger_s=10)
    async with asyncio.timeout(5):
        status, _, raw = await (await gymlet(provider.url)).post(path, {"input": "hi", "messages": [], "stream": True})
    assert (status, raw.endswith(b"data: [DONE]\n\n")) == (200, True)
    assert b"so much" in raw
    assert b"more than 100000 bytes" in raw


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_an_error_of_ours_ends_a_stream_in_band(serve_raw, gymlet, monkeypatch, path):
    def broken(*_args, **_options):
        raise ZeroDivisionError

    monkeypatch.setattr("gymlet.wire.chat.ChatReader.close", broken)
    provider = await serve_raw(text("a"), 0.1, end())
    status, _, raw = await (await gymlet(provider.url)).post(path, {"input": "hi", "messages": [], "stream": True})
    assert status == 200
    assert raw.endswith(b"data: [DONE]\n\n")
    assert b"internal error" in raw


async def test_a_request_that_is_not_compressed_as_it_says_is_refused(provider, gymlet):
    server = await gymlet(provider.url)
    status, _, raw = await server.post("/v1/responses", b"no gzip", **{"Content-Encoding": "gzip"})
    assert status == 400
    assert orjson.loads(raw)["error"]["message"].startswith("the body cannot be read")


async def test_the_query_of_a_base_url_stays_and_is_not_shown(serve, gymlet, free_port):
    asked = []

    async def completions(request):
        asked.append(str(request.rel_url))
        return web.Response(body=WHOLE, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    url = (await serve(app)).url
    server = await gymlet(url, "m", f"{OPTIONS}base_url='{url}/v1?api-version=1'")
    assert (await server.post("/v1/responses", {"input": "hi"}))[0] == 200
    assert asked == ["/v1/chat/completions?api-version=1"]
    server = await gymlet(url, "m", f"{OPTIONS}base_url='http://127.0.0.1:{free_port}/v1?code=hidden'")
    _, answer = await server.post_json("/v1/responses", {"input": "hi"})
    assert "hidden" not in answer["error"]["message"]


CUT = {
    "an error": (400, "application/json", orjson.dumps({"error": {"message": "x" * 1985 + " " + KEY}})),
    "an error with a good status": (200, "application/json", orjson.dumps({"error": "x" * 1985 + " " + KEY})),
    "an error in a stream": (200, "text/event-stream", b'data: {"error": "%s %b"}\n\n' % (b"x" * 1985, KEY.encode())),
    "a page": (200, "text/html", b"<p>" + b"x" * 185 + KEY.encode()),
    "no JSON": (200, "text/event-stream", b"data: " + b"x" * 185 + KEY.encode() + b"\n\n"),
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("status", "kind", "body"), CUT.values(), ids=CUT)
async def test_half_a_key_is_hidden_too(serve_bytes, gymlet, status, kind, body, streamed):
    provider = await serve_bytes([body], status=status, content_type=kind)
    _, _, raw = await (await gymlet(provider.url)).post("/v1/responses", {"input": "hi", "stream": streamed})
    assert b"xxx" in raw
    assert KEY[:6].encode() not in raw


async def test_what_is_no_http_is_told_without_the_key(gymlet):
    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode())
        writer.close()

    provider = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}"
    async with provider:
        server = await gymlet(url, "m", f"{OPTIONS}base_url='{url}/v1?code=hidden'")
        status, answer = await server.post_json("/v1/responses", {"input": "hi"})
    assert (status, "did not answer in HTTP" in answer["error"]["message"]) == (502, True)
    assert KEY not in str(answer)
    assert "hidden" not in str(answer)


async def test_the_chat_door_sends_reasoning_back_as_the_provider_wants_it(provider, gymlet):
    call = {"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "x"},
        {"role": "assistant", "content": "so", "tool_calls": None, "reasoning_content": None, "tool_call_id": None},
    ]
    fields = {}
    for form in ("none", "reasoning", "mistral_parts"):
        options = (f"reasoning_out={form}", "uses_reasoning_parser=true", "call_id_length=9")
        server = await gymlet(provider.url, "plain", *(OPTIONS + option for option in options))
        assert (await server.post("/v1/chat/completions", {"messages": messages}))[0] == 200
        _, assistant, tool, _ = provider.requests[-1]["messages"]
        assert len(assistant["tool_calls"][0]["id"]) == 9
        assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"]
        fields[form] = {key: value for key, value in assistant.items() if key not in ("role", "tool_calls")}
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    assert fields == {
        "none": {"content": None},
        "reasoning": {"content": None, "reasoning": "hm"},
        "mistral_parts": {"content": [thinking]},
    }
