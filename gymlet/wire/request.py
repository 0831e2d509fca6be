"""A Responses request to a chat request, and the envelope of its reply.

Items become messages one after the other; reasoning, a message and the calls that follow it are one assistant message,
as chat servers expect. What has no chat representation is refused by name rather than left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError
from gymlet.wire.fields import NUMBER, check, check_fields, need, one_of
from gymlet.wire.reasoning import TAGS

FIELDS: dict[str, tuple[type, ...]] = {
    "instructions": (str,),
    "temperature": NUMBER,
    "top_p": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "max_output_tokens": (int,),
    "top_logprobs": (int,),
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
}
PASSED = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "user")
"""Fields that mean the same in both protocols."""

TOOL_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class ChatProfile:
    """What a provider's chat dialect differs in.

    ``strip_reasoning``: earlier reasoning is not sent back (think tags are cut out of the assistant's history);
    otherwise it stands in think tags before the answer, as NeMo Gym sends it.
    """

    model: str
    system_role: Literal["developer", "system"] = "developer"
    strip_reasoning: bool = False
    extra_body: Json = field(default_factory=dict)


def to_chat(request: Json, profile: ChatProfile, *, stream: bool) -> Json:
    """The body to send to the provider. Raises RequestError, naming the field, for what cannot be sent."""
    check_request(request)
    body = {
        **profile.extra_body,
        **{name: request[name] for name in PASSED if request.get(name) is not None},
        **_reasoning_and_text(request),
        **_tools(request),
        **_extra_body(request),
        "messages": _messages(request, profile),
        "model": profile.model,
    }
    if request.get("max_output_tokens") is not None:
        body["max_tokens"] = request["max_output_tokens"]
    return body | STREAMED if stream else body


STREAMED: Json = {"stream": True, "stream_options": {"include_usage": True}}
"""Usage is asked for always: many providers send none in a stream otherwise."""


def check_request(request: Json) -> None:
    """Types and the fields that cannot be honoured."""
    check_fields(request, FIELDS)
    if request.get("input") is None:
        raise RequestError("'input' is required: a string or a list of items", param="input")
    check(request["input"], (str, list), "input")
    if request.get("previous_response_id") is not None:
        raise RequestError(
            f"'previous_response_id': there is no stored response '{request['previous_response_id']}'; "
            "send the earlier items in 'input'",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if request.get("max_tool_calls") is not None:
        raise RequestError("'max_tool_calls' cannot be sent to a chat provider", param="max_tool_calls")
    if request.get("background"):
        raise RequestError("'background' replies are not supported", param="background")


def envelope(request: Json, *, response_id: str, created_at: int, model: str) -> Json:
    """The response object before anything was said: all keys, the request's parameters echoed."""
    reasoning = request.get("reasoning") or {}
    text = request.get("text") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": _or(request, "parallel_tool_calls", default=True),
        "previous_response_id": None,
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": request.get("safety_identifier"),
        "service_tier": _or(request, "service_tier", default="default"),
        "store": False,
        "background": False,
        "temperature": _or(request, "temperature", default=1.0),
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": _or(request, "tool_choice", default="auto"),
        "tools": [_echo_tool(tool) for tool in request.get("tools") or ()],
        "top_logprobs": _or(request, "top_logprobs", default=0),
        "top_p": _or(request, "top_p", default=1.0),
        "presence_penalty": _or(request, "presence_penalty", default=0.0),
        "frequency_penalty": _or(request, "frequency_penalty", default=0.0),
        "truncation": _or(request, "truncation", default="disabled"),
        "usage": None,
        "metadata": request.get("metadata") or {},
    }


def strip_think(text: str) -> str:
    """An earlier answer without the think block at its start."""
    start = text.lstrip()
    for opening, closing in TAGS.items():
        if start.startswith(opening):
            _, found, rest = start.partition(closing)
            return rest if found else ""
    return text


def _or(request: Json, name: str, *, default: object) -> object:
    value = request.get(name)
    return default if value is None else value


def _echo_tool(tool: Json) -> Json:
    return {"description": None, "parameters": None, "strict": None, **tool}


def _extra_body(request: Json) -> Json:
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
    return {str(key): value for key, value in raw.items()}


def _reasoning_and_text(request: Json) -> Json:
    body: Json = {}
    effort = (request.get("reasoning") or {}).get("effort")
    if effort is not None:
        body["reasoning_effort"] = effort
    text = request.get("text") or {}
    if text.get("verbosity") is not None:
        body["verbosity"] = text["verbosity"]
    if text.get("format") is not None:
        check(text["format"], (dict,), "text.format")
        body |= _response_format(text["format"])
    return body


def _response_format(form: Json) -> Json:
    kind = form.get("type")
    one_of(kind, ("text", "json_object", "json_schema"), "text.format.type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    need(form, "name", (str,), "text.format")
    need(form, "schema", (dict,), "text.format")
    schema = {name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None}
    return {"response_format": {"type": kind, "json_schema": schema}}


def namespaces(request: Json) -> dict[str, Json]:
    """The namespaced tools of a checked request: flat name -> the ``name`` and ``namespace`` that its calls carry."""
    return {
        flat_name(group["name"], tool["name"]): {"name": tool["name"], "namespace": group["name"]}
        for group in _tool_list(request)
        if group.get("type") == "namespace"
        for tool in group["tools"]
    }


def flat_name(namespace: str, name: str) -> str:
    """How a tool of a namespace is called where there are none."""
    return f"{namespace}__{name}"


def _tool_list(request: Json) -> list[Json]:
    """The request's tools, and those that its input adds; what cannot run here is left out of the latter."""
    tools = list(request.get("tools") or ())
    items = request["input"] if isinstance(request.get("input"), list) else ()
    for position, item in enumerate(items):
        if isinstance(item, dict) and item.get("type") == "additional_tools":
            path = f"input[{position}].tools"
            check(item.get("tools"), (list,), path)
            for number, tool in enumerate(item["tools"]):
                check(tool, (dict,), f"{path}[{number}]")
            tools += [tool for tool in item["tools"] if tool.get("type") in ("function", "namespace")]
    return tools


def _tools(request: Json) -> Json:
    tools = _tool_list(request)
    choice = request.get("tool_choice")
    if not tools:
        if choice not in (None, "auto", "none"):
            raise RequestError(f"tool_choice {choice!r} requires at least one tool in 'tools'", param="tool_choice")
        return {}
    flat = [function for position, tool in enumerate(tools) for function in _tool(tool, f"tools[{position}]")]
    body: Json = {"tools": flat}
    if choice is not None:
        body["tool_choice"] = _tool_choice(choice)
    if request.get("parallel_tool_calls") is not None:
        body["parallel_tool_calls"] = request["parallel_tool_calls"]
    return body


def _tool(tool: Json, path: str) -> Iterator[Json]:
    check(tool, (dict,), path)
    kind = tool.get("type")
    if kind not in ("function", "namespace"):
        raise RequestError(f"'{path}': a tool of type '{kind}' cannot run here", param=f"{path}.type")
    name = need(tool, "name", (str,), path)
    if kind == "function":
        yield _function(tool, name)
        return
    for position, inner in enumerate(need(tool, "tools", (list,), path)):
        inner_path = f"{path}.tools[{position}]"
        check(inner, (dict,), inner_path)
        yield _function(inner, flat_name(name, need(inner, "name", (str,), inner_path)))


def _function(tool: Json, name: str) -> Json:
    keys = ("description", "parameters", "strict")
    return {
        "type": "function",
        "function": {"name": name, **{key: tool[key] for key in keys if tool.get(key) is not None}},
    }


def _tool_choice(choice: str | Json) -> str | Json:
    if isinstance(choice, str):
        one_of(choice, TOOL_CHOICES, "tool_choice")
        return choice
    if choice.get("type") != "function":
        raise RequestError(f"'tool_choice' of type '{choice.get('type')}' cannot be sent", param="tool_choice.type")
    return {"type": "function", "function": {"name": need(choice, "name", (str,), "tool_choice")}}


def _messages(request: Json, profile: ChatProfile) -> list[Json]:
    items = request["input"]
    if isinstance(items, str):
        items = [{"role": "user", "content": [{"type": "input_text", "text": items}]}]
    messages = list(_History(profile).read(items))
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
    texts = [instructions, *(_plain(message["content"]) for message in messages[:leading])]
    return [{"role": "system", "content": "\n\n".join(texts)}, *messages[leading:]]


def _plain(content: str | list[Json]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class _History:
    """Turns items into messages. Owns the assistant message that is being put together."""

    def __init__(self, profile: ChatProfile) -> None:
        self._profile = profile
        self._reasoning: list[str] = []
        self._message: Json | None = None
        self._calls: list[Json] = []

    def read(self, items: list[Json]) -> Iterator[Json]:
        for position, item in enumerate(items):
            path = f"input[{position}]"
            check(item, (dict,), path)
            kind = item.get("type") or ("message" if "role" in item else "")
            check(kind, (str,), f"{path}.type")
            read = _ITEMS.get(kind)
            if read is None:
                raise RequestError(
                    f"'{path}': an item of type '{kind}' has no chat representation", param=f"{path}.type"
                )
            yield from read(self, item, path)
        yield from self._flush()

    def _read_message(self, item: Json, path: str) -> Iterator[Json]:
        role = item.get("role")
        one_of(role, ("user", "system", "developer", "assistant"), f"{path}.role")
        content = item.get("content")
        if role != "assistant":
            yield from self._flush()
            check(content, (str, list), f"{path}.content")
            yield {"role": role, "content": _content(content, f"{path}.content")}  # type: ignore[arg-type]
            return
        if self._message is not None or self._calls:
            yield from self._flush()
        self._message = _assistant(content, f"{path}.content")

    def _read_reasoning(self, item: Json, path: str) -> Iterator[Json]:
        if self._message is not None or self._calls:
            yield from self._flush()
        check_fields(item, {"summary": (list,), "content": (list,)}, f"{path}.")
        key = "summary" if item.get("summary") else "content"
        for position, part in enumerate(item.get(key) or ()):
            self._reasoning.append(_text_part(part, f"{path}.{key}[{position}]")["text"])

    def _read_call(self, item: Json, path: str) -> Iterator[Json]:
        call_id, name = need(item, "call_id", (str,), path), need(item, "name", (str,), path)
        if item.get("namespace"):
            name = flat_name(item["namespace"], name)
        arguments = item.get("arguments") or "{}"
        check(arguments, (str,), f"{path}.arguments")
        self._calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
        return iter(())

    def _read_output(self, item: Json, path: str) -> Iterator[Json]:
        yield from self._flush()
        call_id, output = need(item, "call_id", (str,), path), item.get("output")
        check(output, (str, list), f"{path}.output")
        if isinstance(output, list):
            _refuse_files(output, path)
            parts = [_part(part, f"{path}.output[{index}]") for index, part in enumerate(output)]
            output = _plain(parts) if all(part["type"] == "text" for part in parts) else parts
        yield {"role": "tool", "tool_call_id": call_id, "content": output}

    def _skip(self, _item: Json, _path: str) -> Iterator[Json]:
        return iter(())

    def _flush(self) -> Iterator[Json]:
        """The assistant message so far, if there is one."""
        strip = self._profile.strip_reasoning
        thought = "" if strip else "".join(f"<think>{text}</think>" for text in self._reasoning)
        message = self._message or {"content": None}
        if strip and isinstance(message["content"], str):
            message["content"] = strip_think(message["content"])
        if thought:
            message["content"] = thought + (message["content"] or "")
        if self._calls:
            message["tool_calls"] = self._calls
        if self._message is not None or thought or self._calls:
            yield {"role": "assistant", **message}
        self._reasoning, self._message, self._calls = [], None, []


_ITEMS: dict[str, Callable[[_History, Json, str], Iterator[Json]]] = {
    "message": _History._read_message,  # noqa: SLF001  the table of its own methods
    "reasoning": _History._read_reasoning,  # noqa: SLF001
    "function_call": _History._read_call,  # noqa: SLF001
    "function_call_output": _History._read_output,  # noqa: SLF001
    "additional_tools": _History._skip,  # noqa: SLF001  they are tools, not history
}


def _refuse_files(parts: list[Json], path: str) -> None:
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "input_file":
            raise RequestError(f"'{path}.output': an 'input_file' cannot be sent as a tool's output", param=path)


def _assistant(content: str | list[Json] | None, path: str) -> Json:
    if content is None or isinstance(content, str):
        return {"content": content}
    check(content, (list,), path)
    texts: list[str] = []
    refusals: list[str] = []
    for position, part in enumerate(content):
        check(part, (dict,), f"{path}[{position}]")
        if part.get("type") == "refusal":
            refusals.append(need(part, "refusal", (str,), f"{path}[{position}]"))
        else:
            texts.append(_text_part(part, f"{path}[{position}]")["text"])
    message: Json = {"content": "".join(texts) if texts or not refusals else None}
    return {**message, "refusal": "".join(refusals)} if refusals else message


def _content(content: str | list[Json], path: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    return [_part(part, f"{path}[{position}]") for position, part in enumerate(content)]


def _part(part: object, path: str) -> Json:
    check(part, (dict,), path)
    assert isinstance(part, dict)  # noqa: S101  just checked
    one_of(part.get("type"), _PARTS, f"{path}.type")
    return _PARTS[part["type"]](part, path)


def _text_part(part: Json, path: str) -> Json:
    check(part, (dict,), path)
    check(part.get("text"), (str,), f"{path}.text")
    return {"type": "text", "text": part["text"]}


def _image_part(part: Json, path: str) -> Json:
    url = need(part, "image_url", (str, dict), path)
    image = url if isinstance(url, dict) else {"url": url}
    return {"type": "image_url", "image_url": image | ({"detail": part["detail"]} if part.get("detail") else {})}


def _file_part(part: Json, path: str) -> Json:
    keys = ("file_id", "file_data", "filename", "file_url")
    if not any(part.get(key) for key in keys):
        raise RequestError(f"'{path}' needs one of {', '.join(keys)}", param=path)
    return {"type": "file", "file": {key: part[key] for key in keys if part.get(key) is not None}}


def _audio_part(part: Json, path: str) -> Json:
    return {"type": "input_audio", "input_audio": need(part, "input_audio", (dict,), path)}


def _video_part(part: Json, path: str) -> Json:
    sources = [part[key] for key in ("video_url", "video") if part.get(key)]
    if len(sources) != 1:
        raise RequestError(f"'{path}' needs exactly one of video_url and video", param=path)
    source = sources[0]
    return {"type": "video_url", "video_url": source if isinstance(source, dict) else {"url": source}}


_PARTS: dict[str, Callable[[Json, str], Json]] = {
    "input_text": _text_part,
    "output_text": _text_part,
    "text": _text_part,
    "input_image": _image_part,
    "input_file": _file_part,
    "input_audio": _audio_part,
    "input_video": _video_part,
}
