"""What a provider needs back on the next turn comes back, through a Responses client and its tools."""

import pytest
from wire.pipeline import call, calls, check_grammar, chunk, end, reasoning, shape, stream, text, to_chat

from gymlet.wire.errors import RequestError
from gymlet.wire.profile import Profile
from gymlet.wire.seal import Seal, Thought, merge_details

pytestmark = pytest.mark.pure

SEAL = Seal("provider.example/m")
DETAILS = [{"type": "reasoning.text", "text": "aaa", "index": 0, "signature": "s"}]
EXTRA = {"google": {"thought_signature": "s"}}
CALL = calls({**call(0, "c1", "f", "{}"), "extra_content": EXTRA})
TURN = chunk({"reasoning": "aaa", "reasoning_details": DETAILS}) + CALL + end("tool_calls")
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "ok"}
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SIGNED_CALL = {**SENT_CALL, "extra_content": EXTRA}


def second_turn(body, *, seal=SEAL, **profile):
    """The messages of the turn after a reply, the client having sent its items back."""
    _, response = stream(body, seal=seal)
    request = {"input": [{"role": "user", "content": "hi"}, *response["output"], RESULT]}
    return to_chat(request, Profile(model="m", uses_reasoning_parser=True, **profile), SEAL, stream=False)["messages"]


FORMS = {
    "none": {"content": None},
    "reasoning_content": {"content": None, "reasoning_content": "aaa"},
    "reasoning": {"content": None, "reasoning": "aaa"},
    "reasoning_details": {"content": None, "reasoning_details": DETAILS},
    "mistral_parts": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "aaa"}]}]},
    "think_tags": {"content": "<think>aaa</think>"},
}


@pytest.mark.parametrize(("form", "fields"), FORMS.items(), ids=FORMS)
def test_reasoning_goes_back_as_the_provider_wants_it(form, fields):
    _, assistant, _ = second_turn(TURN, reasoning_out=form)
    assert assistant == {"role": "assistant", **fields, "tool_calls": [SIGNED_CALL]}


def test_without_encrypted_content_the_text_goes_back():
    _, assistant, _ = second_turn(TURN, seal=None, reasoning_out="reasoning_details")
    assert assistant == {"role": "assistant", "content": None, "reasoning": "aaa", "tool_calls": [SENT_CALL]}


TURNS = {"always": [True, True, True], "tool_turns": [False, True, True], "same_turn": [False, True, True]}
LATER = {
    "always": [True, True, True, True],
    "tool_turns": [False, True, True, False],
    "same_turn": [False, False, False, True],
}


@pytest.mark.parametrize("when", TURNS)
def test_reasoning_goes_back_on_the_turns_that_want_it(when):
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "aaa"}]}
    answer = {"role": "assistant", "content": "so"}
    tool = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    user = {"role": "user", "content": "hi"}
    items = [user, thought, answer, user, thought, tool, RESULT, thought, answer]
    profile = Profile(model="m", reasoning_out="reasoning_content", reasoning_out_when=when)
    for given, expected in ((items, TURNS[when]), ([*items, user, thought, answer], LATER[when])):
        messages = to_chat({"input": given}, profile, SEAL, stream=False)["messages"]
        back = ["reasoning_content" in message for message in messages if message["role"] == "assistant"]
        assert back == expected


def test_where_tools_were_called_an_empty_field_says_that_there_was_no_reasoning():
    tool = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    items = [{"role": "user", "content": "hi"}, tool, RESULT]
    for form, field in (("reasoning_content", {"reasoning_content": ""}), ("reasoning_details", {})):
        profile = Profile(model="m", reasoning_out=form, reasoning_out_when="tool_turns")
        assistant = to_chat({"input": items}, profile, SEAL, stream=False)["messages"][1]
        assert {key: value for key, value in assistant.items() if "reasoning" in key} == field


def test_a_message_that_was_only_reasoning_is_not_sent_empty():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "aaa"}]}
    items = [{"role": "user", "content": "a"}, thought, {"role": "user", "content": "b"}]
    profile = Profile(model="m", reasoning_out="none")
    roles = [each["role"] for each in to_chat({"input": items}, profile, SEAL, stream=False)["messages"]]
    assert roles == ["user", "user"]


GOOD = SEAL.close(Thought("aaa"))
FOREIGN = {
    "another server's": ("gAAAAB-something", "not made by this server"),
    "damaged": (GOOD[:-2] + ("AA" if not GOOD.endswith("AA") else "BB"), "damaged"),
    "no base64": ("gymlet1.%%%", "damaged"),
    "empty": ("gymlet1.", "damaged"),
    "another model's": (Seal("provider.example/other").close(Thought("aaa")), "another provider or model"),
}


@pytest.mark.parametrize(("sealed", "said"), FOREIGN.values(), ids=FOREIGN)
def test_what_was_sealed_elsewhere_is_refused(sealed, said):
    item = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    with pytest.raises(RequestError, match=said) as caught:
        to_chat({"input": [item]}, Profile(model="m"), SEAL, stream=False)
    assert caught.value.param == "input[0].encrypted_content"


def test_details_of_different_kinds_and_without_index_stay_apart():
    entries = [{"type": "reasoning.text", "text": "a"}, {"type": "reasoning.text", "text": "b"}]
    assert merge_details(entries) == entries


def test_ids_are_shortened_alike_in_call_and_result():
    _, assistant, tool = second_turn(TURN, call_id_length=9)
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"]
    assert len(tool["tool_call_id"]) == 9


PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
PATCHED = (
    calls(call(0, "c1", "apply_patch", '{"input":"*** Be')) + calls(call(0, arguments='gin\\n"}')) + end("tool_calls")
)


def test_a_custom_tool_is_a_function_there_and_a_custom_call_here():
    request = {"input": "x", "tools": [PATCH]}
    (sent,) = to_chat(request, Profile(model="m"), SEAL, stream=False)["tools"]
    assert (sent["type"], sent["function"]["name"]) == ("function", "apply_patch")
    events, response = stream(PATCHED, request=request)
    kinds = [event["type"] for event in events]
    (item,) = response["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", "*** Begin\n")
    assert kinds.count("response.custom_tool_call_input.done") == 1
    back = [item, {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"}]
    assistant, tool = to_chat({"input": back}, Profile(model="m"), SEAL, stream=False)["messages"]
    assert assistant["tool_calls"][0]["function"]["arguments"] == '{"input":"*** Begin\\n"}'
    assert tool == {"role": "tool", "tool_call_id": "c1", "content": "done"}


def test_a_call_that_is_not_allowed_is_suppressed():
    tools = [{"type": "function", "name": name, "parameters": {}} for name in ("f", "g")]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}
    request = {"input": "x", "tools": tools, "tool_choice": choice}
    sent = to_chat(request, Profile(model="m"), SEAL, stream=False)
    assert (len(sent["tools"]), sent["tool_choice"]) == (2, "auto")
    body = reasoning("a") + calls(call(0, "c1", "f", '{"a":1}')) + calls(call(1, "c2", "g", "{}")) + text("b") + end()
    events, response = stream(body, request=request)
    check_grammar(events)
    assert shape(response) == [("reasoning", "a"), ("call", "g", "{}"), ("message", "b")]


def test_a_hosted_tool_is_refused_or_dropped():
    request = {"input": "x", "tools": [{"type": "web_search"}]}
    with pytest.raises(RequestError, match="web_search"):
        to_chat(request, Profile(model="m"), SEAL, stream=False)
    assert "tools" not in to_chat(request, Profile(model="m", unsupported_tools="drop"), SEAL, stream=False)


EFFORTS = {
    "reasoning_effort": {"reasoning_effort": "high"},
    "reasoning": {"reasoning": {"effort": "high"}},
    "thinking": {"thinking": {"type": "enabled"}},
    "thinking_and_effort": {"thinking": {"type": "enabled"}, "reasoning_effort": "high"},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": True}},
    "chat_template_args": {"chat_template_args": {"enable_thinking": True}},
    "enable_thinking": {"enable_thinking": True},
    "gemini": {"extra_body": {"google": {"thinking_config": {"thinking_budget": 24576, "include_thoughts": True}}}},
    "none": {},
}


@pytest.mark.parametrize(("form", "sent"), EFFORTS.items(), ids=EFFORTS)
def test_an_effort_is_asked_for_as_the_provider_wants_it(form, sent):
    request = {"input": "x", "reasoning": {"effort": "xhigh"}}
    body = to_chat(request, Profile(model="m", effort=form, effort_values={"xhigh": "high"}), SEAL, stream=False)
    assert {key: value for key, value in body.items() if key not in ("messages", "model")} == sent


def test_parameters_are_renamed_mapped_and_dropped():
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    request = {"input": "x", "tools": [tool], "tool_choice": "required", "max_output_tokens": 5, "user": "u"}
    profile = Profile(
        model="m",
        tool_choice_map={"required": "any"},
        max_tokens_key="max_completion_tokens",
        drop_params=("user",),
        strict_schema=False,
        include_usage=False,
    )
    body = to_chat(request, profile, SEAL, stream=True)
    del body["messages"]
    function = {"name": "f", "parameters": {}}
    assert body == {
        "model": "m",
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "any",
        "max_completion_tokens": 5,
        "stream": True,
    }


def test_a_forced_tool_turns_thinking_off_where_the_provider_refuses_both():
    tool = {"type": "function", "name": "f", "parameters": {}}
    request = {"input": "x", "tools": [tool], "tool_choice": "required", "reasoning": {"effort": "high"}}
    profile = Profile(model="m", effort="thinking_and_effort", forced_tool_choice_disables_thinking=True)
    body = to_chat(request, profile, SEAL, stream=False)
    assert (body["thinking"], "reasoning_effort" in body) == ({"type": "disabled"}, False)
