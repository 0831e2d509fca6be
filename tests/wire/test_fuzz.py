"""Whatever a provider sends, a reply ends, and its stream keeps the grammar."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.pipeline import DONE, check_grammar, end, make_reply, parse_events, stream, text

from gymlet.wire.deltas import Text
from gymlet.wire.harmony import STARTS
from gymlet.wire.reasoning import TAGS, Tagged

pytestmark = pytest.mark.pure

KEYS = ["choices", "delta", "message", "content", "reasoning_content", "reasoning", "tool_calls", "function", "name", "arguments", "id",
        "index", "finish_reason", "usage", "error", "code", "refusal", "type", "thinking", "text", "prompt_tokens", "total_tokens"]  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(["", "a", "<think>", "</think>", "stop", "length", "{}"]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)
DELTAS = st.dictionaries(st.sampled_from(KEYS), TREES, max_size=4)
CHUNKS = st.one_of(TREES, st.builds(lambda delta: {"choices": [{"index": 0, "delta": delta}]}, DELTAS))


@settings(deadline=None, max_examples=600)
@given(st.lists(CHUNKS, max_size=5), st.booleans())
def test_any_chunks_end_in_a_grammatical_stream(chunks, ends):
    body = b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in chunks)
    events, response = stream(body + (end() if ends else DONE))
    check_grammar(events)
    assert response["status"] in ("completed", "incomplete", "failed")


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_end_in_a_grammatical_stream(body):
    events, _ = stream(body)
    check_grammar(events)


@settings(deadline=None, max_examples=300)
@given(TREES)
def test_any_whole_body_ends(payload):
    reply = make_reply()
    raw = reply.open() + reply.feed_body(orjson.dumps(payload))
    check_grammar(parse_events(raw))


def test_a_provider_may_repeat_itself_within_a_chunk():
    """The text of a chunk is also the name of its model: its shape must not be taken from there."""
    body = b"".join(
        b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % piece
        for piece in (b"m", b"a", b"m", b"b\\n", b"\\u0041", b"c")
    )
    _, response = stream(body + text("!") + end())
    assert response["output"][0]["content"][0]["text"] == "mamb\nAc!"


@pytest.mark.parametrize(
    "last", [b'{"choices":[{"delta":{"content":"}}]}', b'{"choices":[{"delta":{"content":"\\"}}]}']
)
def test_what_only_looks_like_the_chunks_before_it_is_no_text(last):
    one = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
    _, response = stream(one % b"a" + one % b"b" + b"data: " + last + b"\n\n")
    assert response["status"] == "failed"
    assert "not JSON" in response["error"]["message"]


@settings(deadline=None)
@given(st.lists(st.text(alphabet="<>/|think ◁▷ab", max_size=12), max_size=30), st.booleans(), st.booleans())
def test_a_splitter_holds_no_more_than_a_tag(texts, implicit, interleaved):
    splitter = Tagged(str, implicit=implicit, interleaved=interleaved)
    for piece in texts:
        splitter.feed([Text(piece)] if piece else [])
        assert len(splitter._held) < max(map(len, (*TAGS, *TAGS.values(), *STARTS)))
