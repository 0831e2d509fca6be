"""Streams of providers, beside the events that they become: tests/golden/NAME.sse and NAME.events.

The first comments of a stream say what it is and how it is read. ``make golden`` writes the events anew; read the diff.
Every one of them, however it is cut, becomes the same response.
"""

import itertools
import os
import re
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.pipeline import check_grammar, make_reply, parse_events

from gymlet.wire.seal import Seal
from gymlet.wire.sse import SseDecoder

pytestmark = pytest.mark.pure

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
STREAMS = sorted(path.stem for path in GOLDEN.glob("*.sse"))
REWRITE = "GYMLET_REWRITE_GOLDEN" in os.environ
SEAL = Seal("provider.example/some/model")
TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")


def read(name):
    """The bytes of a stream, and how it is read."""
    body = (GOLDEN / f"{name}.sse").read_bytes()
    found = re.search(rb"^: options (.*)$", body, re.MULTILINE)
    return body, orjson.loads(found[1]) if found else {}


def run(body, options, sizes=()):
    """The bytes of the events of a stream that comes in pieces of these sizes."""
    splitting = {key: value for key, value in options.items() if key not in ("recut", "encrypted")}
    seal = SEAL if options.get("encrypted") else None
    reply = make_reply(seal=seal, **splitting)
    out, start = [reply.open()], 0
    for size in sizes:
        out.append(reply.feed(body[start : start + size]))
        start += size
    return b"".join((*out, reply.feed(body[start:]), reply.close()))


def response(raw):
    return parse_events(raw)[-1]["response"]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_becomes_its_events(name):
    body, options = read(name)
    events, path = run(body, options), GOLDEN / f"{name}.events"
    check_grammar(parse_events(events))
    if REWRITE:
        path.write_bytes(events)
    assert events.decode() == path.read_text(), "read the diff, then: make golden"


def test_every_events_file_has_its_stream():
    assert sorted(path.stem for path in GOLDEN.glob("*.events")) == STREAMS


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("newline", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
def test_line_ends_change_nothing(name, newline):
    body, options = read(name)
    cut = body.replace(b"\n", newline)
    assert run(cut, options) == run(body, options)
    assert run(cut, options, [1] * len(cut)) == run(body, options, [1] * len(body))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_bytes_cut_anywhere(data):
    body, options = read(data.draw(st.sampled_from(STREAMS)))
    sizes = data.draw(st.lists(st.integers(1, 200), max_size=40))
    assert response(run(body, options, sizes)) == response(run(body, options))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_text_cut_anywhere(data):
    body, options = read(data.draw(st.sampled_from([name for name in STREAMS if read(name)[1].get("recut", True)])))
    pieces = [piece for chunk in _chunks(body) for piece in _recut(chunk, data)]
    recut = b"".join(b"data: " + piece + b"\n\n" for piece in pieces)
    assert response(run(recut, options)) == response(run(body, options))


def _chunks(body):
    decoder = SseDecoder()
    for name, payload in decoder.feed(body) + decoder.close():
        yield orjson.dumps({"error": orjson.loads(payload)}) if name == "error" else payload


def _recut(payload, data):
    """A chunk as several, its text cut anywhere; whatever else it says is said by the last."""
    chunk = {} if payload == b"[DONE]" else orjson.loads(payload)
    delta = (chunk.get("choices") or [{}])[0].get("delta") or {}
    fields = [key for key in TEXT_FIELDS if delta.get(key) and isinstance(delta[key], str)]
    if len(fields) != 1:
        return [payload]
    (field,) = fields
    cuts = sorted(data.draw(st.lists(st.integers(0, len(delta[field])), max_size=4)))
    bounds = [0, *cuts, len(delta[field])]
    texts = [delta[field][start:stop] for start, stop in itertools.pairwise(bounds)]
    first = [orjson.dumps({"choices": [{"index": 0, "delta": {field: text}}]}) for text in texts[:-1]]
    delta[field] = texts[-1]
    return [*first, orjson.dumps(chunk)]
