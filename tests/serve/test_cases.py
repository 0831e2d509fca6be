"""Behaviour cases of NeMo Gym, replayed over HTTP.

They are read from the folder that GYMLET_CASES names, and skipped where it names none. Each case is a request, what
the provider answers, and what must have been sent, or answered. EXCEPTIONS says which of them do not apply, and why.
"""

import os
from pathlib import Path

import orjson
import pytest
from aiohttp import web

FOLDER = os.environ.get("GYMLET_CASES")
FILES = ("converter_request", "converter_response", "converter_0_7_additions", "mcqa_verify")
PATHS = {
    "/v1/responses": "",
    "/v1/chat/completions": "",
    "/verify": "/mcqa",
    "/aggregate_metrics": "/mcqa",
    "/seed_session": "/mcqa",
}
INFERENCE = "++policy_model.responses_api_models.inference_provider."
MCQA = "++mcqa.resources_servers.mcqa.grading_mode="
PROFILES = {
    "plain": [f"{INFERENCE}uses_reasoning_parser=false"],
    "reasoning": [],
    "extra": [f"{INFERENCE}extra_body={{frequency_penalty:0.5,presence_penalty:0.3,temperature:0.5}}"],
    "mcqa": [],
    "mcqa_colon": [f"{MCQA}lenient_answer_colon"],
    "mcqa_md": [f"{MCQA}lenient_answer_colon_md"],
}
HTTP_400 = "a wrong request is 400 invalid_request_error, as OpenAI has it, not 422"
UNKNOWN_FIELDS = "fields that only the client knows are ignored: coding agents send many"
EXCEPTIONS = {
    "stream: backend failure is a terminal response.failed on HTTP 200": "known before the first byte: a plain status",
    "finish_reason tool_calls with usage": "a total above prompt + completion holds reasoning that completion leaves out",
    "finish_reason length with usage": "as above, and an item that was cut off is incomplete",
    "finish_reason content_filter with usage": "as above, and an item that was cut off is incomplete",
    "three-part text around two think blocks": "a tag in mid-answer is text: only the first block is reasoning",
    "chat: reasoning_content is wrapped in think tags": "the chat door has reasoning in reasoning_content",
    "whitespace in reasoning and text is kept": "item ids are minted here; the call's id is call_id",
    "chat stream: stream and stream_options never reach upstream": "usage is always asked for; many send none otherwise",
    "include has no chat representation": "clients send it with every request; what it names is not refused",
    "custom_tool_call input item has no chat representation": "custom tools are sent as functions, and so are their calls",
    "custom_tool_call_output input item has no chat representation": "as above",
    "stream: additional_tools functions are hoisted into tools": "the custom tools among them, too",
    "row grading_mode lenient_answer_colon_md is rejected": "a row may name this mode as well as the server",
    "unknown top-level field is rejected when not streaming": UNKNOWN_FIELDS,
}


def load():
    if not FOLDER:
        return []
    cases = [case for name in FILES for case in orjson.loads((Path(FOLDER) / f"{name}.json").read_bytes())]
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.fixture
async def answering(serve):
    """A provider that answers every request with one body, and keeps what it was sent."""
    sent = []

    async def start(upstream):
        async def completions(request):
            sent.append(orjson.loads(await request.read()))
            return web.json_response(upstream.get("body"), status=upstream.get("status", 200))

        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        return await serve(app), sent

    return start


@pytest.mark.skipif(not FOLDER, reason="GYMLET_CASES names no folder of cases")
@pytest.mark.parametrize("case", load())
async def test_case(case, answering, gymlet):
    if case["name"] in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[case["name"]])
    given, expected = case["given"], case["expected"]
    provider, sent = await answering(given.get("upstream", {}))
    server = await gymlet(provider.url, "the-model", *PROFILES[case["profile"]])
    status, headers, raw = await server.post(PATHS[given["path"]] + given["path"], given["body"])
    check_status(expected["status"], status)
    for words in expected.get("text_contains", ()):
        assert words in raw.decode()
    if "upstream_calls" in expected:
        assert len(sent) == expected["upstream_calls"]
    if "content_type" in expected:
        assert headers["Content-Type"].startswith(expected["content_type"])
    check(expected.get("upstream", {}), sent[-1] if sent else {})
    if status == 200 and "json" in expected:
        check(expected["json"], orjson.loads(raw))
    if "sse" in expected:
        check_events(expected["sse"], [orjson.loads(frame.split(b"data: ")[1]) for frame in raw.split(b"\n\n")[:-2]])
    if "chat_sse" in expected:
        check_chunks(expected["chat_sse"], raw)


def check_status(expected, status):
    """A mistake of the client's is 400 here, whatever it is there."""
    allowed = expected["in"] if isinstance(expected, dict) else [expected]
    assert status in allowed or (status == 400 and 422 in allowed), HTTP_400


def at(tree, path):
    for step in path.split("."):
        tree = tree[int(step)] if isinstance(tree, list) else tree[step]
    return tree


def has(tree, path):
    try:
        at(tree, path)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def check(expected, found):
    for path, value in expected.get("equal", {}).items():
        assert at(found, path) == ("the-model" if value == "$MODEL" else value), path
    for path in expected.get("absent", ()):
        assert not has(found, path), path
    for path, length in expected.get("length", {}).items():
        assert len(at(found, path)) == length, path
    for path, prefix in expected.get("prefix", {}).items():
        assert at(found, path).startswith(prefix)
    for key, names in expected.get("keys", {}).items():
        assert sorted(found[key]) == sorted(names)
    for key, name in expected.get("present", ()):
        assert name in found[key]
    if "is" in expected:
        assert found == expected["is"]
    covers(found, expected.get("subset", {}))


def covers(found, expected):
    """``found`` says all that ``expected`` does; a key that is left out stands for null."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            covers(found.get(key), value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            covers(one, other)
    else:
        assert found == expected


def check_events(expected, events):
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-1]) == (expected["first"], expected["last"])
    for kind, count in expected.get("count", {}).items():
        assert kinds.count(kind) == count
    named = {"first": events[0], "last": events[-1]}
    for place, values in expected.get("at", {}).items():
        kind, _, number = place.partition("#")
        event = named[place] if place in named else [each for each in events if each["type"] == kind][int(number or 0)]
        for path, value in values.items():
            assert at(event, path) == value
    for one, path, other, other_path in expected.get("same", ()):
        assert at(named[one], path) == at(named[other], other_path)


def check_chunks(expected, raw):
    assert raw.endswith(b"data: [DONE]\n\n") == expected["done"]
    chunks = [orjson.loads(frame.removeprefix(b"data: ")) for frame in raw.split(b"\n\n")[:-2]]
    usages = [chunk for chunk in chunks if chunk.get("usage")]
    assert len(usages) == expected["usage_chunks"]
    if "usage_total" in expected:
        assert (usages[0]["usage"]["total_tokens"], usages[0]["choices"]) == (
            expected["usage_total"],
            expected["usage_choices"],
        )
