"""Responses that a later request begins from."""

import orjson
import pytest
from wire.pipeline import chunk, parse_events
from wire.pipeline import end as finished

from gymlet.serve.store import Recalled, ResponseStore
from gymlet.wire.errors import RequestError

URL = "/v1/responses"
OPTIONS = "++policy_model.responses_api_models.inference_provider."


def said(request):
    """Role and text of each message that the provider was sent."""
    return [(message["role"], _text(message["content"])) for message in request["messages"]]


def _text(content):
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def test_a_response_is_gone_on_from(provider, gymlet):
    gym = await gymlet(provider.url)
    _, first = await gym.post_json(URL, {"input": "one", "instructions": "be brief"})
    assert first["store"] is True
    assert first["previous_response_id"] is None
    _, second = await gym.post_json(URL, {"input": "two", "previous_response_id": first["id"]})
    assert second["previous_response_id"] == first["id"]
    answer = first["output"][0]["content"][0]["text"]
    assert said(provider.requests[-1]) == [("user", "one"), ("assistant", answer), ("user", "two")]
    _, _, raw = await gym.post(URL, {"previous_response_id": second["id"], "stream": True})
    third = parse_events(raw)[-1]["response"]
    assert len(provider.requests[-1]["messages"]) == 4, "input, output, input, output; the instructions do not go on"
    _, fourth = await gym.post_json(URL, {"input": "four", "previous_response_id": third["id"]})
    assert fourth["status"] == "completed", "a streamed response was stored before its last event"


async def test_what_was_not_stored_is_named(provider, gymlet):
    gym = await gymlet(provider.url)
    _, lost = await gym.post_json(URL, {"input": "one", "store": False})
    assert lost["store"] is False
    for response_id in (lost["id"], "resp_unknown"):
        status, body = await gym.post_json(URL, {"input": "two", "previous_response_id": response_id})
        assert status == 400
        assert body["error"]["code"] == "previous_response_not_found"
        assert response_id in body["error"]["message"]
    assert len(provider.requests) == 1, "nothing was sent"


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_an_attempt_that_nobody_saw_takes_nobodys_place(hostile, gymlet, streamed):
    provider = await hostile()
    options = ("max_retries=9", "retry_max_s=0.01", "max_stored_responses=2")
    gym = await gymlet(provider.url, "ok", *(f"{OPTIONS}{option}" for option in options))
    _, first = await gym.post_json(URL, {"input": "one"})
    fails = {"metadata": {"extra_body": '{"behaviour": "error-200:503"}'}}
    status, _, _ = await gym.post(URL, {"input": "two", "stream": streamed, **fails})
    assert (status, provider.attempts("two")) == (503, 10)
    assert (await gym.get_json(f"{URL}/{first['id']}"))[0] == 200


async def test_a_failed_response_is_not_gone_on_from(serve_bytes, gymlet):
    cut = await serve_bytes([chunk({"content": "half"})])
    gym = await gymlet(cut.url)
    _, _, raw = await gym.post(URL, {"input": "one", "stream": True})
    failed = parse_events(raw)[-1]["response"]
    assert failed["status"] == "failed"
    status, body = await gym.post_json(URL, {"input": "two", "previous_response_id": failed["id"]})
    assert status == 400
    assert "failed" in body["error"]["message"]


async def test_what_the_provider_wants_back_is_stored_without_being_shown(serve_bytes, gymlet):
    details = [{"type": "reasoning.encrypted", "data": "opaque", "index": 0}]
    signed = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}, "extra_content": {"google": "sig"}}
    body = chunk({"reasoning_details": details}) + chunk({"tool_calls": [signed]}) + finished("tool_calls")
    upstream = await serve_bytes([body])
    gym = await gymlet(
        upstream.url, "m", "++policy_model.responses_api_models.inference_provider.uses_reasoning_parser=true"
    )
    _, first = await gym.post_json(URL, {"input": "one"})
    assert [item["type"] for item in first["output"]] == ["function_call"], "not asked for, not shown"
    model = gym.gym.models["policy_model"]
    output = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    recalled = model._store.recall({"input": [output], "previous_response_id": first["id"]})
    kinds = [item.get("type", item.get("role")) for item in recalled.request["input"]]
    assert kinds == ["user", "reasoning", "function_call", "function_call_output"]
    thought = model._seal.open(recalled.request["input"][1]["encrypted_content"], "x")
    assert thought.details == details
    assert thought.signatures == {"c1": {"google": "sig"}}


async def test_an_item_is_referred_to(provider, gymlet):
    gym = await gymlet(provider.url)
    _, first = await gym.post_json(URL, {"input": "one"})
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    history = [{"role": "user", "content": "one"}, reference, {"role": "user", "content": "two"}]
    status, _ = await gym.post_json(URL, {"input": history})
    assert status == 200
    assert [role for role, _ in said(provider.requests[-1])] == ["user", "assistant", "user"]
    status, body = await gym.post_json(URL, {"input": [{"type": "item_reference", "id": "msg_gone"}]})
    assert status == 400
    assert body["error"]["code"] == "item_not_found"


async def test_a_response_is_read_again_and_deleted(provider, gymlet):
    gym = await gymlet(provider.url)
    _, first = await gym.post_json(URL, {"input": "one"})
    url = f"{URL}/{first['id']}"
    assert await gym.get_json(url) == (200, first)
    async with gym.client.delete(gym.url + url) as response:
        assert orjson.loads(await response.read()) == {"id": first["id"], "object": "response", "deleted": True}
    assert (await gym.get_json(url))[0] == 404


async def test_an_error_names_the_item_as_the_client_sent_it(provider, gymlet):
    gym = await gymlet(provider.url)
    _, first = await gym.post_json(URL, {"input": "one"})
    _, body = await gym.post_json(URL, {"input": [{"type": "wrong"}], "previous_response_id": first["id"]})
    assert body["error"]["param"] == "input[0].type"


async def test_nothing_is_stored_where_that_is_wanted(provider, gymlet):
    gym = await gymlet(
        provider.url, "plain", "++policy_model.responses_api_models.inference_provider.max_stored_responses=0"
    )
    _, first = await gym.post_json(URL, {"input": "one"})
    assert first["store"] is False


def end(store, recalled, response_id, echo):
    response = {"id": response_id, "status": "completed", "instructions": "y" * 100}
    store.keep(recalled, response, orjson.dumps(response), echo)


def keep(store, number, text="x"):
    items = [{"id": f"msg_{number}", "type": "message", "role": "assistant", "content": text}]
    end(store, Recalled({"input": []}, 0, ()), f"resp_{number}", items)


def test_the_oldest_goes_first():
    store = ResponseStore(2)
    for number in range(3):
        keep(store, number)
    assert orjson.loads(store.get("resp_2"))["id"] == "resp_2"
    with pytest.raises(RequestError, match="resp_0"):
        store.get("resp_0")
    assert store.recall({"input": [{"type": "item_reference", "id": "msg_0"}]}).request["input"][0]["id"] == "msg_0"
    assert list(store._by_item) == ["msg_1", "msg_2"]


def test_bytes_are_bounded():
    store = ResponseStore(100, max_bytes=10_000)
    for number in range(20):
        keep(store, number, "x" * 1_000)
    assert store._size_bytes <= 10_000
    assert 5 < len(store._responses) < 20
    keep(store, 99, "x" * 20_000)
    assert not store._responses, "one that is larger than everything may be is not kept"
    assert store._size_bytes == 0


def test_a_follow_up_counts_what_it_shares():
    store = ResponseStore(100, max_bytes=100_000)
    recalled = Recalled({"input": [{"role": "user", "content": "x" * 30_000}]}, 0, ())
    end(store, recalled, "resp_1", [])
    assert store._size_bytes > 30_100
    follow_up = store.recall({"input": "z", "previous_response_id": "resp_1"})
    assert follow_up.turns[0] is store._responses["resp_1"].turns[0]
    end(store, follow_up, "resp_2", [])
    store.delete("resp_1")
    assert store._size_bytes > 30_000
