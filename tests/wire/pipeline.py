"""What the wire's tests share: bytes of providers, and the whole pipeline over them."""

from __future__ import annotations

import itertools
from collections import defaultdict

import orjson

from gymlet.wire import request as requests
from gymlet.wire.chat import ChatReader
from gymlet.wire.reasoning import Plain, Tagged
from gymlet.wire.reply import Reply
from gymlet.wire.request import envelope
from gymlet.wire.responses import ResponseWriter, View
from gymlet.wire.tools import toolbox

DONE = b"data: [DONE]\n\n"


def chunk(delta=None, finish=None, **top):
    """One SSE event of a chat completion stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    payload = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **top}
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def text(*pieces):
    return b"".join(chunk({"content": piece}) for piece in pieces)


def reasoning(*pieces, key="reasoning_content"):
    return b"".join(chunk({key: piece}) for piece in pieces)


def call(index=None, call_id=None, name=None, arguments=None):
    """One fragment of a tool call, with only what is given."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    given = (("index", index), ("id", call_id), ("function", function or None))
    return {key: value for key, value in given if value is not None}


def calls(*fragments):
    return chunk({"tool_calls": list(fragments)})


def end(reason="stop", usage=None):
    return chunk({}, reason) + (chunk(usage=usage) if usage else b"") + DONE


def make_reply(*, parse=True, request=None, reasoning_output="summary", seal=None, keep=None, **splitting):
    counts = defaultdict(itertools.count)

    def new_id(prefix):
        return f"{prefix}{next(counts[prefix])}"

    shell = envelope(request or {}, response_id="resp_0", created_at=1, model="m")
    tools = toolbox(request or {})
    view = View(reasoning_output=reasoning_output, tools=tools, seal=seal, encrypted=keep is None)
    writer = ResponseWriter(shell, view, new_id=new_id, now=lambda: 2, keep=keep)
    return Reply(ChatReader(new_id), Tagged(new_id, **splitting) if parse else Plain(), writer)


def to_chat(request, profile, seal, *, stream):
    """A request, checked and converted."""
    requests.check_request(request)
    return requests.to_chat(request, profile, seal, stream=stream)


def stream(body, sizes=None, **options):
    """The events of a whole stream, and the final response; ``sizes`` says where the bytes are cut."""
    reply = make_reply(**options)
    out = [reply.open()]
    start = 0
    for size in sizes or ():
        out.append(reply.feed(body[start : start + size]))
        start += size
    out += [reply.feed(body[start:]), reply.close()]
    return parse_events(b"".join(out)), reply.response


def parse_events(raw):
    """Server-sent events to their JSON; the event line equals the type, and the last frame is [DONE]."""
    frames = raw.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""], "the stream ends with [DONE]"
    events = []
    for frame in frames[:-2]:
        name, data = frame.split("\n")
        event = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def shape(response):
    """A response's output as short tuples: (kind, text) and (call, name, arguments)."""
    shapes = []
    for item in response["output"]:
        if item["type"] == "function_call":
            shapes.append(("call", item["name"], item["arguments"]))
        else:
            parts = item.get("content") or item.get("summary") or []
            shapes.append((item["type"], "".join(part.get("text", part.get("refusal", "")) for part in parts)))
    return shapes


def check_grammar(events):
    """The rules of the stream that hold whatever was said; see docs/streaming.md."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in ("response.completed", "response.incomplete", "response.failed")
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert events[-1]["response"]["output"] == done
    assert [event["output_index"] for event in added] == list(range(len(added)))
    assert [event["item"]["id"] for event in added] == [item["id"] for item in done]
    assert len({item["id"] for item in done}) == len(done)
    _check_deltas(events, done)


def _check_deltas(events, done):
    joined = {}
    for event in events:
        if event["type"].endswith(".delta"):
            assert event["delta"], "no empty delta"
            key = (event["item_id"], event.get("content_index"), event.get("summary_index"))
            joined[key] = joined.get(key, "") + event["delta"]
    for item in done:
        if item["type"] == "function_call":
            assert item["arguments"] == joined.pop(
                (item["id"], None, None), "{}" if item["status"] == "completed" else ""
            )
        for container, at in (("content", 1), ("summary", 2)):
            for index, part in enumerate(item.get(container) or ()):
                key = (item["id"], index if at == 1 else None, index if at == 2 else None)
                assert part.get("text", part.get("refusal")) == joined.pop(key, "")
    assert not joined, "every delta belongs to an item"
