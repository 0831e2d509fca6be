"""Servers as processes that are told to stop while they have work."""

import asyncio
import signal

import aiohttp
import orjson
import pytest
from aiohttp import web
from cli.asking import ROW, STREAM, WHOLE, ask, asking, closed, ended
from wire.pipeline import check_grammar, chunk, parse_events, text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
async def test_what_is_under_way_ends_well(held, start, client, number):
    process, url, _ = await start(held.url)
    tasks = [*asking(client, url, STREAM, count=20), *asking(client, url, WHOLE, count=20)]
    runs = asking(client, url, ROW, "/mcqa_simple_agent/run", 10)
    await held.reached(50)
    process.send_signal(number)
    await closed(url)
    held.let_go()
    for status, _, raw in await asyncio.gather(*tasks):
        assert (status, b'"status":"completed"' in raw) == (200, True)
    for status, headers, raw in await asyncio.gather(*runs):
        assert (status, orjson.loads(raw)["reward"], headers["Connection"]) == (200, 1.0, "close")
    assert held.finished == 50
    assert await ended(process) == (0, "stopped\n", "")


async def test_nobody_comes_in_any_more(held, start, client):
    process, url, _ = await start(held.url)
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(request)
    assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
    (task,) = asking(client, url, STREAM)
    await held.reached(1)
    process.terminate()
    await closed(url)
    writer.write(request)
    raw = (await asyncio.wait_for(reader.read(), 5)).decode()
    writer.close()
    assert raw.startswith("HTTP/1.1 503")
    assert "Connection: close\r\n" in raw
    assert "Retry-After: 5\r\n" in raw
    assert '"server_stopping"' in raw
    held.let_go()
    assert (await task)[0] == 200
    assert (await ended(process))[0] == 0


async def test_what_does_not_end_in_time_fails_in_its_own_protocol(held, start, client):
    process, url, _ = await start(
        held.url,
        "head_server.shutdown_timeout_s=0.3",
        "++policy_model.responses_api_models.inference_provider.num_concurrent_requests=4",
    )
    streams = asking(client, url, STREAM)
    chats = asking(client, url, {"messages": [], "stream": True}, "/v1/chat/completions")
    wholes = asking(client, url, WHOLE)
    runs = asking(client, url, ROW, "/mcqa_simple_agent/run")
    await held.reached(4)
    waiting = asking(client, url, STREAM, count=3)  # for a slot: nothing was sent to them
    await asyncio.sleep(0.3)
    process.terminate()
    code, _, err = await ended(process)
    assert (code, err) == (0, "")
    (_, _, raw) = await streams[0]
    events = parse_events(raw)
    check_grammar(events)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"]["message"] == "the server stops, and this took longer than its 0.3 s"
    assert raw.endswith(b"data: [DONE]\n\n")
    (_, _, raw) = await chats[0]
    assert b'"server_stopping"' in raw
    assert raw.endswith(b"data: [DONE]\n\n")
    for status, headers, raw in await asyncio.gather(*wholes, *runs, *waiting):
        assert (status, headers["Retry-After"]) == (503, "5")
        assert orjson.loads(raw)["error"]["code"] == "server_stopping"


async def test_a_second_signal_does_not_wait(held, start, client):
    process, url, _ = await start(held.url)
    tasks = [*asking(client, url, STREAM), *asking(client, url, WHOLE)]
    await held.reached(2)
    process.terminate()
    await closed(url)
    assert process.returncode is None
    process.terminate()
    assert (await ended(process))[0] == 130
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_that_does_not_read_holds_nobody_up(serve, start):
    async def flood(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(text("x" * 60_000))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", flood)
    process, url, _ = await start((await serve(app)).url, "head_server.shutdown_timeout_s=0.2")
    host, _, port = url.removeprefix("http://").partition(":")
    _reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    body = orjson.dumps(STREAM)
    writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await asyncio.sleep(0.5)
    process.terminate()
    code, _, err = await ended(process)
    assert (code, err) == (0, "")
    writer.close()


async def test_under_load_no_finished_answer_is_lost(serve, start, client):
    finished = set()

    async def completions(request):
        body = orjson.loads(await request.read())
        name = body["messages"][0]["content"][0]["text"]
        await asyncio.sleep(int(name) % 7 / 50)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(text(name) + chunk({}, "stop") + b"data: [DONE]\n\n")
        finished.add(name)
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    process, url, _ = await start((await serve(app)).url)
    got, refused = set(), []

    async def go_on_asking(first):
        for number in range(first, first + 100_000):
            try:
                status, _, raw = await ask(client, url, {"input": str(number), "stream": number % 2 == 0})
            except aiohttp.ClientConnectionError:
                return
            if status != 200:
                refused.append(status)
                return
            assert b'"status":"completed"' in raw
            got.add(str(number))

    load = asyncio.gather(*(go_on_asking(first * 100_000) for first in range(40)))
    while len(got) < 100:  # noqa: ASYNC110  the load's own progress
        await asyncio.sleep(0.05)
    process.terminate()
    assert await ended(process) == (0, "stopped\n", "")
    await load
    assert finished == got
    assert set(refused) <= {503}
