"""The whole pipeline, over bytes as providers send them."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.pipeline import DONE, call, calls, check_grammar, chunk, end, make_reply, reasoning, shape, stream, text

from gymlet.wire.errors import StreamError

pytestmark = pytest.mark.pure

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
LONG = "".join(f"word{number} " for number in range(50))

CASES = {
    "plain text": (text("Hel", "lo") + end(), [("message", "Hello")]),
    "nothing at all is one empty message": (end(), [("message", "")]),
    "only white space is a message": (text(" \n") + end(), [("message", " \n")]),
    "reasoning in a field": (reasoning("a", "b") + text("c") + end(), [("reasoning", "ab"), ("message", "c")]),
    "reasoning, the newer name": (reasoning("a", key="reasoning") + text("c") + end(), [("reasoning", "a"), ("message", "c")]),
    "both names at once count once": (
        chunk({"reasoning": "a", "reasoning_content": "a"}) + text("c") + end(),
        [("reasoning", "a"), ("message", "c")],
    ),
    "reasoning and content in one delta": (
        chunk({"reasoning_content": "a", "content": "b"}) + end(),
        [("reasoning", "a"), ("message", "b")],
    ),
    "white space before the reasoning is no message": (
        text("\n") + reasoning("a") + text("b") + end(),
        [("reasoning", "a"), ("message", "b")],
    ),
    "reasoning comes again": (
        reasoning("a") + text("b") + reasoning("c") + text("d") + end(),
        [("reasoning", "a"), ("message", "b"), ("reasoning", "c"), ("message", "d")],
    ),
    "think tags": (text("<think>a</think>b") + end(), [("reasoning", "a"), ("message", "b")]),
    "think tags cut anywhere": (text(*"<think>a<b</think>c</think>") + end(), [("reasoning", "a<b"), ("message", "c</think>")]),
    "thought tags": (text("\n<thought>a", "</thought>b") + end(), [("reasoning", "a"), ("message", "b")]),
    "thinking tags": (text("<thinking>a</thinking>b") + end(), [("reasoning", "a"), ("message", "b")]),
    "triangle tags": (text("◁think▷a◁/think▷b") + end(), [("reasoning", "a"), ("message", "b")]),
    "white space around a tag's text is kept": (
        text("<think> \n a \n </think> \n b ") + end(),
        [("reasoning", " \n a \n "), ("message", " \n b ")],
    ),
    "a tag in mid-sentence is text": (text("use <think> so </think>") + end(), [("message", "use <think> so </think>")]),
    "less-than is text": (text("4 ", "<", " 5") + end(), [("message", "4 < 5")]),
    "a tag begun and never ended is text": (text("<thi") + end(), [("message", "<thi")]),
    "an empty block is no item": (text("<think>\n\n</think>\n\nb") + end(), [("message", "\n\nb")]),
    "an unclosed block is reasoning": (text("<think>abc</thi") + end(), [("reasoning", "abc</thi")]),
    "tags stay where a field had the reasoning": (
        reasoning("a") + text("<think>b</think>") + end(),
        [("reasoning", "a"), ("message", "<think>b</think>")],
    ),
    "thinking parts": (
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]})
        + chunk({"content": [{"type": "text", "text": "b"}]})
        + text("c")
        + end(),
        [("reasoning", "a"), ("message", "bc")],
    ),
    "a refusal": (chunk({"refusal": "No."}) + end(), [("message", "No.")]),
    "a call": (
        calls(call(0, "c1", "f", "")) + calls(call(0, arguments='{"a"')) + calls(call(0, arguments=":1}")) + end("tool_calls"),
        [("call", "f", '{"a":1}')],
    ),
    "a call without arguments": (calls(call(0, "c1", "f", "")) + end("tool_calls"), [("call", "f", "{}")]),
    "arguments as an object": (calls(call(0, "c1", "f", {"a": 1})) + end("tool_calls"), [("call", "f", '{"a":1}')]),
    "parallel calls by index": (
        calls(call(0, "c1", "f", "{}")) + calls(call(1, "c2", "g", '{"b":')) + calls(call(1, arguments="2}")) + end("tool_calls"),
        [("call", "f", "{}"), ("call", "g", '{"b":2}')],
    ),
    "indices may start anywhere": (calls(call(1, "c1", "f", "{}")) + calls(call(7, "c2", "g", "{}")) + end(), [("call", "f", "{}"), ("call", "g", "{}")]),
    "all calls at index 0, told apart by id": (
        calls(call(0, "c1", "f", "{}")) + calls(call(0, "c2", "g", "{}")) + end("tool_calls"),
        [("call", "f", "{}"), ("call", "g", "{}")],
    ),
    "no index, told apart by id": (
        calls(call(None, "c1", "f", "{}"), call(None, "c2", "g", "{}")) + end("tool_calls"),
        [("call", "f", "{}"), ("call", "g", "{}")],
    ),
    "neither index nor id": (
        calls(call(None, None, "f", '{"a"')) + calls(call(arguments=":1}")) + calls(call(None, None, "g", "{}")) + end(),
        [("call", "f", '{"a":1}'), ("call", "g", "{}")],
    ),
    "continuations repeat id and name": (
        calls(call(0, "c1", "f", '{"a"')) + calls(call(0, "c1", "f", ":1}")) + calls(call(0, "", "", "")) + end(),
        [("call", "f", '{"a":1}')],
    ),
    "interleaved fragments": (
        calls(call(0, "c1", "f", ""), call(1, "c2", "g", ""))
        + calls(call(0, arguments='{"a":'), call(1, arguments='{"b":'))
        + calls(call(1, arguments="2}"), call(0, arguments="1}"))
        + end("tool_calls"),
        [("call", "f", '{"a":1}'), ("call", "g", '{"b":2}')],
    ),
    "three calls interleaved, text behind": (
        calls(call(0, "c1", "f", "{"), call(1, "c2", "g", "{"), call(2, "c3", "h", "{}"))
        + text("done")
        + calls(call(1, arguments="}"), call(0, arguments="}"))
        + end("tool_calls"),
        [("call", "f", "{}"), ("call", "g", "{}"), ("call", "h", "{}"), ("message", "done")],
    ),
    "white space before a call is no message": (
        text("<think>a</think>", "\n\n") + calls(call(0, "c1", "f", "{}")) + end("tool_calls"),
        [("reasoning", "a"), ("call", "f", "{}")],
    ),
    "text before a call is a message": (text("ok") + calls(call(0, "c1", "f", "{}")) + end(), [("message", "ok"), ("call", "f", "{}")]),
    "a block may open again after a call": (
        text("<think>a</think>") + calls(call(0, "c1", "f", "{}")) + text("<think>b</think>c") + end(),
        [("reasoning", "a"), ("call", "f", "{}"), ("reasoning", "b"), ("message", "c")],
    ),
    "a null finish after a whole call": (calls(call(0, "c1", "f", "{}")) + DONE, [("call", "f", "{}")]),
    "only choice 0 is read": (
        b'data: {"choices":[{"index":1,"delta":{"content":"no"}},{"index":0,"delta":{"content":"yes"}}]}\n\n' + end(),
        [("message", "yes")],
    ),
    "chunks without choices or delta": (
        chunk() + b'data: {"choices":null}\n\n' + b'data: {"choices":[{"delta":null}]}\n\n' + text("a") + end(),
        [("message", "a")],
    ),
    "content after and on the finish": (chunk({"content": "a"}, "stop") + text("b") + end(), [("message", "ab")]),
    "no [DONE]": (text("a") + chunk({}, "stop"), [("message", "a")]),
    "a long answer": (text(*LONG) + end(), [("message", LONG)]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), CASES.values(), ids=CASES)
def test_reads(body, expected):
    events, response = stream(body)
    check_grammar(events)
    assert (response["status"], shape(response)) == ("completed", expected)


@pytest.mark.parametrize("body", [body for body, _ in CASES.values()], ids=CASES)
@pytest.mark.parametrize("newline", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
def test_newlines_change_nothing(body, newline):
    assert stream(body.replace(b"\n", newline)) == stream(body)


@settings(deadline=None)
@given(st.sampled_from([body for body, _ in CASES.values()]), st.lists(st.integers(1, 40), max_size=60))
def test_byte_cuts_change_nothing(body, sizes):
    assert stream(body, sizes) == stream(body)


@settings(deadline=None)
@given(st.text(alphabet="<>/think ◁▷ab\n", max_size=60), st.lists(st.integers(1, 6), max_size=30))
def test_text_cuts_change_nothing(whole, sizes):
    pieces, start = [], 0
    for size in sizes:
        pieces.append(whole[start : start + size])
        start += size
    pieces.append(whole[start:])
    _, response = stream(text(*pieces) + end())
    assert shape(response) == shape(stream(text(whole) + end())[1])


@settings(deadline=None)
@given(st.text(alphabet="<>/think ab\n", max_size=60))
def test_no_answer_is_ever_lost(whole):
    _, response = stream(text(whole) + end(), parse=False)
    assert shape(response) == [("message", whole)]


def test_without_the_parser_content_is_untouched():
    body = reasoning("dropped") + text("<think>a</think>b") + end()
    assert shape(stream(body, parse=False)[1]) == [("message", "<think>a</think>b")]


FINISHES = {
    "length": ("incomplete", {"reason": "max_output_tokens"}, "incomplete"),
    "model_length": ("incomplete", {"reason": "max_output_tokens"}, "incomplete"),
    "content_filter": ("incomplete", {"reason": "content_filter"}, "incomplete"),
    "stop": ("completed", None, "completed"),
    "eos": ("completed", None, "completed"),
    "tool_calls": ("completed", None, "completed"),
}


@pytest.mark.parametrize(("finish", "expected"), FINISHES.items(), ids=FINISHES)
def test_finish_reasons(finish, expected):
    events, response = stream(text("a") + end(finish))
    assert (response["status"], response["incomplete_details"], response["output"][0]["status"]) == expected
    assert events[-1]["type"] == f"response.{expected[0]}"


def test_cut_arguments_are_not_repaired():
    _, response = stream(calls(call(0, "c1", "f", '{"path":"/tm')) + end("length"))
    assert shape(response) == [("call", "f", '{"path":"/tm')]
    assert response["output"][0]["status"] == "incomplete"


USAGES = {
    "as OpenAI": ({**USAGE, "completion_tokens_details": {"reasoning_tokens": 2}}, (3, 5, 8, 0, 2)),
    "reasoning left out of completion": (
        {"prompt_tokens": 436, "completion_tokens": 68, "total_tokens": 652, "completion_tokens_details": {"reasoning_tokens": 148}},
        (436, 216, 652, 0, 148),
    ),
    "more reasoning than output is clamped": (
        {"prompt_tokens": 43, "completion_tokens": 10, "total_tokens": 53, "completion_tokens_details": {"reasoning_tokens": 11}},
        (43, 10, 53, 0, 10),
    ),
    "cached, several names": ({**USAGE, "prompt_cache_hit_tokens": 2}, (3, 5, 8, 2, 0)),
    "the unambiguous name wins": ({**USAGE, "cached_tokens": 9, "cached_input_tokens": 1}, (3, 5, 8, 1, 0)),
    "no total": ({"prompt_tokens": 3, "completion_tokens": 5}, (3, 5, 8, 0, 0)),
    "nulls": ({**USAGE, "prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}, (3, 5, 8, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), USAGES.values(), ids=USAGES)
def test_usage(raw, expected):
    usage = stream(text("a") + end(usage=raw))[1]["usage"]
    details = usage["input_tokens_details"]["cached_tokens"], usage["output_tokens_details"]["reasoning_tokens"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"], *details) == expected


@pytest.mark.parametrize(("total", "expected"), [(7, 7), (True, None), (7.5, None), ("7", None), (None, None)])
def test_a_total_that_is_no_whole_number_is_not_passed_on(total, expected):
    reply = make_reply()
    reply.feed(
        chunk({"content": "hi"}) + end(usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": total})
    )
    assert reply.tokens == expected


def test_the_last_usage_counts():
    body = chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": 1}) + end(usage=USAGE)
    assert stream(body)[1]["usage"]["output_tokens"] == 5


BROKEN = {
    "the end before a finish": (text("a"), "ended before the model had finished"),
    "[DONE] before a finish": (text("a") + DONE, "ended before the model had finished"),
    "a call cut off": (calls(call(0, "c", "rm", '{"path":"/tm')), "ended before the model had finished"),
    "an error object": (text("a") + b'data: {"error":{"message":"boom","code":500}}\n\n', "boom"),
    "an error string": (text("a") + b'data: {"error":"boom"}\n\n', "boom"),
    "an error event": (text("a") + b'event: error\ndata: {"error":{"message":"boom"}}\n\n', "boom"),
    "an error line": (text("a") + b'error: {"detail":"boom"}\n\n', "boom"),
    "an error in the choice": (text("a") + b'data: {"choices":[{"finish_reason":"error","error":{"message":"boom"}}]}\n\n', "boom"),
    "an error of MiniMax": (b'data: {"base_resp":{"status_code":1004,"status_msg":"boom"}}\n\n', "boom"),
    "no JSON": (text("a") + b"data: <html>\n\n", "not JSON: '<html>'"),
    "no object": (b"data: [1]\n\n", "an error"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_streams_fail_in_band(body, message):
    events, response = stream(body)
    check_grammar(events)
    error = events[-2]
    assert (error["type"], response["status"]) == ("error", "failed")
    assert message in error["message"]
    assert error["error"]["message"] == error["message"] == response["error"]["message"]


def test_what_was_said_before_a_failure_stays_said():
    _, response = stream(text("abc") + b'data: {"error":"boom"}\n\n')
    assert shape(response) == [("message", "abc")]
    assert response["output"][0]["status"] == "incomplete"


def test_an_error_after_the_token_limit_is_the_token_limit():
    body = text("a") + chunk({}, "length") + b'data: {"error":{"message":"Token limit reached"}}\n\n' + DONE
    assert stream(body)[1]["status"] == "incomplete"


def test_nothing_follows_a_failure():
    reply = make_reply()
    reply.open()
    assert reply.fail(StreamError("gone"))
    assert (reply.feed(text("a")), reply.close(), reply.fail(StreamError("again"))) == (b"", b"", b"")


WHOLE = {
    "text": ({"content": "a"}, [("message", "a")]),
    "reasoning and tags": ({"content": "b", "reasoning": "a"}, [("reasoning", "a"), ("message", "b")]),
    "tags": ({"content": "<think>a</think>b"}, [("reasoning", "a"), ("message", "b")]),
    "calls without ids": (
        {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "f", "arguments": ""}}]},
        [("call", "f", "{}"), ("call", "f", "{}")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), WHOLE.values(), ids=WHOLE)
def test_a_whole_body_takes_the_same_way(message, expected):
    reply = make_reply()
    body = orjson.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE})
    reply.feed_body(b"  \n" + body)
    assert shape(reply.response) == expected


@pytest.mark.parametrize("body", [b"{}", b'{"error":{"message":"no"}}', b"{", b"[]"])
def test_a_body_that_is_no_reply_fails(body):
    reply = make_reply()
    reply.feed_body(body)
    assert reply.response["status"] == "failed"


@pytest.mark.parametrize("form", ["summary", "content", "open_responses"])
def test_reasoning_has_three_forms(form):
    events, response = stream(reasoning("a", "b") + text("c") + end(), reasoning_output=form)
    check_grammar(events)
    item = response["output"][0]
    assert [part["text"] for part in item["summary" if form == "summary" else "content"]] == ["ab"]


def test_a_million_pieces_take_linear_time():
    reply = make_reply()
    piece = text("x")
    for _ in range(20):
        reply.feed(piece * 1000)
    reply.feed(end())
    reply.close()
    assert len(reply.response["output"][0]["content"][0]["text"]) == 20_000
