"""How providers really behave on the wire: one test per known habit, made of bytes of our own. docs/streaming.md."""

import orjson
import pytest
from wire.pipeline import DONE, call, calls, check_grammar, chunk, end, make_reply, reasoning, shape, stream, text

from gymlet.wire.seal import Seal

pytestmark = pytest.mark.pure

SEAL = Seal("provider.example/m")
THOUGHT_A_ANSWER_B = [("reasoning", "aaa"), ("message", "bbb")]
ONE_CALL = [("call", "f", '{"a":1}')]
WHOLE_CALL = calls(call(0, "c1", "f", '{"a":1}'))
CUMULATIVE = reasoning("the user asks", "the user asks for", "the user asks for it")
THINK_TWICE = chunk({"content": "<think>aa", "reasoning_content": "aa"}) + chunk(
    {"content": "a</think>bbb", "reasoning_content": "a"}
)
DETAILS = [{"type": "reasoning.text", "text": "aaa", "index": 0}]
HARMONY = "<|channel|>analysis<|message|>aaa<|end|><|start|>assistant<|channel|>final<|message|>bbb<|return|>"
HARMONY_CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>" + '{"a":1}<|call|>'

RULES = {
    "01 comments, no space, CR, BOM, event and id lines": (
        b"\xef\xbb\xbf: busy\r\rid: 1\revent: message\r" + chunk({"content": "bbb"}).replace(b"data: ", b"data:").replace(b"\n", b"\r") + end(),
        [("message", "bbb")],
    ),
    "02 the end without [DONE], after a finish": (text("bbb") + chunk({}, "stop"), [("message", "bbb")]),
    "02 a chunk after [DONE]": (text("bbb") + end() + chunk(cost="0"), [("message", "bbb")]),
    "05 no choices first and last, no delta": (
        chunk(prompt_filter_results=[]) + b'data: {"choices":null}\n\n' + text("bbb") + chunk(None) + end(),
        [("message", "bbb")],
    ),
    "05 only the first choice": (
        b'data: {"choices":[{"index":1,"delta":{"content":"x"}}]}\n\n' + text("bbb") + end(),
        [("message", "bbb")],
    ),
    "06 content rides on the finish and follows it": (
        chunk({"content": "b"}, "stop") + chunk({"content": "bb"}, "stop") + end(),
        [("message", "bbb")],
    ),
    "08 calls with finish stop": (WHOLE_CALL + end("stop"), ONE_CALL),
    "08 calls with no finish": (WHOLE_CALL + DONE, ONE_CALL),
    "09 both fields": (chunk({"reasoning": "aaa", "reasoning_content": "aaa"}) + text("bbb") + end(), THOUGHT_A_ANSWER_B),
    "09 a field and its details": (chunk({"reasoning": "aaa", "reasoning_details": DETAILS}) + text("bbb") + end(), THOUGHT_A_ANSWER_B),
    "09 details alone": (chunk({"reasoning_details": DETAILS}) + text("bbb") + end(), THOUGHT_A_ANSWER_B),
    "10 reasoning and content in one delta": (chunk({"reasoning": "aaa", "content": "bbb"}) + end(), THOUGHT_A_ANSWER_B),
    "11 white space before the reasoning": (text("\n") + reasoning("aaa") + text("bbb") + end(), THOUGHT_A_ANSWER_B),
    "11 white space before a call": (text("\n\n") + WHOLE_CALL + end("tool_calls"), ONE_CALL),
    "12 interleaved": (
        reasoning("aaa") + text("bbb") + reasoning("aaa") + text("bbb") + end(),
        THOUGHT_A_ANSWER_B * 2,
    ),
    "13 snapshots of all so far": (CUMULATIVE + text("bbb") + end(), [("reasoning", "the user asks for it"), ("message", "bbb")]),
    "13 a short repetition is no snapshot": (reasoning("ha", "haha") + text("bbb") + end(), [("reasoning", "hahaha"), ("message", "bbb")]),
    "15 a thought whose closing tag is glued on": (
        chunk({"content": "<thought>aaa", "extra_content": {"google": {"thought": True}}}) + text("</thought>bbb") + end(),
        THOUGHT_A_ANSWER_B,
    ),
    "16 content switches between string and parts": (
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "aaa"}]}]})
        + chunk({"content": ""}) + text("b") + chunk({"content": [{"type": "text", "text": "bb"}]}) + end(),
        THOUGHT_A_ANSWER_B,
    ),
    "17 less-than is no tag": (text("4 ", "<", " 5, <", "b>") + end(), [("message", "4 < 5, <b>")]),
    "18 later tags are text": (
        text("<think>aaa</think>b <think> b </think>") + end(),
        [("reasoning", "aaa"), ("message", "b <think> b </think>")],
    ),
    "18 nested: the first closing tag wins": (
        text("<think>a<think>a</think>b</think>") + end(),
        [("reasoning", "a<think>a"), ("message", "b</think>")],
    ),
    "18 a second block after a call": (
        text("<think>aaa</think>") + WHOLE_CALL + text("<think>aaa</think>bbb") + end(),
        [("reasoning", "aaa"), *ONE_CALL, *THOUGHT_A_ANSWER_B],
    ),
    "19 a bare closing tag is dropped": (text("aaa\n</thi", "nk>bbb") + end(), [("message", "aaa\nbbb")]),
    "19 a quoted closing tag is text": (text("write `</think>` so") + end(), [("message", "write `</think>` so")]),
    "20 unclosed": (text("<think>aaa") + end(), [("reasoning", "aaa")]),
    "21 an empty block": (text("<think>\n\n</think>bbb") + end(), [("message", "bbb")]),
    "22 tool XML is text": (
        text("<think>aaa</think><tool_call><function=f></tool_call>") + end(),
        [("reasoning", "aaa"), ("message", "<tool_call><function=f></tool_call>")],
    ),
    "23 harmony": (text(HARMONY) + end(), THOUGHT_A_ANSWER_B),
    "23 a call in harmony": (text(HARMONY_CALL) + end(), ONE_CALL),
    "25 all calls at index 0": (
        WHOLE_CALL + calls(call(0, "c2", "g", "{}")) + end("tool_calls"),
        [*ONE_CALL, ("call", "g", "{}")],
    ),
    "25 gaps between indices": (calls(call(3, "c1", "f", '{"a":1}')) + end("tool_calls"), ONE_CALL),
    "26 continuations with empty ids and repeated names": (
        calls(call(0, "c1", "f", '{"a"')) + calls(call(0, "", "f", ":1}")) + calls(call(0, None, "", None)) + end("tool_calls"),
        ONE_CALL,
    ),
    "26 arguments as an object": (calls(call(0, "c1", "f", {"a": 1})) + end("tool_calls"), ONE_CALL),
    "26 no arguments": (calls(call(0, "c1", "f", None)) + end("tool_calls"), [("call", "f", "{}")]),
    "27 no id": (calls(call(0, "", "f", '{"a":1}')) + end("tool_calls"), ONE_CALL),
    "28 fragments of parallel calls interleave": (
        calls(call(0, "c1", "f", '{"a"'), call(1, "c2", "g", "{")) + calls(call(0, arguments=":1}"), call(1, arguments="}")) + end(),
        [*ONE_CALL, ("call", "g", "{}")],
    ),
}  # fmt: skip
DUPLICATED = {"13b the same text in tags and in a field": (THINK_TWICE + end(), THOUGHT_A_ANSWER_B)}


@pytest.mark.parametrize(("body", "expected"), (RULES | DUPLICATED).values(), ids=RULES | DUPLICATED)
def test_a_habit(body, expected):
    events, response = stream(body)
    check_grammar(events)
    assert (response["status"], shape(response)) == ("completed", expected)


@pytest.mark.parametrize(("body", "expected"), (RULES | DUPLICATED).values(), ids=RULES | DUPLICATED)
def test_a_habit_byte_by_byte(body, expected):
    _, response = stream(body, sizes=[1] * len(body))
    assert shape(response) == expected


FAILURES = {
    "02 the end without a finish": text("bbb"),
    "03 an error line that is no event": text("bbb") + b'error: {"detail":"broken"}\n\n',
    "07 an error event": text("bbb") + b'event: error\ndata: {"error":{"message":"broken"}}\n\n',
    "07 an error object": text("bbb") + b'data: {"error":{"message":"broken"}}\n\n',
    "07 an error string": text("bbb") + b'data: {"error":"broken"}\n\n',
    "07 an error in the choice": text("bbb") + b'data: {"choices":[{"index":0,"error":{"message":"broken"},"finish_reason":"error"}]}\n\n',
    "07 a status in base_resp": text("bbb") + b'data: {"base_resp":{"status_code":1,"status_msg":"broken"}}\n\n',
}  # fmt: skip


@pytest.mark.parametrize("body", FAILURES.values(), ids=FAILURES)
def test_a_failure_keeps_what_was_said(body):
    events, response = stream(body)
    check_grammar(events)
    assert (response["status"], shape(response)) == ("failed", [("message", "bbb")])
    assert "broken" in response["error"]["message"] or "finish_reason" in response["error"]["message"]


def test_07_an_error_after_the_token_limit_is_incomplete():
    _, response = stream(text("bbb") + chunk({}, "length") + b'data: {"error":{"message":"x"}}\n\n')
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_08_a_call_that_the_token_limit_cut_is_incomplete_and_not_repaired():
    _, response = stream(calls(call(0, "c1", "f", '{"path":"/tm')) + end("length"))
    (item,) = response["output"]
    assert (response["status"], item["status"], item["arguments"]) == ("incomplete", "incomplete", '{"path":"/tm')


def test_20_unclosed_at_the_token_limit_is_reasoning_alone():
    _, response = stream(text("<think>aaa") + end("length"), unclosed="answer")
    assert (response["status"], shape(response)) == ("incomplete", [("reasoning", "aaa")])


def test_20_unclosed_may_be_the_answer():
    _, response = stream(text("<think>aaa") + end(), unclosed="answer")
    assert shape(response) == [("reasoning", "aaa"), ("message", "aaa")]


IMPLICIT = {
    "closed": (text("aaa</think>bbb") + end(), THOUGHT_A_ANSWER_B),
    "closed before a call": (text("aaa\n</think>\n\n") + WHOLE_CALL + end("tool_calls"), [("reasoning", "aaa\n"), *ONE_CALL]),
    "opened after all": (text("<think>aaa</think>bbb") + end(), THOUGHT_A_ANSWER_B),
    "never closed: it was the answer": (text("bbb") + end(), [("reasoning", "bbb"), ("message", "bbb")]),
    "never closed, cut off": (text("aaa") + end("length"), [("reasoning", "aaa")]),
    "a field has the reasoning": (reasoning("aaa") + text("bbb") + end(), THOUGHT_A_ANSWER_B),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), IMPLICIT.values(), ids=IMPLICIT)
def test_19_a_reply_that_begins_inside_the_block(body, expected):
    for sizes in ([], [1] * len(body)):
        _, response = stream(body, sizes=sizes, implicit=True)
        assert shape(response) == expected


def test_19_json_was_asked_for_and_came():
    _, response = stream(text('{"a":1}') + end(), implicit=True, json=True)
    assert shape(response) == [("message", '{"a":1}')]


def test_14_details_are_merged_and_sealed():
    fragments = [
        {"type": "reasoning.text", "text": "aa", "index": 0},
        {"type": "reasoning.text", "text": "a", "index": 0},
        {"type": "reasoning.text", "signature": "s", "format": "x", "index": 0},
        {"type": "reasoning.encrypted", "data": "e", "index": 1},
    ]
    body = b"".join(chunk({"reasoning_details": [each]}) for each in fragments) + text("bbb") + end()
    _, response = stream(body, seal=SEAL)
    thought = SEAL.open(response["output"][0]["encrypted_content"], "x")
    assert (thought.text, thought.details) == (
        "aaa",
        [{"type": "reasoning.text", "text": "aaa", "index": 0, "signature": "s", "format": "x"}, fragments[3]],
    )


def test_15_a_thought_signature_is_sealed_before_its_call():
    extra = {"google": {"thought_signature": "s"}}
    fragment = {**call(0, "c1", "f", "{}"), "extra_content": extra}
    events, response = stream(calls(fragment) + end("tool_calls"), seal=SEAL)
    check_grammar(events)
    bare, _ = response["output"]
    assert (bare["type"], bare["summary"]) == ("reasoning", [])
    assert SEAL.open(bare["encrypted_content"], "x").signatures == {"c1": extra}


def test_04_a_whole_reply_padded_with_white_space():
    reply = make_reply()
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "bbb"}, "finish_reason": "stop"}]}
    reply.feed_body(b"\n    \n\n" + orjson.dumps(body))
    assert shape(reply.response) == [("message", "bbb")]


def test_24_no_delta_is_ever_empty():
    events, _ = stream(text("", "b", "") + reasoning("") + end())
    assert [event["delta"] for event in events if event["type"].endswith(".delta")] == ["b"]
