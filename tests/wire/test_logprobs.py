"""Log probabilities: asked for, split from the reasoning's, given out where clients look for them."""

import orjson
import pytest
from wire.pipeline import check_grammar, chunk, end, stream, to_chat

from gymlet.wire.logprobs import read_logprobs, tail
from gymlet.wire.profile import Profile
from gymlet.wire.seal import Seal

pytestmark = pytest.mark.pure


def token(text, logprob=-0.5, **more):
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": [], **more}


def scored(text, *tokens):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    logprobs = {"content": [token(each) for each in tokens or (text,)]}
    return b"data: " + orjson.dumps({"choices": [{**choice, "logprobs": logprobs}]}) + b"\n\n"


def tokens_of(response):
    return [each["token"] for each in response["output"][-1]["content"][0].get("logprobs", ())]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (scored("a") + scored("b") + scored("b"), ["a", "b", "b"]),
        (scored("<think>") + scored("no") + scored("</think>") + scored("yes"), ["yes"]),
        (scored("<think>no</think>yes", "<think>", "no", "</think>", "ye", "s"), ["ye", "s"]),
        (scored("<") + scored("b>"), ["<", "b>"]),
        (scored("<thi"), ["<thi"]),
        (chunk({"content": "a"}) + scored("b"), ["b"]),
    ],
)
def test_they_stay_with_the_answer(body, tokens):
    events, response = stream(body + end())
    check_grammar(events)
    assert tokens_of(response) == tokens
    streamed = [
        each["token"] for event in events if event["type"].endswith("text.delta") for each in event.get("logprobs", ())
    ]
    assert streamed == tokens
    (done,) = [event for event in events if event["type"] == "response.output_text.done"]
    assert [each["token"] for each in done["logprobs"]] == tokens


def test_without_them_the_part_has_no_key():
    _, response = stream(chunk({"content": "a"}) + end())
    assert "logprobs" not in response["output"][0]["content"][0]


def test_other_shapes_are_read():
    assert read_logprobs({"tokens": ["a", "b"], "token_logprobs": [None, -1.5]}) == (token("a", 0.0), token("b", -1.5))
    bare = {"token": "é", "logprob": -1.0, "top_logprobs": [{"token": "e", "logprob": -2.0}]}
    (read,) = read_logprobs({"content": [bare]})
    assert read["bytes"] == [195, 169]
    assert read["top_logprobs"] == [{"token": "e", "logprob": -2.0, "bytes": [101]}]


def test_the_tail_spells_the_text():
    tokens = [token(each) for each in ("ab", "c", "de")]
    assert [each["token"] for each in tail(tokens, "cde")] == ["c", "de"]
    assert tail(tokens, "") == ()
    assert len(tail(tokens, "x" * 99)) == 3
    halves = [{"token": "\\xc3", "bytes": [0xC3]}, {"token": "\\xa9", "bytes": [0xA9]}]
    assert tail([token("a"), *halves], "é") == tuple(halves)


@pytest.mark.parametrize(
    ("request_", "form", "sent"),
    [
        ({"top_logprobs": 3}, "flag", {"logprobs": True, "top_logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, "flag", {"logprobs": True}),
        ({"top_logprobs": 3}, "count", {"logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, "count", {"logprobs": 1}),
        ({"top_logprobs": 0}, "flag", {}),
    ],
)
def test_they_are_asked_for(request_, form, sent):
    body = to_chat({"input": "x", **request_}, Profile(model="m", logprobs=form), Seal("o"), stream=False)
    assert {key: value for key, value in body.items() if "logprobs" in key} == sent
