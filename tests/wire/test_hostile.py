"""Replies that lie, break off or say too much: nothing is lost, nothing cut is called whole, and no time is wasted."""

import base64
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.pipeline import (
    DONE,
    call,
    calls,
    check_grammar,
    chunk,
    end,
    make_reply,
    parse_events,
    reasoning,
    shape,
    stream,
    text,
    to_chat,
)

from gymlet.wire.errors import RequestError
from gymlet.wire.json_text import JsonText
from gymlet.wire.profile import Profile
from gymlet.wire.seal import Seal

pytestmark = pytest.mark.pure

SEAL = Seal("provider.example/m")
CUT_CALL = calls(call(0, "c1", "f", '{"cmd":"rm -rf /tm'))


@pytest.mark.parametrize("behind", [calls(call(1, "c2", "g", "{}")), text("so")], ids=["call", "text"])
@pytest.mark.parametrize("ending", [b"", DONE, end("length")], ids=["EOF", "DONE", "length"])
def test_a_call_that_was_cut_is_incomplete_and_the_last(behind, ending):
    events, response = stream(CUT_CALL + behind + ending)
    check_grammar(events)
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert response["status"] in ("failed", "incomplete")


@pytest.mark.parametrize(
    "reason", ["insufficient_system_resource", "network_error", "abort", "MALFORMED_FUNCTION_CALL"]
)
def test_a_finish_that_says_that_it_was_none_has_failed(reason):
    _, response = stream(text("The answer is") + end(reason))
    assert response["status"] == "failed"
    assert reason in response["error"]["message"]


def test_a_call_without_a_name_has_failed():
    _, response = stream(calls(call(0, "c1", arguments='{"a":1}')) + end("tool_calls"))
    assert response["error"]["message"] == "the provider sent a tool call without a name"


SEPARATE = {
    "no index, no id": calls(call(name="f", arguments='{"a":1}'), call(name="g", arguments='{"a":2}')),
    "always index 0": calls(call(0, None, "f", '{"a":1}')) + calls(call(0, None, "g", '{"a":2}')),
    "always index 0, empty id": calls(call(0, "", "f", '{"a":1}')) + calls(call(0, "", "g", '{"a":2}')),
    "one id for all": calls(call(None, "c", "f", '{"a":1}'), call(None, "c", "g", '{"a":2}')),
    "without arguments": calls(call(name="f", arguments=""), call(name="g", arguments='{"a":2}')),
}


@pytest.mark.parametrize("body", SEPARATE.values(), ids=SEPARATE)
def test_each_call_is_one_of_its_own(body):
    _, response = stream(body + end("tool_calls"))
    assert [kind[1] for kind in shape(response)] == ["f", "g"]
    assert len({item["call_id"] for item in response["output"]}) == 2
    assert all(orjson.loads(item["arguments"]) is not None for item in response["output"])


def test_a_name_that_comes_with_every_fragment_makes_no_new_call():
    body = b"".join(calls(call(0, "c", "f", piece)) for piece in ('{"a"', ":1", "}", ""))
    assert shape(stream(body + end("tool_calls"))[1]) == [("call", "f", '{"a":1}')]


LITERAL = {
    "a harmony token": (text("<|start|>", " is a token. 42.") + end(), [("message", "<|start|> is a token. 42.")]),
    "no header": (
        text("<|channel|>analysis thinks out loud") + end(),
        [("message", "<|channel|>analysis thinks out loud")],
    ),
    "text behind a harmony body": (
        text("<|channel|>analysis<|message|>hm<|end|>", "42") + end(),
        [("reasoning", "hm"), ("message", "42")],
    ),
    "a tag beside reasoning": (
        chunk({"content": "<think> is a tag", "reasoning_content": "the user asks"}) + end(),
        [("reasoning", "the user asks"), ("message", "<think> is a tag")],
    ),
    "a bracket beside reasoning": (
        chunk({"content": "<", "reasoning_content": "the sign"}) + text("b") + end(),
        [("reasoning", "the sign"), ("message", "<b")],
    ),
}


@pytest.mark.parametrize(("body", "expected"), LITERAL.values(), ids=LITERAL)
def test_what_only_looks_like_markup_is_not_lost(body, expected):
    assert shape(stream(body)[1]) == expected


TWICE = {
    "a part and a field": {"reasoning_content": "abc", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "abc"}]}]},
    "a part and details": {
        "reasoning_details": [{"type": "reasoning.text", "text": "abc", "index": 0}],
        "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "abc"}]}],
    },
}  # fmt: skip


@pytest.mark.parametrize("delta", TWICE.values(), ids=TWICE)
def test_reasoning_that_comes_twice_counts_once(delta):
    assert shape(stream(chunk(delta) + text("so") + end())[1]) == [("reasoning", "abc"), ("message", "so")]


def test_a_message_beside_the_delta_is_not_read_again():
    choice = {"index": 0, "delta": {}, "message": {"content": "Hello"}, "finish_reason": "stop"}
    body = text("Hello") + b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"
    assert shape(stream(body)[1]) == [("message", "Hello")]


def test_snapshots_are_kept_once_for_the_way_back():
    thoughts = ("The user asks", "The user asks about", "The user asks about cats.")
    body = b"".join(
        chunk({"reasoning": each, "reasoning_details": [{"type": "reasoning.text", "text": each, "index": 0}]})
        for each in thoughts
    )
    _, response = stream(body + text("so") + end(), seal=SEAL)
    (detail,) = SEAL.open(response["output"][0]["encrypted_content"], "x").details
    assert detail["text"] == thoughts[-1]


def test_parallel_calls_stay_one_message_with_all_that_came_with_them():
    details = [{"type": "reasoning.encrypted", "data": f"sig{index}", "index": index} for index in (0, 1)]
    body = b"".join(
        chunk({"reasoning_details": [details[index]], "tool_calls": [call(index, f"c{index}", "f", "{}")]})
        for index in (0, 1)
    )
    _, response = stream(body + end("tool_calls"), seal=SEAL)
    outputs = [{"type": "function_call_output", "call_id": f"c{index}", "output": "x"} for index in (0, 1)]
    profile = Profile(model="m", uses_reasoning_parser=True, reasoning_out="reasoning_details")
    messages = to_chat({"input": [*response["output"], *outputs]}, profile, SEAL, stream=False)["messages"]
    assert [message["role"] for message in messages] == ["assistant", "tool", "tool"]
    assert len(messages[0]["tool_calls"]) == 2
    assert messages[0]["reasoning_details"] == details


def test_the_input_of_a_custom_tool_that_was_cut_is_no_json():
    request = {"input": "x", "tools": [{"type": "custom", "name": "patch"}]}
    _, response = stream(
        calls(call(0, "c", "patch", '{"input":"*** Begin\\nUpd\\u00e')) + end("length"), request=request
    )
    assert response["output"][0]["input"] == "*** Begin\nUpd"


TRAILING = {
    "text": DONE + text("more"),
    "an error": DONE + chunk(error={"message": "late"}),
    "a space": b"data: [DONE] \n\n",
}


@pytest.mark.parametrize("tail", TRAILING.values(), ids=TRAILING)
def test_what_comes_behind_done_is_nothing(tail):
    reply = make_reply()
    raw = reply.open() + reply.feed(text("a") + chunk({}, "stop") + tail)
    assert reply.ended
    check_grammar(parse_events(raw))
    assert (reply.response["status"], shape(reply.response)) == ("completed", [("message", "a")])


QUIET = {"a ping": b"event: ping\ndata: ping\n\n", "empty data": b"data:\n\n", "empty data, a space": b"data: \n\n"}


@pytest.mark.parametrize("event", QUIET.values(), ids=QUIET)
def test_signs_of_life_say_nothing(event):
    assert shape(stream(text("a") + event + text("b") + end())[1]) == [("message", "ab")]


def deepened(body):
    """The body with something 300 levels deep where it says DEEP; orjson reads more levels than it writes."""
    return body.replace(b'"DEEP"', b'{"a":' * 300 + b"1" + b"}" * 300)


TOO_DEEP = {
    "details": deepened(chunk({"reasoning_details": [{"type": "x", "data": "DEEP"}]})),
    "a signature": deepened(calls({**call(0, "c", "f", "{}"), "extra_content": "DEEP"})),
    "an error": b'data: {"error":' + b"[" * 900 + b"]" * 900 + b"}\n\n",
    "an index": chunk({"reasoning_details": [{"index": [0], "type": ["x"]}, {"index": [0]}]}),
    "counts": b'data: {"usage":{"prompt_tokens":1e300,"completion_tokens":99999999999999999999999}}\n\n',
    "a logprob": b'data: {"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":3}]}}]}\n\n',
}


@pytest.mark.parametrize("body", TOO_DEEP.values(), ids=TOO_DEEP)
def test_what_cannot_be_written_ends_the_reply_and_not_the_server(body):
    events, response = stream(text("a") + body + end(), seal=SEAL)
    check_grammar(events)
    assert shape(response)[0] == ("message", "a")


GROWING = {
    "brackets while another call waits": lambda n: (
        calls(call(0, "a", "f", '{"s":"'))
        + calls(call(1, "b", "g", "{}"))
        + b"".join(calls(call(0, arguments="]")) for _ in range(n))
    ),
    "a name in each fragment": lambda n: b"".join(calls(call(name="f", arguments="[")) for _ in range(n)),
    "many calls that wait": lambda n: b"".join(calls(call(i, f"c{i}", "f", "{")) for i in range(n)),
    "many ids": lambda n: b"".join(calls(call(None, f"c{i}", "f", "{}")) for i in range(n)),
    "a header without end": lambda n: text("<|channel|>", *["word "] * n),
    "details": lambda n: b"".join(chunk({"reasoning_details": [{"type": "t", "text": "w", "index": 0}]}) for _ in range(n)),
    "reasoning beside text of known shape": lambda n: (
        text("a", "b") + b"".join(chunk({"content": "a", "reasoning_content": "b"}) for _ in range(n))
    ),
    "blocks": lambda n: text("<think>r</think>b" * n),
}  # fmt: skip


@pytest.mark.parametrize("make", GROWING.values(), ids=GROWING)
def test_time_grows_with_length_and_no_faster(make):
    def cost_s(n):
        body = make(n) + end()
        started = time.process_time()
        reply = make_reply(seal=SEAL, interleaved=True)
        reply.feed(body)
        reply.close()
        return time.process_time() - started

    short = min(cost_s(500) for _ in range(5))
    assert min(cost_s(8000) for _ in range(2)) < 16 * short * 4, "16 times the length; quadratic would be 256 times"


@settings(deadline=None)
@given(st.lists(st.text(alphabet='{}[]",:\\1 a', max_size=6), max_size=12))
def test_json_in_pieces_is_whole_when_it_is_json(pieces):
    held = JsonText()
    for end_ in range(len(pieces) + 1):
        said = "".join(pieces[:end_])
        try:
            is_json = isinstance(orjson.loads(said), dict | list)
        except orjson.JSONDecodeError:
            is_json = False
        assert (held.whole(), str(held)) == (is_json, said)
        held.feed(*pieces[end_ : end_ + 1])


WRONG = {
    "an allowed tool without a type": {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "allowed_tools", "tools": [{"type": []}]}},
    "an added tool without a type": {"input": [{"type": "additional_tools", "tools": [{"type": [], "name": "x"}]}]},
    "a description that is none": {"tools": [{"type": "custom", "name": "c", "description": 3}]},
    "parameters that are none": {"tools": [{"type": "function", "name": "c", "parameters": 3}]},
    "one name for two tools": {
        "tools": [
            {"type": "function", "name": "ns__f"},
            {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "f"}]},
        ]
    },
    "deep parameters": {"metadata": {"extra_body": '{"a":' + "[" * 400 + "]" * 400 + "}"}},
}  # fmt: skip


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_refused_or_sent_but_never_breaks(fields):
    try:
        to_chat({"input": "x", **fields}, Profile(model="m"), SEAL, stream=False)
    except RequestError as error:
        assert error.param  # noqa: PT017


def test_a_tool_that_is_declared_twice_is_sent_once():
    tool = {"type": "function", "name": "f"}
    sent = to_chat({"input": "x", "tools": [tool, tool]}, Profile(model="m"), SEAL, stream=False)
    assert len(sent["tools"]) == 1


@pytest.mark.parametrize("payload", [b"[]", b'{"x":1}', b'{"text":5}', b'{"signatures":[1]}', b'{"details":[5]}'])
def test_a_forged_seal_is_refused(payload):
    forged = "gymlet1." + base64.urlsafe_b64encode(SEAL._tag(payload) + payload).decode()
    with pytest.raises(RequestError, match="damaged"):
        SEAL.open(forged, "input[0]")


def test_long_words_are_cut_in_messages():
    with pytest.raises(RequestError) as caught:
        to_chat({"input": [{"type": "x" * 100_000}]}, Profile(model="m"), SEAL, stream=False)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_the_requests_token_limit_wins(key):
    profile = Profile(model="m", max_tokens_key=key, extra_body={"max_tokens": 999})
    sent = to_chat({"input": "x", "max_output_tokens": 5}, profile, SEAL, stream=False)
    assert {name: value for name, value in sent.items() if "max" in name} == {key: 5}


def test_reasoning_that_was_said_again_is_not_swallowed():
    _, response = stream(reasoning("ha ha ha ", "ha ha ha ha ", "ha ha ha ", "!") + text("x") + end())
    assert response["output"][0]["summary"][0]["text"].endswith("ha ha ha !")
