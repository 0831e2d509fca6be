"""A client's request: what it becomes, and that nothing in it can break the server."""

import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire.pipeline import to_chat

from gymlet.wire.chat_request import pass_chat
from gymlet.wire.errors import RequestError
from gymlet.wire.profile import Profile
from gymlet.wire.request import envelope
from gymlet.wire.seal import Seal
from gymlet.wire.tools import toolbox
from gymlet.wire.way_back import strip_think

pytestmark = pytest.mark.pure

PLAIN = Profile(model="m")
STRIPPING = Profile(model="m", uses_reasoning_parser=True, system_role="system")
SEAL = Seal("here/m")
USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "ok"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

HISTORIES = {
    "a string": ("hi", [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    "a message without a type": ([USER], [USER]),
    "parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "u", "detail": "low"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]}],
    ),
    "reasoning, a message and calls are one": (
        [USER, THOUGHT, {"role": "assistant", "content": "so"}, CALL, OUTPUT],
        [
            USER,
            {"role": "assistant", "content": "<think>hm</think>so", "tool_calls": [SENT_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        ],
    ),
    "two assistant messages stay two": (
        [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
    ),
    "an output in parts": (
        [CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "o"}, {"type": "input_text", "text": "k"}]}],
        [{"role": "assistant", "content": None, "tool_calls": [SENT_CALL]}, {"role": "tool", "tool_call_id": "c1", "content": "ok"}],
    ),
    "a refusal": (
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
        [{"role": "assistant", "content": None, "refusal": "No."}],
    ),
    "a developer": ([{"role": "developer", "content": "d"}], [{"role": "developer", "content": "d"}]),
    "a namespaced call": (
        [{**CALL, "namespace": "ns"}],
        [{"role": "assistant", "content": None, "tool_calls": [{**SENT_CALL, "function": {"name": "ns__f", "arguments": "{}"}}]}],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("items", "messages"), HISTORIES.values(), ids=HISTORIES)
def test_items_become_messages(items, messages):
    assert to_chat({"input": items}, PLAIN, SEAL, stream=False)["messages"] == messages


def test_instructions_take_in_the_leading_system_messages():
    items = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": [{"type": "input_text", "text": "b"}]},
        USER,
    ]
    messages = to_chat({"input": items, "instructions": "i"}, PLAIN, SEAL, stream=False)["messages"]
    assert messages == [{"role": "system", "content": "i\n\na\n\nb"}, USER]


def test_a_provider_may_know_no_developer_and_want_no_reasoning_back():
    items = [{"role": "developer", "content": "d"}, THOUGHT, {"role": "assistant", "content": "<think>x</think>so"}]
    messages = to_chat({"input": items}, STRIPPING, SEAL, stream=False)["messages"]
    assert messages == [{"role": "system", "content": "d"}, {"role": "assistant", "content": "so"}]


def test_namespaces_are_flattened_and_found_again():
    tool = {"type": "function", "name": "f", "parameters": {}}
    request = {"input": "x", "tools": [tool, {"type": "namespace", "name": "ns", "tools": [tool]}]}
    sent = to_chat(request, PLAIN, SEAL, stream=False)["tools"]
    assert [each["function"]["name"] for each in sent] == ["f", "ns__f"]
    assert toolbox(request).shapes == {"ns__f": {"name": "f", "namespace": "ns"}}


FORMATS = {
    "text": ({"type": "text"}, None),
    "json_object": ({"type": "json_object"}, {"type": "json_object"}),
    "json_schema": (
        {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
    ),
}


@pytest.mark.parametrize(("given_", "sent"), FORMATS.values(), ids=FORMATS)
def test_formats(given_, sent):
    assert to_chat({"input": "x", "text": {"format": given_}}, PLAIN, SEAL, stream=False).get("response_format") == sent


@pytest.mark.parametrize(
    ("text", "kept"),
    [("<think>a</think>b", "b"), ("\n<think>a", "\n<think>a"), ("b<think>a</think>", "b<think>a</think>"), ("", "")],
)
def test_an_earlier_answers_think_block_is_cut_out(text, kept):
    assert strip_think(text) == kept


KEYS = ["role", "type", "content", "text", "tools", "name", "summary", "output", "arguments", "call_id", "format",
        "reasoning", "metadata", "extra_body", "tool_choice", "messages", "instructions", "image_url", "effort", "reasoning_effort", "encrypted_content", "input", "stream_options"]  # fmt: skip
WORDS = ["user", "assistant", "message", "reasoning", "function", "function_call", "function_call_output", "namespace", "custom", "custom_tool_call", "allowed_tools",
         "additional_tools", "input_text", "input_image", "input_video", "refusal", "json_schema", "required", "x", ""]  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(WORDS))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)),
    max_leaves=14,
)


@settings(deadline=None, max_examples=600)
@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=6))
@example({"input": [{"type": {}}]})
@example({"input": [{"type": "reasoning", "summary": [3]}]})
@example({"input": [{"type": "additional_tools", "tools": [3]}]})
@example({"input": [{"type": "reasoning", "summary": [{"text": 3}]}]})
@example({"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": 3}]}]})
def test_whatever_a_client_sends_is_sent_or_refused(request_):
    with contextlib.suppress(RequestError):
        pass_chat(request_, STRIPPING, stream=True)
    with contextlib.suppress(RequestError):
        to_chat(request_, STRIPPING, SEAL, stream=True)
        toolbox(request_)
        envelope(request_, response_id="r", created_at=1, model="m")
