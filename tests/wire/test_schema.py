"""Every event and every response is valid by the Open Responses schema.

The schema is not part of the project: GYMLET_OPENRESPONSES_SCHEMA names its OpenAPI file, of release 2026-04-24, from
https://www.openresponses.org.
"""

import os
from functools import cache
from pathlib import Path

import orjson
import pytest
from wire.pipeline import end, parse_events, reasoning, stream, text
from wire.test_golden import GOLDEN, STREAMS
from wire.test_reply import CASES
from wire.test_rules import FAILURES, RULES

jsonschema = pytest.importorskip("jsonschema")

FILE = os.environ.get("GYMLET_OPENRESPONSES_SCHEMA", "")
pytestmark = pytest.mark.skipif(not FILE, reason="GYMLET_OPENRESPONSES_SCHEMA names no OpenAPI file")

OURS = {"response.reasoning_text.delta", "response.reasoning_text.done"}
"""OpenAI's names, which the schema lacks; sent only where reasoning_output is set to content."""

BODIES = {
    **{name: body for name, (body, _) in (CASES | RULES).items()},
    **FAILURES,
    "usage": text("b") + end(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
    "cut off": reasoning("a") + text("b") + end("length"),
}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
REQUEST = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "name": "f"},
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
    "metadata": {"a": "b"},
}


@cache
def schemas():
    document = orjson.loads(Path(FILE).read_bytes())
    named = document["components"]["schemas"]
    kinds = {
        (schema.get("properties", {}).get("type", {}).get("enum") or [""])[0]: name for name, schema in named.items()
    }
    return document, kinds


@cache
def validator(name):
    document, _ = schemas()
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    )


def without_schema(event):
    """The Open Responses schema lets an echoed format's ``schema`` only be null; clients need the one that they sent."""
    response = event.get("response") or {}
    if "schema" in (response.get("text") or {}).get("format", {}):
        form = {**response["text"]["format"], "schema": None}
        return {**event, "response": {**response, "text": {**response["text"], "format": form}}}
    return event


def faults(given):
    if given["type"] in OURS:
        return []
    event = without_schema(given)
    _, kinds = schemas()
    return [
        f"{event['type']} {error.json_path}: {error.message[:200]}"
        for error in validator(kinds[event["type"]]).iter_errors(event)
    ]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_every_event_is_valid(body):
    events, response = stream(body)
    assert [fault for event in events for fault in faults(event)] == []
    assert [error.message for error in validator("ResponseResource").iter_errors(response)] == []


@pytest.mark.parametrize("form", ["summary", "content", "open_responses"])
def test_every_echo_is_valid(form):
    events, _ = stream(reasoning("a") + text("b") + end(), request=REQUEST, reasoning_output=form)
    assert [fault for event in events for fault in faults(event)] == []


@pytest.mark.parametrize("name", STREAMS)
def test_every_golden_event_is_valid(name):
    events = parse_events((GOLDEN / f"{name}.events").read_bytes())
    assert [fault for event in events for fault in faults(event)] == []
