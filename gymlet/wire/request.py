"""A Responses request to a chat request, and the envelope of its reply."""

from __future__ import annotations

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.dialect import adapt, limit_under
from gymlet.wire.errors import RequestError
from gymlet.wire.fields import NUMBER, check, check_depth, check_fields, check_length, need, need_id, one_of
from gymlet.wire.history import messages_of, plain
from gymlet.wire.logprobs import ask_for_logprobs
from gymlet.wire.profile import Profile
from gymlet.wire.seal import Seal
from gymlet.wire.tools import send_tools

FIELDS: dict[str, tuple[type, ...]] = {
    "instructions": (str,),
    "temperature": NUMBER,
    "top_p": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "max_output_tokens": (int,),
    "top_logprobs": (int,),
    "model": (str,),
    "input": (str, list),
    "tools": (list,),
    "tool_choice": (str, dict),
    "parallel_tool_calls": (bool,),
    "stream": (bool,),
    "store": (bool,),
    "background": (bool,),
    "metadata": (dict,),
    "reasoning": (dict,),
    "text": (dict,),
    "include": (list,),
    "previous_response_id": (str,),
    "truncation": (str,),
    "user": (str,),
    "safety_identifier": (str,),
    "prompt_cache_key": (str,),
    "service_tier": (str,),
    "conversation": (str, dict),
    "max_tool_calls": (int,),
    "prompt": (dict,),
}
IDS = ("previous_response_id", "prompt_cache_key", "safety_identifier", "user")
MAX_TOP_LOGPROBS = 20
UNSUPPORTED = {
    "background": "; wait for the reply, or stream it",
    "conversation": "; use 'previous_response_id', or send the items in 'input'",
    "max_tool_calls": ": chat providers know no such limit",
    "prompt": ": there are no stored prompts; send 'instructions' and 'input'",
}
"""Fields that would change the reply, so that leaving them out would be a lie."""

PASSED = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "user")
"""Fields that mean the same in both protocols."""


def to_chat(request: Json, profile: Profile, seal: Seal, *, stream: bool, earlier: int = 0) -> Json:
    """The body to send to the provider, for a checked request. Raises RequestError, naming what cannot be sent.

    The first ``earlier`` items of its input were not sent by the client: they come from its ``previous_response_id``.
    """
    limit = request.get("max_output_tokens")
    body: Json = {
        **limit_under(profile.max_tokens_key, profile.extra_body),
        **{name: request[name] for name in PASSED if request.get(name) is not None},
        **({} if limit is None else {profile.max_tokens_key: limit}),
        **_reasoning_and_text(request, profile),
        **ask_for_logprobs(request),
        **send_tools(request, profile, earlier),
        **limit_under(profile.max_tokens_key, extra_body(request)),
        "messages": _messages(request, profile, seal, earlier),
        "model": profile.model,
    }
    return adapt(body | STREAMED if stream else body, profile)


STREAMED: Json = {"stream": True, "stream_options": {"include_usage": True}}
"""Usage is asked for always: many providers send none in a stream otherwise."""


def check_request(request: Json) -> None:
    """Types, and the fields that cannot be honoured. Raises RequestError, naming the field."""
    check_fields(request, FIELDS)
    if request.get("input") is None and not request.get("previous_response_id"):
        raise RequestError("'input' is required: a string or a list of items", param="input")
    for name in IDS:
        if request.get(name):
            check_length(request[name], name)
    top = request.get("top_logprobs") or 0
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise RequestError(f"'top_logprobs' must be from 0 to {MAX_TOP_LOGPROBS}, not {top}", param="top_logprobs")
    for name, instead in UNSUPPORTED.items():
        if request.get(name):
            raise RequestError(f"'{name}' is not supported{instead}", param=name)


def items_of(request: Json) -> list[Json]:
    """The input of a checked request as items; a string is one message of the user."""
    given: str | list[Json] = request.get("input") or []
    return [{"role": "user", "content": [{"type": "input_text", "text": given}]}] if isinstance(given, str) else given


def envelope(request: Json, *, response_id: str, created_at: int, model: str, store: bool = False) -> Json:
    """The response object before anything was said: all keys, the request's parameters echoed.

    ``store``: whether the response will be stored, whatever the client asked for.
    """
    reasoning = request.get("reasoning") or {}
    text = request.get("text") or {}
    return {
        **_ENVELOPE,
        **{name: value for name, value in request.items() if name in _ECHOED and value is not None},
        "id": response_id,
        "created_at": created_at,
        "model": model,
        "output": [],
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": store,
        "text": {**text, "format": _echo_format(text.get("format") or {"type": "text"})},
        "tools": [_echo_tool(tool) for tool in request.get("tools") or ()],
        "metadata": request.get("metadata") or {},
    }


_ENVELOPE: Json = {
    "id": None,
    "object": "response",
    "created_at": None,
    "completed_at": None,
    "status": "in_progress",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": None,
    "output": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": None,
    "background": False,
    "temperature": 1.0,
    "text": None,
    "tool_choice": "auto",
    "tools": None,
    "top_logprobs": 0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "truncation": "disabled",
    "usage": None,
    "metadata": None,
}
"""All keys, in their order, with what stands there where the request says nothing."""

_ECHOED = frozenset(
    (
        *("instructions", "max_output_tokens", "parallel_tool_calls", "previous_response_id", "prompt_cache_key"),
        *("safety_identifier", "service_tier", "temperature", "tool_choice", "top_logprobs", "top_p"),
        *("presence_penalty", "frequency_penalty", "truncation"),
    )
)
"""What comes back as it was asked for."""


def _echo_format(form: Json) -> Json:
    return {"description": None, "strict": False, **form} if form.get("type") == "json_schema" else form


def _echo_tool(tool: Json) -> Json:
    return {"description": None, "parameters": None, "strict": None, **tool}


def extra_body(request: Json) -> Json:
    """Parameters that only the provider knows: ``metadata.extra_body``, JSON in a string as metadata must be."""
    raw = (request.get("metadata") or {}).get("extra_body")
    if raw is None:
        return {}
    path = "metadata.extra_body"
    if isinstance(raw, str):
        try:
            raw = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"'{path}' is not JSON: {error}", param=path) from None
    check(raw, (dict,), path)
    check_depth({path: raw})
    return {str(key): value for key, value in raw.items()}


def _reasoning_and_text(request: Json, profile: Profile) -> Json:
    body: Json = {}
    effort = (request.get("reasoning") or {}).get("effort")
    if effort is not None:
        check(effort, (str,), "reasoning.effort")
        body["reasoning_effort"] = effort
    text = request.get("text") or {}
    if text.get("verbosity") is not None:
        body["verbosity"] = text["verbosity"]
    if text.get("format") is not None:
        check(text["format"], (dict,), "text.format")
        body |= _response_format(text["format"], profile)
    return body


def _response_format(form: Json, profile: Profile) -> Json:
    kind = form.get("type")
    one_of(kind, ("text", "json_object", "json_schema"), "text.format.type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    need_id(form, "name", "text.format")
    need(form, "schema", (dict,), "text.format")
    keys = ("name", "description", "schema", "strict") if profile.strict_schema else ("name", "description", "schema")
    schema = {name: form[name] for name in keys if form.get(name) is not None}
    return {"response_format": {"type": kind, "json_schema": schema}}


def _messages(request: Json, profile: Profile, seal: Seal, earlier: int) -> list[Json]:
    messages = messages_of(items_of(request), profile, seal, earlier)
    if request.get("instructions"):
        messages = _lead(request["instructions"], messages)
    for message in messages:
        if message["role"] == "developer":
            message["role"] = profile.system_role
    return messages


def _lead(instructions: str, messages: list[Json]) -> list[Json]:
    """The instructions and the leading system messages as one: many chat servers allow one, in the first place."""
    leading = 0
    while leading < len(messages) and messages[leading]["role"] in ("system", "developer"):
        leading += 1
    texts = [instructions, *(plain(message["content"]) for message in messages[:leading])]
    return [{"role": "system", "content": "\n\n".join(texts)}, *messages[leading:]]
