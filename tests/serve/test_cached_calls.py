"""Calls that are paid for once: which are the same, what is kept, and that an answer that was kept is like any other."""

import asyncio
import sqlite3
from types import SimpleNamespace

import orjson
import pytest
from aiohttp import web
from serve.faults import until
from yarl import URL

from gymlet.serve.cache import SqliteCache, call_digest
from gymlet.serve.cached_calls import CachedUpstream

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
PARTS = [{"type": "text", "text": "hi"}]
ASK = {RESPONSES: {"input": "hi"}, CHAT: {"messages": [{"role": "user", "content": PARTS}]}}
"""The same to the provider."""
REPEAT = "x-gymlet-repeat"


@pytest.fixture
def cached(gymlet, tmp_path):
    """A gymlet that keeps replies: ``await cached(provider, "plain", "+key=value")``."""

    async def start(provider, model="plain", *overrides):
        return await gymlet(provider.url, model, f"++cache=sqlite:{tmp_path / 'cache.db'}", *overrides)

    return start


class Provider:
    """Says how often it was asked: the n-th answer says n. While ``open`` is not set, it only takes requests."""

    def __init__(self):
        self.asked = 0
        self.status = 200
        self.finish = "stop"
        self.cut = False
        self.open = asyncio.Event()
        self.open.set()

    def app(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.complete)
        return app

    async def complete(self, request):
        streamed = (await request.json()).get("stream") is True
        self.asked += 1
        said = {"role": "assistant", "content": str(self.asked)}
        await self.open.wait()
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        if not streamed:
            return web.json_response({"choices": [{"message": said, "finish_reason": self.finish}], "usage": USAGE})
        chunks = [{"choices": [{"delta": said}]}]
        chunks += [] if self.cut else [{"choices": [{"delta": {}, "finish_reason": self.finish}], "usage": USAGE}]
        text = "".join(f"data: {orjson.dumps(chunk).decode()}\n\n" for chunk in chunks)
        return web.Response(text=text + "data: [DONE]\n\n", content_type="text/event-stream")


USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


@pytest.fixture
async def counting(serve):
    provider = Provider()
    provider.url = (await serve(provider.app())).url
    return provider


async def said(server, door=RESPONSES, *, stream=False, **headers):
    """The status of a call, and the text in its reply."""
    status, _, raw = await server.post(door, {**ASK[door], "stream": stream}, **headers)
    return status, text_of(raw, door, stream=stream) if status == 200 else None


def text_of(raw, door, *, stream):
    if not stream:
        reply = orjson.loads(raw)
        return (
            reply["output"][0]["content"][0]["text"] if door == RESPONSES else reply["choices"][0]["message"]["content"]
        )
    events = [orjson.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    if door == RESPONSES:
        return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])


FORMS = [(door, stream) for door in (RESPONSES, CHAT) for stream in (False, True)]


@pytest.mark.parametrize("first", FORMS)
async def test_one_reply_is_told_in_every_form(counting, cached, first):
    server = await cached(counting)
    for door, stream in (first, *FORMS):
        assert await said(server, door, stream=stream) == (200, "1")
    assert counting.asked == 1


async def test_a_kept_reply_is_the_whole_reply(counting, cached):
    server = await cached(counting)
    first, again = [orjson.loads((await server.post(RESPONSES, {"input": "hi"}))[2]) for _ in range(2)]
    minted = {"id", "created_at", "completed_at"}
    assert first["id"] != again["id"]
    assert first["usage"]["total_tokens"] == 4
    for reply in (first, again):
        for name in minted:
            reply.pop(name, None)
        reply["output"][0].pop("id")
    assert first == again


async def test_a_long_reply_comes_whole(serve_bytes, cached):
    text = "x" * 300_000
    chunks = [{"choices": [{"delta": {"content": text}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    provider = await serve_bytes([f"data: {orjson.dumps(chunk).decode()}\n\n".encode() for chunk in chunks])
    server = await cached(provider)
    for stream in (True, True, False):
        assert await said(server, stream=stream) == (200, text)


OTHERS = {
    "another model option": ("++policy_model.responses_api_models.inference_provider.model=n", {"input": "hi"}),
    "another input": ("+a=b", {"input": "ho"}),
    "another temperature": ("+a=b", {"input": "hi", "temperature": 0.1}),
    "a seed": ("+a=b", {"input": "hi", "metadata": {"extra_body": '{"seed": 1}'}}),
}


@pytest.mark.parametrize(("override", "body"), OTHERS.values(), ids=OTHERS)
async def test_another_call_is_made(counting, cached, override, body):
    await said(await cached(counting))
    await (await cached(counting, "plain", override)).post(RESPONSES, body)
    assert counting.asked == 2


async def test_a_client_says_which_repeat_it_is(counting, cached):
    server = await cached(counting)
    texts = [(await said(server, **({REPEAT: each} if each else {})))[1] for each in ("0", "1", "", "0", "1", "")]
    assert texts == ["1", "2", "3", "1", "2", "3"]


NOT_KEPT = {
    "a refusal": ("status", 400, False),
    "a fault": ("status", 500, False),
    "a fault of a stream": ("status", 500, True),
    "a stream that was cut": ("cut", True, True),
    "a reply that ends in an error": ("finish", "error", False),
}


@pytest.mark.parametrize(("name", "value", "stream"), NOT_KEPT.values(), ids=NOT_KEPT)
async def test_what_failed_is_not_kept(counting, cached, name, value, stream):
    server = await cached(counting)
    well = getattr(counting, name)
    setattr(counting, name, value)
    await said(server, stream=stream)
    setattr(counting, name, well)
    assert await said(server, stream=stream) == (200, "2")
    assert await said(server, stream=stream) == (200, "2")


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_what_ended_otherwise_was_paid_for_and_is_kept(counting, cached, finish):
    counting.finish = finish
    server = await cached(counting)
    assert [await said(server) for _ in range(2)] == [(200, "1")] * 2


async def test_of_equal_calls_at_the_same_time_one_is_made(counting, cached):
    counting.open.clear()
    server = await cached(counting)
    calls = [asyncio.create_task(said(server, door, stream=stream)) for door, stream in FORMS * 5]
    await until(lambda: counting.asked == 1)
    counting.open.set()
    assert await asyncio.gather(*calls) == [(200, "1")] * len(calls)
    assert counting.asked == 1


async def test_who_waited_for_a_call_that_failed_calls_at_once(counting, cached):
    """Not one after the other, or a provider that is down would hold up the last of them for hours."""
    counting.open.clear()
    counting.status = 500
    server = await cached(counting)
    calls = [asyncio.create_task(said(server)) for _ in range(5)]
    await until(lambda: counting.asked == 1)
    await asyncio.sleep(0.1)
    counting.open.set()
    counting.open = asyncio.Event()
    await until(lambda: counting.asked == 5)
    counting.status = 200
    counting.open.set()
    assert sorted(status for status, _ in await asyncio.gather(*calls)) == [200] * 4 + [500]


async def test_a_client_that_left_leaves_nothing_behind(hostile, gymlet, tmp_path):
    provider = await hostile()
    server = await gymlet(provider.url, "flood", f"++cache=sqlite:{tmp_path / 'cache.db'}")
    async with server.client.post(server.url + RESPONSES, json={"input": "hi", "stream": True}) as response:
        await response.content.readany()
        response.close()
    await until(lambda: provider.provider.in_flight == 0)
    with sqlite3.connect(tmp_path / "cache.db") as file:
        assert file.execute("SELECT count(*) FROM replies").fetchone() == (0,)


async def test_rollouts_of_a_task_have_replies_of_their_own(counting, cached):
    server = await cached(counting)
    row = {"responses_create_params": {"input": "hi"}, "options": [{"A": "a"}], "expected_answer": "A"}

    async def run(rollout):
        status, verified = await server.post_json("/mcqa_simple_agent/run", {**row, "_ng_rollout_index": rollout})
        assert status == 200
        return verified["response"]["output"][0]["content"][0]["text"], verified.get("_ng_cached_calls")

    assert [await run(each) for each in (0, 1, 0, 1)] == [("1", None), ("2", None), ("1", 1), ("2", 1)]
    assert (await server.get_json("/policy_model/limits"))[1]["cached"] == 2


async def test_it_needs_no_permit(counting, cached):
    model = "++policy_model.responses_api_models.inference_provider"
    server = await cached(counting, "plain", f"{model}.num_concurrent_requests=1")
    await said(server)
    counting.open.clear()
    other = asyncio.create_task(said(server, CHAT, stream=True, **{REPEAT: "other"}))
    await until(lambda: counting.asked == 2)
    assert await said(server) == (200, "1")
    counting.open.set()
    assert await other == (200, "2")


async def test_a_request_of_another_model_instance_is_another_call(counting, cached, serve):
    """The same file for all: whose model it is, is part of what is asked."""
    elsewhere = Provider()
    elsewhere.url = (await serve(elsewhere.app())).url
    await said(await cached(counting))
    assert await said(await cached(elsewhere)) == (200, "1")
    assert (counting.asked, elsewhere.asked) == (1, 1)


async def test_a_model_below_another_path_is_another(counting, serve, cached):
    """Where a deployment is part of the URL, a model's name says nothing."""
    app = web.Application()
    for name in ("a", "b"):
        app.router.add_post(f"/{name}/v1/chat/completions", counting.complete)
    host = (await serve(app)).url
    for name, text in (("a", "1"), ("b", "2"), ("a", "1")):
        assert await said(await cached(SimpleNamespace(url=f"{host}/{name}"))) == (200, text)


async def test_a_header_that_is_not_utf_8_names_a_repeat(counting, cached):
    server = await cached(counting)
    url = URL(server.url)
    body = orjson.dumps({"input": "hi"})
    texts = []
    for repeat in (b"\xff", b"\xfe", b"\xff"):
        head = f"POST {url.path.rstrip('/')}{RESPONSES} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(head.encode() + b"Connection: close\r\n" + REPEAT.encode() + b": " + repeat + b"\r\n\r\n" + body)
        texts.append(text_of((await reader.read()).partition(b"\r\n\r\n")[2], RESPONSES, stream=False))
        writer.close()
        await writer.wait_closed()
    assert texts == ["1", "2", "1"]


@pytest.mark.parametrize(("door", "stream"), FORMS)
@pytest.mark.parametrize("damaged", [b"", b'{"choices": [{', b'data: {"choi', b"\0\0\0", b"<html>"], ids=ascii)
async def test_a_kept_reply_that_cannot_be_read_is_called_for_again(counting, cached, tmp_path, door, stream, damaged):
    server = await cached(counting)
    await said(server)
    with sqlite3.connect(tmp_path / "cache.db") as file:
        file.execute("UPDATE replies SET body = ?", (damaged,))
    file.close()
    assert [await said(server, door, stream=stream) for _ in range(2)] == [(200, "2")] * 2


async def test_a_client_that_does_not_take_a_kept_reply_is_hung_up_on(tmp_path):
    """Its head is out: a second one, with a status of 500, would be no answer."""
    cache = SqliteCache(tmp_path / "cache.db")
    await cache.start()
    await cache.put(call_digest("p/m", {}, None), b"{}")
    calls = CachedUpstream(None, cache, "p/m", total_timeout_s=0.01)
    with pytest.raises(asyncio.CancelledError):
        await calls.call({}, lambda _answer: asyncio.sleep(60))
    await cache.stop()


async def test_a_kept_reply_is_read_in_turns_with_others(tmp_path):
    cache = SqliteCache(tmp_path / "cache.db")
    await cache.start()
    await cache.put(call_digest("p/m", {}, None), b"x" * 1_000_000)
    turns = []

    async def read(answer):
        asyncio.get_running_loop().call_soon(turns.append, "another's")
        while await answer.read_some():
            turns.append("its own")

    await CachedUpstream(None, cache, "p/m", total_timeout_s=60).call({}, read)
    await cache.stop()
    assert turns[:2] == ["another's", "its own"]


async def test_without_it_every_call_is_made(counting, gymlet):
    server = await gymlet(counting.url)
    assert [await said(server) for _ in range(2)] == [(200, "1"), (200, "2")]
