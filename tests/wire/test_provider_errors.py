"""The provider's own words, out of whatever it answered with."""

import time

import orjson
import pytest

from gymlet.wire.errors import MAX_MESSAGE_CHARS
from gymlet.wire.provider_errors import read_error

pytestmark = pytest.mark.pure

PAGE = """<!DOCTYPE html>
<html><head><title>502 Bad Gateway</title><style>body { color: red }</style><!-- nginx --></head>
<body><script>alert("x")</script><h1>Bad&nbsp;Gateway &amp; more</h1></body></html>"""

SHAPES = {
    "OpenAI's": (400, {"error": {"message": "no such thing", "type": "t", "code": "c"}}, "no such thing", "c"),
    "a string": (400, {"error": "no such thing"}, "no such thing", None),
    "a list": (400, [{"error": {"message": "no such thing"}}], "no such thing", None),
    "a detail": (422, {"detail": "no such thing"}, "no such thing", None),
    "a place": (422, {"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, "body.n: too many", None),
    "a gateway's": (400, {"error": {"message": "x", "metadata": {"raw": '{"error":{"message":"inner"}}'}}}, "inner", None),
    "text": (503, b"upstream connect error", "upstream connect error", None),
    "a page": (502, PAGE.encode(), "502 Bad Gateway Bad Gateway & more", None),
    "an unfinished page": (502, b"<html><title>Bad</title><script>var a", "Bad", None),
    "a sum": (400, b"1 < 2 is no page", "1 < 2 is no page", None),
    "nothing": (500, b"", "HTTP 500 without a message", None),
}  # fmt: skip


@pytest.mark.parametrize(("status", "body", "words", "code"), SHAPES.values(), ids=SHAPES)
def test_the_words_are_found(status, body, words, code):
    error = read_error(status, body if isinstance(body, bytes) else orjson.dumps(body))
    assert error.message == f"the provider answered {status}: {words}"
    assert (error.status, error.code) == (status, code)


@pytest.mark.parametrize("page", [b"<html>" + piece * 200_000 for piece in (b"<script", b"<!--", b"<", b"&lt;")])
def test_a_hostile_page_costs_no_time(page):
    started = time.process_time()
    error = read_error(502, page)
    error.hide(str)
    assert len(error.message) <= MAX_MESSAGE_CHARS
    assert time.process_time() - started < 1
