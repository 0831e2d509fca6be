"""A chat request from a client to the one that is sent: checked, cut to the known fields, the model overwritten."""

from __future__ import annotations

from gymlet.wire.deltas import Json
from gymlet.wire.dialect import adapt, limit_under
from gymlet.wire.errors import RequestError
from gymlet.wire.fields import NUMBER, check, check_fields, need, need_id, one_of
from gymlet.wire.profile import Profile
from gymlet.wire.request import STREAMED, extra_body
from gymlet.wire.way_back import earlier_messages

FIELDS: dict[str, tuple[type, ...]] = {
    "messages": (list,),
    "temperature": NUMBER,
    "top_p": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "max_tokens": (int,),
    "max_completion_tokens": (int,),
    "tools": (list,),
    "tool_choice": (str, dict),
    "parallel_tool_calls": (bool,),
    "response_format": (dict,),
    "reasoning_effort": (str,),
    "verbosity": (str,),
    "stop": (str, list),
    "seed": (int,),
    "n": (int,),
    "logprobs": (bool,),
    "top_logprobs": (int,),
    "logit_bias": (dict,),
    "user": (str,),
}
"""What is passed on; anything else is the client's own bookkeeping."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
PARTS = ("text", "image_url", "input_audio", "file", "video_url", "refusal", "thinking")


def pass_chat(request: Json, profile: Profile, *, stream: bool) -> Json:
    """The body to send to the provider. Raises RequestError, naming the field."""
    check_fields(request, FIELDS | {"stream": (bool,), "stream_options": (dict,), "metadata": (dict,)})
    if request.get("messages") is None:
        raise RequestError("'messages' is required: a list of messages", param="messages")
    if (request.get("n") or 1) != 1:
        raise RequestError("'n' must be 1: ask again for another reply", param="n")
    for index, tool in enumerate(request.get("tools") or ()):
        _check_function(tool, f"tools[{index}]")
    messages = [_message(message, f"messages[{index}]", profile) for index, message in enumerate(request["messages"])]
    known = {name: request[name] for name in FIELDS if request.get(name) is not None}
    under, over = profile.extra_body, extra_body(request)
    body: Json = {}
    for parameters in (under, known, over):
        body |= limit_under(profile.max_tokens_key, parameters)
    body |= {"messages": earlier_messages(messages, profile), "model": profile.model}
    if not body.get("tools"):
        body.pop("tools", None)
    return adapt(body | STREAMED if stream else body, profile)


def _message(message: object, path: str, profile: Profile) -> Json:
    check(message, (dict,), path)
    assert isinstance(message, dict)  # noqa: S101  just checked
    one_of(message.get("role"), ROLES, f"{path}.role")
    content = message.get("content")
    if content is not None:
        check(content, (str, list), f"{path}.content")
    if message.get("tool_calls") is not None:
        check(message["tool_calls"], (list,), f"{path}.tool_calls")
    if isinstance(content, list):
        for position, part in enumerate(content):
            check(part, (dict,), f"{path}.content[{position}]")
            one_of(part.get("type"), PARTS, f"{path}.content[{position}].type")
    for position, call in enumerate(message.get("tool_calls") or ()):
        _check_function(call, f"{path}.tool_calls[{position}]")
        need_id(call, "id", f"{path}.tool_calls[{position}]")
    if message["role"] == "tool":
        need_id(message, "tool_call_id", path)
    if message["role"] == "developer":
        return {**message, "role": profile.system_role}
    return message


def _check_function(holder: object, path: str) -> None:
    check(holder, (dict,), path)
    assert isinstance(holder, dict)  # noqa: S101  just checked
    if holder.get("type", "function") == "function":
        need_id(need(holder, "function", (dict,), path), "name", f"{path}.function")
