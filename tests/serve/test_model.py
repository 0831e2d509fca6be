"""The model server's doors, over real sockets, in front of a scripted provider."""

import asyncio
import time

import orjson
import pytest
from aiohttp import web
from openai import APIStatusError, AsyncOpenAI
from wire.pipeline import DONE, check_grammar, chunk, end, parse_events, reasoning, shape, text

SSE = {"input": "hi", "stream": True}


async def stream(server, body=SSE):
    status, headers, raw = await server.post("/v1/responses", body)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    return parse_events(raw)


SHAPES = {
    "plain": [("message", "Hello, world!")],
    "reasoning": [("reasoning", "Let me think."), ("message", "The answer is 42.")],
    "think-tags": [("reasoning", "Let me think."), ("message", "The answer is 42.")],
    "tool-call": [("call", "get_weather", '{"city":"Paris"}')],
}
TOOLS = {"tools": [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}}]}


@pytest.mark.parametrize(("model", "expected"), SHAPES.items(), ids=SHAPES)
async def test_streamed_and_whole_replies_say_the_same(provider, gymlet, model, expected):
    server = await gymlet(provider.url, model)
    events = await stream(server, SSE | TOOLS)
    check_grammar(events)
    status, whole = await server.post_json("/v1/responses", {"input": "hi"} | TOOLS)
    assert (status, shape(whole), shape(events[-1]["response"])) == (200, expected, expected)
    assert whole["usage"] == events[-1]["response"]["usage"]
    assert whole["usage"]["total_tokens"] == 12


async def test_each_event_leaves_as_its_chunk_comes(serve_bytes, gymlet):
    provider = await serve_bytes([text("one "), text("two "), text("three"), end()], delay_s=0.15)
    server = await gymlet(provider.url)
    seen = []
    async with server.client.post(server.url + "/v1/responses", json=SSE) as response:
        async for piece, _ in response.content.iter_chunks():
            seen += [
                (time.perf_counter(), word) for word in ("one", "two", "three") if f'"delta":"{word}'.encode() in piece
            ]
    assert [word for _, word in seen] == ["one", "two", "three"]
    assert seen[2][0] - seen[0][0] > 0.2, "the first token left long before the last one came"


async def test_the_model_and_key_are_the_configured_ones(provider, gymlet):
    server = await gymlet(provider.url, "plain")
    status, response = await server.post_json("/v1/responses", {"input": "hi", "model": "gpt-99"})
    assert (status, response["model"]) == (200, "plain")
    assert provider.requests[-1]["model"] == "plain"


async def test_extra_body_lies_under_the_request(provider, gymlet):
    extra = "++policy_model.responses_api_models.inference_provider.extra_body={temperature:0.5,top_k:3}"
    server = await gymlet(provider.url, "plain", extra)
    metadata = {"extra_body": '{"seed": 7}'}
    await server.post_json("/v1/responses", {"input": "hi", "temperature": 0.9, "metadata": metadata})
    sent = provider.requests[-1]
    assert (sent["temperature"], sent["top_k"], sent["seed"]) == (0.9, 3, 7)
    await server.post_json("/v1/chat/completions", {"messages": [], "metadata": metadata})
    assert (provider.requests[-1]["top_k"], provider.requests[-1]["seed"]) == (3, 7)
    assert "metadata" not in provider.requests[-1]


def nested(levels):
    """An object in an object, and so on."""
    return {"a": nested(levels - 1)} if levels else {}


REFUSED = {
    "no JSON": (b"{", None, "not JSON"),
    "no object": (b"[]", None, "must be a JSON object"),
    "no input": ({}, "input", "'input' is required"),
    "a wrong type": ({"input": "x", "temperature": "hot"}, "temperature", "must be a number, not a string"),
    "a boolean is no number": ({"input": "x", "temperature": True}, "temperature", "must be a number"),
    "an unknown item": ({"input": [{"type": "web_search_call"}]}, "input[0].type", "'web_search_call'"),
    "an unknown role": ({"input": [{"role": "usr", "content": "x"}]}, "input[0].role", "did you mean 'user'?"),
    "an unknown part": (
        {"input": [{"role": "user", "content": [{"type": "input_txt"}]}]},
        "input[0].content[0].type",
        "did you mean 'input_text'?",
    ),
    "an empty image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": ""}]}]},
        "input[0].content[0].image_url",
        "requires a non-empty image_url",
    ),
    "a hosted tool": ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    "a choice without tools": ({"input": "x", "tool_choice": "required"}, "tool_choice", "requires at least one tool"),
    "an unknown earlier response": (
        {"input": "x", "previous_response_id": "resp_1"},
        "previous_response_id",
        "'previous_response_id'",
    ),
    "a conversation": ({"input": "x", "conversation": "conv_1"}, "conversation", "use 'previous_response_id'"),
    "a stored prompt": ({"input": "x", "prompt": {"id": "p"}}, "prompt", "no stored prompts"),
    "a long id": ({"input": [{"role": "user", "content": "x", "id": "i" * 600}]}, "input[0].id", "600 characters"),
    "a long call id": (
        {"input": [{"type": "function_call_output", "call_id": "c" * 600, "output": "x"}]},
        "input[0].call_id",
        "the most is 512",
    ),
    "a long name": ({"input": "x", "tools": [{"type": "function", "name": "f" * 600}]}, "tools[0].name", "512"),
    "deep nesting": ({"input": "x", "metadata": nested(230)}, "metadata", "deeper than 200 levels"),
    "nesting without end": (b'{"input":' + b"[" * 100_000, None, "not JSON"),
    "too many logprobs": ({"input": "x", "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    "a model that is no name": ({"input": "x", "model": 3}, "model", "must be a string"),
    "an extra_body that is no JSON": ({"input": "x", "metadata": {"extra_body": "{"}}, "metadata.extra_body", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "param", "words"), REFUSED.values(), ids=REFUSED)
async def test_a_wrong_request_is_named_and_not_sent(provider, gymlet, body, param, words):
    server = await gymlet(provider.url)
    status, answer = await server.post_json("/v1/responses", body)
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "invalid_request_error", param)
    assert words in answer["error"]["message"]
    assert provider.requests == []


REFUSED_CHATS = {
    "no messages": ({}, "messages"),
    "an unknown role": ({"messages": [{"role": "usr"}]}, "messages[0].role"),
    "a tool that is none": ({"messages": [], "tools": [3]}, "tools[0]"),
    "a tool without a name": ({"messages": [], "tools": [{"function": {}}]}, "tools[0].function.name"),
    "a call without an id": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
        "messages[0].tool_calls[0].id",
    ),
    "an output of no call": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    "two choices": ({"messages": [], "n": 2}, "n"),
}


@pytest.mark.parametrize(("body", "param"), REFUSED_CHATS.values(), ids=REFUSED_CHATS)
async def test_a_wrong_chat_request_is_named_and_not_sent(provider, gymlet, body, param):
    server = await gymlet(provider.url)
    status, answer = await server.post_json("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert provider.requests == []


async def test_the_deepest_that_is_taken_is_echoed(provider, gymlet):
    server = await gymlet(provider.url)
    tool = {"type": "function", "name": "f", "parameters": nested(190)}
    status, answer = await server.post_json("/v1/responses", {"input": "x", "tools": [tool]})
    assert (status, answer["tools"][0]["parameters"]) == (200, nested(190))
    assert (await server.post("/v1/responses", {"input": "x", "tools": [tool], "stream": True}))[0] == 200


async def test_a_body_that_is_too_large_is_refused_unread(provider, gymlet):
    server = await gymlet(provider.url)
    host, _, port = server.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 67108865\r\n\r\n{")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 413")
    assert b'"request_too_large"' in await reader.readuntil(b"}}")
    writer.close()
    assert provider.requests == []


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_a_refusal_of_the_provider_keeps_its_status_and_words(provider, gymlet, streamed):
    server = await gymlet(provider.url, "error-429")
    status, headers, raw = await server.post("/v1/responses", {"input": "hi", "stream": streamed})
    assert (status, headers["Retry-After"], headers["x-gymlet-failure-class"]) == (429, "7", "provider_rate_limited")
    error = orjson.loads(raw)["error"]
    assert (error["type"], error["code"]) == ("too_many_requests", "rate_limit")
    assert "slow down" in error["message"]


async def test_a_provider_that_is_not_there_is_a_502(gymlet, free_port):
    server = await gymlet(f"http://127.0.0.1:{free_port}")
    status, answer = await server.post_json("/v1/responses", {"input": "hi"})
    assert status == 502
    assert "cannot be reached" in answer["error"]["message"]


async def test_a_broken_stream_fails_in_band(provider, gymlet):
    events = await stream(await gymlet(provider.url, "cut-stream"))
    check_grammar(events)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert shape(events[-1]["response"]) == [("message", "This ends in mid-")]


async def test_a_broken_stream_is_an_error_where_nothing_was_sent_yet(serve_bytes, gymlet):
    provider = await serve_bytes([text("a") + DONE])
    server = await gymlet(provider.url)
    status, answer = await server.post_json("/v1/responses", {"input": "hi"})
    assert (status, answer["error"]["type"]) == (502, "model_error")


BODIES = {
    "JSON where a stream was due": (
        orjson.dumps({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}),
        "application/json",
        "response.completed",
    ),
    "a stream by another name": (text("hi") + end(), "application/octet-stream", "response.completed"),
    "a stream that breaks off": (text("hi"), "text/event-stream", "response.failed"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "content_type", "expected"), BODIES.values(), ids=BODIES)
async def test_what_the_provider_sends_instead(serve_bytes, gymlet, body, content_type, expected):
    provider = await serve_bytes([body], content_type=content_type)
    events = await stream(await gymlet(provider.url))
    assert events[-1]["type"] == expected


NOTHING_SAID = {
    "an error with status 200": (b'{"error":{"message":"boom"}}', "application/json", 502, "boom"),
    "its own status": (b'{"error":{"message":"boom","code":503}}', "application/json", 503, "boom"),
    "an error as the first event": (b'data: {"error":{"message":"boom","code":429}}\n\n', "text/event-stream", 429, "boom"),
    "a page": (b"<html>gateway</html>", "text/html", 502, "text/html instead of a reply: 'gateway'"),
    "nothing": (b"", "text/event-stream", 502, "no finish_reason"),
}  # fmt: skip


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("case", NOTHING_SAID.values(), ids=NOTHING_SAID)
async def test_what_breaks_before_anything_is_said_is_told_by_a_status(serve_bytes, gymlet, case, streamed):
    body, content_type, status, words = case
    provider = await serve_bytes([body], content_type=content_type)
    server = await gymlet(provider.url)
    found, answer = await server.post_json("/v1/responses", {"input": "hi", "stream": streamed})
    assert found == status
    assert words in answer["error"]["message"]


async def test_a_key_that_the_provider_echoes_is_hidden(serve_bytes, gymlet):
    body = b'{"error":{"message":"Incorrect API key provided: sk-very-secret-0123456789"}}'
    provider = await serve_bytes([body], status=401, content_type="application/json")
    status, answer = await (await gymlet(provider.url)).post_json("/v1/responses", {"input": "hi"})
    assert (status, answer["error"]["type"]) == (401, "authentication_error")
    assert "very-secret" not in answer["error"]["message"]


async def test_no_more_requests_at_once_than_configured(gymlet, serve):
    running = [0, 0]

    async def completions(request):
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0.02)
        running[0] -= 1
        return web.json_response({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    provider = await serve(app)
    limit = "++policy_model.responses_api_models.inference_provider.num_concurrent_requests=3"
    server = await gymlet(provider.url, "m", limit)
    answers = await asyncio.gather(*(server.post("/v1/responses", {"input": "hi"}) for _ in range(12)))
    assert ([status for status, _, _ in answers], running[1]) == ([200] * 12, 3)


async def test_a_client_that_leaves_ends_the_call(gymlet, serve):
    left = asyncio.Event()

    async def completions(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(text("a"))
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            left.set()
            raise

    app = web.Application()
    app.router.add_post("/v1/chat/completions", completions)
    server = await gymlet((await serve(app)).url)
    async with server.client.post(server.url + "/v1/responses", json=SSE) as response:
        await response.content.readany()
    await asyncio.wait_for(left.wait(), 2)


async def test_a_silent_provider_is_bridged_by_keep_alives(gymlet, serve_bytes, monkeypatch):
    monkeypatch.setattr("gymlet.serve.streaming.KEEP_ALIVE_S", 0.05)
    provider = await serve_bytes([text("a"), end()], delay_s=0.2)
    events = await stream(await gymlet(provider.url))
    check_grammar(events)
    assert [event["type"] for event in events].count("response.in_progress") > 2


async def test_chat_completions_normalise_the_dialect(provider, gymlet):
    server = await gymlet(provider.url, "think-tags")
    messages = {"messages": [{"role": "user", "content": "hi"}]}
    status, whole = await server.post_json("/v1/chat/completions", messages)
    message = whole["choices"][0]["message"]
    assert (status, message["content"], message["reasoning_content"]) == (200, "The answer is 42.", "Let me think.")
    asked = {**messages, "stream": True, "stream_options": {"include_usage": True}, "client_bookkeeping": 1}
    _, _, raw = await server.post("/v1/chat/completions", asked)
    frames = [orjson.loads(frame.removeprefix(b"data: ")) for frame in raw.split(b"\n\n")[:-2]]
    deltas = [frame["choices"][0]["delta"] for frame in frames if frame["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "The answer is 42."
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "Let me think."
    assert frames[-1]["usage"]["total_tokens"] == 12
    assert "client_bookkeeping" not in provider.requests[-1]


async def test_the_openai_sdk_reads_both_forms(provider, gymlet):
    server = await gymlet(provider.url, "reasoning")
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        response = await client.responses.create(model="any", input="hi")
        assert (response.output_text, response.usage.total_tokens) == ("The answer is 42.", 12)
        async with client.responses.stream(model="any", input="hi") as events:
            kinds = [event.type async for event in events]
            final = await events.get_final_response()
        assert (final.output_text, kinds.count("response.completed")) == ("The answer is 42.", 1)
        completion = await client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hi"}])
        assert completion.choices[0].message.content == "The answer is 42."
        with pytest.raises(APIStatusError, match="'input' must be"):
            await client.responses.create(model="any", input=3)


async def test_the_head_answers(provider, gymlet):
    server = await gymlet(provider.url, "plain")
    assert await server.get_json("/health") == (200, {"status": "ok"})
    assert (await server.get_json("/v1/models"))[1]["data"][0]["id"] == "plain"
    instances = (await server.get_json("/server_instances"))[1]
    assert [entry["name"] for entry in instances] == ["mcqa", "mcqa_simple_agent", "policy_model"]
    status, answer = await server.get_json("/nowhere")
    assert (status, answer["error"]["type"]) == (404, "not_found")


async def test_reasoning_of_a_field_streams(serve_bytes, gymlet):
    provider = await serve_bytes([reasoning("a", "b"), text("c"), chunk({}, "length"), DONE])
    events = await stream(await gymlet(provider.url))
    assert (events[-1]["type"], shape(events[-1]["response"])) == (
        "response.incomplete",
        [("reasoning", "ab"), ("message", "c")],
    )
