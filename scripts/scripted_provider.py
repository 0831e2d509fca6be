"""A provider whose replies are written down beforehand: for tests, benchmarks and trials without a key.

    python scripts/scripted_provider.py --port 9000 [--script my_replies.yaml]

It speaks OpenAI's chat completions on a real socket. The request's ``model`` chooses the script: one of BUILT_IN, or
one of the YAML file (see provider_script.example.yaml). ``GET /requests`` shows what was asked, without keys.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml
from aiohttp import web

Json = dict[str, Any]
KEPT_REQUESTS = 100
RANDOM_LETTER = "{random}"
"""In a piece of content: a letter from A to J, drawn by the request itself, so that the same request gets the same."""

REQUESTS: web.AppKey[deque[Json]] = web.AppKey("requests")
COUNTS: web.AppKey[Counter[str]] = web.AppKey("counts")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; its arguments come in these pieces."""

    name: str
    arguments: tuple[str, ...]
    id: str = "call_1"


@dataclass(frozen=True, slots=True)
class Script:
    """One reply.

    ``reasoning_as``: the field, or the tags, that reasoning comes in (``implicit``: only the closing tag).
    ``after_tools``: what is said once the messages hold a tool's output. ``cut_bytes``: the stream is written in pieces
    of so many bytes; 0 writes a chunk at a time, ``burst`` all at once. ``fail_after``: the connection is dropped after
    so many chunks, or half-way through a whole reply. ``fail_first``: so many requests get ``status`` before it works;
    0 with a bad status: all do.
    """

    reasoning: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    after_tools: tuple[str, ...] = ()
    reasoning_as: Literal["reasoning_content", "reasoning", "think", "implicit"] = "reasoning_content"
    finish_reason: str = "stop"
    usage: Json = field(default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
    first_delay_s: float = 0.0
    delay_s: float = 0.0
    burst: bool = False
    cut_bytes: int = 0
    newline: str = "\n"
    done: bool = True
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: Any = field(default_factory=lambda: {"error": {"message": "scripted failure", "type": "server_error"}})
    fail_after: int | None = None
    fail_first: int = 0


BUILT_IN: dict[str, Script] = {
    "plain": Script(content=("Hello", ", ", "world", "!")),
    "reasoning": Script(reasoning=("Let me ", "think."), content=("The answer ", "is 42.")),
    "think-tags": Script(reasoning=("Let me ", "think."), content=("The answer ", "is 42."), reasoning_as="think"),
    "tool-call": Script(
        calls=(Call("get_weather", ('{"city"', ':"Paris"}')),),
        after_tools=("It is ", "cold."),
        finish_reason="tool_calls",
    ),
    "reasoning-tool-call": Script(
        reasoning=("I must ", "look."),
        calls=(Call("get_weather", ('{"city"', ':"Paris"}')),),
        after_tools=("It is ", "cold."),
        finish_reason="tool_calls",
    ),
    **{f"boxed-{letter}": Script(reasoning=("Hm.",), content=(rf"\boxed{{{letter}}}",)) for letter in "ABCDEFGHIJ"},
    "boxed-random": Script(reasoning=("Hm.",), content=(r"\boxed{", RANDOM_LETTER, "}")),
    "slow": Script(content=tuple("slowly, one by one"), delay_s=0.1),
    **{
        f"burst-{count}": Script(content=tuple(f"word{number:05d} " for number in range(count)), burst=True)
        for count in (256, 1_000, 20_000)
    },
    "error-429": Script(
        status=429, headers={"Retry-After": "7"}, error={"error": {"message": "slow down", "code": "rate_limit"}}
    ),
    "error-500": Script(status=500),
    "cut-stream": Script(content=("This ends ", "in mid-", "sentence"), fail_after=2),
    "flaky": Script(content=("better ", "now"), status=503, fail_first=1),
}  # fmt: skip


def render_body(script: Script, request: Json) -> bytes:
    """The whole reply."""
    content, calls = _said(script, request)
    message: Json = {"role": "assistant", "content": "".join(content) or None}
    reasoning = "".join(script.reasoning)
    if reasoning and script.reasoning_as in ("think", "implicit"):
        opening = "<think>" if script.reasoning_as == "think" else ""
        message["content"] = f"{opening}{reasoning}</think>{message['content'] or ''}"
    elif reasoning:
        message[script.reasoning_as] = reasoning
    if calls:
        message["tool_calls"] = [_call(call, "".join(call.arguments)) for call in calls]
    choice: Json = {"index": 0, "message": message, "finish_reason": _finish(script, calls)}
    return orjson.dumps({**_head(request), "object": "chat.completion", "choices": [choice], "usage": script.usage})


def render_stream(script: Script, request: Json) -> list[bytes]:
    """The chunks of the streamed reply, each a whole event."""
    content, calls = _said(script, request)
    deltas = [*_reasoning_deltas(script), *({"content": piece} for piece in content), *_call_deltas(calls)]
    choices: list[list[Json]] = [[{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": _finish(script, calls)}])
    head: Json = {**_head(request), "object": "chat.completion.chunk"}
    payloads: list[Json] = [{**head, "choices": choice} for choice in choices]
    if (request.get("stream_options") or {}).get("include_usage"):
        payloads.append({**head, "choices": [], "usage": script.usage})
    events = [b"data: " + orjson.dumps(payload) for payload in payloads]
    end = (script.newline * 2).encode()
    return [event + end for event in (*events, *([b"data: [DONE]"] if script.done else []))]


def _said(script: Script, request: Json) -> tuple[list[str], tuple[Call, ...]]:
    messages = request.get("messages") or []
    if script.after_tools and any(message.get("role") == "tool" for message in messages):
        return list(script.after_tools), ()
    draw = hashlib.sha256(orjson.dumps([messages, request.get("seed")])).digest()[0]
    return [piece.replace(RANDOM_LETTER, "ABCDEFGHIJ"[draw % 10]) for piece in script.content], script.calls


def _reasoning_deltas(script: Script) -> Iterator[Json]:
    if not script.reasoning:
        return
    if script.reasoning_as in ("think", "implicit"):
        opening = ["<think>"] if script.reasoning_as == "think" else []
        yield from ({"content": piece} for piece in (*opening, *script.reasoning, "</think>"))
    else:
        field_name: str = script.reasoning_as
        yield from ({field_name: piece} for piece in script.reasoning)


def _call_deltas(calls: tuple[Call, ...]) -> Iterator[Json]:
    for index, call in enumerate(calls):
        yield {"tool_calls": [{"index": index, **_call(call, "")}]}
        for piece in call.arguments:
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _call(call: Call, arguments: str) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _finish(script: Script, calls: tuple[Call, ...]) -> str:
    return "stop" if script.calls and not calls else script.finish_reason


def _head(request: Json) -> Json:
    return {"id": "chatcmpl-scripted", "created": 1, "model": request["model"]}


def make_app(scripts: dict[str, Script] = BUILT_IN) -> web.Application:
    """The provider as an aiohttp application; ``app[REQUESTS]`` holds the last request bodies."""
    app = web.Application(client_max_size=256 * 1024 * 1024)
    app[REQUESTS] = deque(maxlen=KEPT_REQUESTS)
    app[COUNTS] = Counter()

    async def completions(request: web.Request) -> web.StreamResponse:
        body: Json = orjson.loads(await request.read())
        app[REQUESTS].append(body)
        model = body.get("model", "")
        script = scripts.get(model)
        if script is None:
            message = f"there is no script '{model}'; there are: {', '.join(scripts)}"
            return web.json_response({"error": {"message": message, "code": "model_not_found"}}, status=404)
        app[COUNTS][model] += 1
        if script.status != 200 and (not script.fail_first or app[COUNTS][model] <= script.fail_first):
            return web.json_response(script.error, status=script.status, headers=script.headers)
        if body.get("stream"):
            return await _stream(request, script, body)
        await asyncio.sleep(script.first_delay_s + script.delay_s * len(render_stream(script, body)))
        if script.fail_after is not None:
            return await _drop_half_way(request, render_body(script, body))
        return web.Response(body=render_body(script, body), content_type="application/json")

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in scripts]})

    async def requests(_request: web.Request) -> web.Response:
        kept: deque[Json] = app[REQUESTS]
        return web.json_response([*kept])

    app.router.add_post("/v1/chat/completions", completions)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/requests", requests)
    return app


async def _stream(request: web.Request, script: Script, body: Json) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await asyncio.sleep(script.first_delay_s)
    chunks = render_stream(script, body)
    if script.fail_after is not None:
        chunks = chunks[: script.fail_after]
    for piece in _pieces(script, chunks):
        await response.write(piece)
        if script.delay_s:
            await asyncio.sleep(script.delay_s)
    if script.fail_after is not None and request.transport is not None:
        request.transport.abort()
    else:
        await response.write_eof()
    return response


async def _drop_half_way(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.abort()
    return response


def _pieces(script: Script, chunks: list[bytes]) -> list[bytes]:
    whole = b"".join(chunks)
    if script.burst:
        return [whole]
    if script.cut_bytes:
        return [whole[start : start + script.cut_bytes] for start in range(0, len(whole), script.cut_bytes)]
    return chunks


def read_scripts(path: Path) -> dict[str, Script]:
    """Scripts of a YAML file: name -> the fields of Script."""
    known = {each.name for each in fields(Script)}
    scripts: dict[str, Script] = {}
    for name, given in yaml.safe_load(path.read_text()).items():
        unknown = given.keys() - known
        if unknown:
            hint = f"there are: {', '.join(sorted(known))}"
            raise SystemExit(f"{path}: {name}: unknown {', '.join(sorted(unknown))}; {hint}")
        values: Json = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        calls = [Call(**{**call, "arguments": tuple(call["arguments"])}) for call in given.get("calls", ())]
        scripts[name] = Script(**{**values, "calls": tuple(calls)})
    return scripts


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--script", type=Path, help="a YAML file of further scripts")
    given = parser.parse_args()
    scripts = BUILT_IN | (read_scripts(given.script) if given.script else {})
    print(f"scripted provider: policy_base_url=http://{given.host}:{given.port}/v1", flush=True)
    print(f"policy_model_name is one of: {', '.join(scripts)}", flush=True)
    web.run_app(make_app(scripts), host=given.host, port=given.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
