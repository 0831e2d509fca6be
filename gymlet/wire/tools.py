"""The tools of a request: functions for the provider, and how the calls to them look to the client.

Chat providers know functions with one flat name. A namespaced tool becomes ``namespace__name``, a custom (freeform)
tool becomes a function with one string, ``input``; a call to either comes back as what the client declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import orjson

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError
from gymlet.wire.fields import check, check_fields, need, need_id, one_of, shown
from gymlet.wire.profile import Profile

_FUNCTION_FIELDS: dict[str, tuple[type, ...]] = {"description": (str,), "parameters": (dict,), "strict": (bool,)}
TOOL_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Toolbox:
    """``shapes``: what a call to a tool carries for the client, by flat name, where that is not its name alone.

    ``allowed``: the flat names that may be called; None for all.
    """

    shapes: dict[str, Json] = field(default_factory=dict)
    allowed: frozenset[str] | None = None


def toolbox(request: Json) -> Toolbox:
    """What the writer must know of a checked request's tools."""
    return Toolbox(dict(_shapes(request)), _allowed(request))


def flat_name(namespace: str, name: str) -> str:
    """How a tool of a namespace is called where there are none."""
    return f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    """A custom tool's input as the arguments of the function that stands for it."""
    return orjson.dumps({"input": text}).decode()


def send_tools(request: Json, profile: Profile, earlier: int = 0) -> Json:
    """``tools``, ``tool_choice`` and ``parallel_tool_calls`` of the chat request.

    The first ``earlier`` items of the input were sent with an earlier request.
    """
    flat = _flat(request, profile, earlier)
    choice = request.get("tool_choice")
    if not flat:
        if choice not in (None, "auto", "none"):
            raise RequestError(
                f"tool_choice '{shown(choice)}' requires at least one tool in 'tools'", param="tool_choice"
            )
        return {}
    body: Json = {"tools": flat}
    if choice is not None:
        body["tool_choice"] = _choice(choice)
    if request.get("parallel_tool_calls") is not None:
        body["parallel_tool_calls"] = request["parallel_tool_calls"]
    return body


def _flat(request: Json, profile: Profile, earlier: int) -> list[Json]:
    """Each tool once; two that would go under one name cannot be told apart when they are called."""
    named: dict[str, tuple[Json, bool]] = {}
    for path, tool in _declared(request, earlier):
        for function in _functions(tool, path, profile):
            name = function["function"]["name"]
            known = named.setdefault(name, (function, _kind(tool) == "namespace"))
            if known != (function, _kind(tool) == "namespace"):
                raise RequestError(f"'{path}': another tool is called '{name}' already", param=f"{path}.name")
    return [function for function, _ in named.values()]


def _declared(request: Json, earlier: int = 0) -> Iterator[tuple[str, Json]]:
    """Path and tool: the request's, and those that its input adds; what cannot run here is left out of the latter."""
    for position, tool in enumerate(request.get("tools") or ()):
        check(tool, (dict,), f"tools[{position}]")
        yield f"tools[{position}]", tool
    items = request["input"] if isinstance(request.get("input"), list) else ()
    for position, item in enumerate(items, -earlier):
        if isinstance(item, dict) and item.get("type") == "additional_tools":
            path = f"input[{position}].tools" if position >= 0 else "previous_response_id"
            check(item.get("tools"), (list,), path)
            for number, tool in enumerate(item["tools"]):
                check(tool, (dict,), f"{path}[{number}]")
                if _kind(tool) in _KINDS:
                    yield f"{path}[{number}]", tool


def _functions(tool: Json, path: str, profile: Profile) -> Iterator[Json]:
    kind = _kind(tool)
    read = _KINDS.get(kind)
    if read is None:
        if profile.unsupported_tools == "drop":
            return
        raise RequestError(
            f"'{path}': a tool of type '{shown(kind)}' cannot run here; leave it out, or set 'unsupported_tools: drop'",
            param=f"{path}.type",
        )
    for function in read(tool, path):
        if not profile.strict_schema:
            function.pop("strict", None)
        yield {"type": "function", "function": function}


def _kind(tool: Json) -> str:
    kind = tool.get("type")
    return kind if isinstance(kind, str) else ""


def _function(tool: Json, path: str) -> Iterator[Json]:
    check_fields(tool, _FUNCTION_FIELDS, f"{path}.")
    yield {
        "name": need_id(tool, "name", path),
        **{key: tool[key] for key in _FUNCTION_FIELDS if tool.get(key) is not None},
    }


def _custom(tool: Json, path: str) -> Iterator[Json]:
    check_fields(tool, {"description": (str,), "format": (dict,)}, f"{path}.")
    words = [tool.get("description") or "", "Write the whole input as one string."]
    grammar = tool.get("format") or {}
    if grammar.get("definition"):
        words.append(f"It must follow this {grammar.get('syntax', '')} grammar:\n{grammar['definition']}")
    yield {
        "name": need_id(tool, "name", path),
        "description": "\n\n".join(filter(None, words)),
        "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
    }


def _namespace(tool: Json, path: str) -> Iterator[Json]:
    namespace = need_id(tool, "name", path)
    for position, inner in enumerate(need(tool, "tools", (list,), path)):
        inner_path = f"{path}.tools[{position}]"
        check(inner, (dict,), inner_path)
        read = _custom if inner.get("type") == "custom" else _function
        for function in read(inner, inner_path):
            yield {**function, "name": flat_name(namespace, function["name"])}


_KINDS: dict[str, Callable[[Json, str], Iterator[Json]]] = {
    "function": _function,
    "custom": _custom,
    "namespace": _namespace,
}


def _choice(choice: str | Json) -> str | Json:
    if isinstance(choice, str):
        one_of(choice, TOOL_CHOICES, "tool_choice")
        return choice
    kind = choice.get("type")
    if kind == "allowed_tools":
        mode = choice.get("mode", "auto")
        one_of(mode, ("auto", "required"), "tool_choice.mode")
        check(choice.get("tools"), (list,), "tool_choice.tools")
        return str(mode)
    if kind not in ("function", "custom"):
        raise RequestError(f"'tool_choice' of type '{shown(kind)}' cannot be sent", param="tool_choice.type")
    return {"type": "function", "function": {"name": _called(choice, "tool_choice")}}


def _called(reference: Json, path: str) -> str:
    """The flat name of the tool that is referred to."""
    name: str = need_id(reference, "name", path)
    return flat_name(reference["namespace"], name) if reference.get("namespace") else name


def _allowed(request: Json) -> frozenset[str] | None:
    choice = request.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return None
    names = []
    for position, reference in enumerate(choice["tools"]):
        path = f"tool_choice.tools[{position}]"
        check(reference, (dict,), path)
        if _kind(reference) in _KINDS:
            names.append(_called(reference, path))
    return frozenset(names)


def _shapes(request: Json) -> Iterator[tuple[str, Json]]:
    for _, tool in _declared(request):
        name = tool.get("name", "")
        if tool.get("type") == "custom":
            yield name, {"type": "custom_tool_call", "name": name}
        elif tool.get("type") == "namespace":
            for inner in tool["tools"]:
                custom = {"type": "custom_tool_call"} if inner.get("type") == "custom" else {}
                yield flat_name(name, inner["name"]), {**custom, "name": inner["name"], "namespace": name}
