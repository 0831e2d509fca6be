"""The corpus runner, over a corpus of its own."""

import asyncio
import sys

import orjson
import pytest
from wire.pipeline import end, reasoning, text

from scripts.corpus import ROOT

STREAM = reasoning("hm") + text("Hel", "lo") + end()
RIGHT = {"answer_text_stripped": "Hello", "reasoning_text_stripped": "hm", "tool_calls": []}
CASES = {
    "right": (200, STREAM, RIGHT, 0, "1 of 1 passed"),
    "wrong answer": (200, STREAM, {**RIGHT, "answer_text_stripped": "Bye"}, 1, "the answer is 'Hello', expected 'Bye'"),
    "wrong status": (200, STREAM, {**RIGHT, "suggested_responses_status": "failed"}, 1, "status completed"),
    "an error": (
        401,
        b'{"detail":"No key"}',
        {"is_error": True, "http_status": 401, "message": "No key"},
        0,
        "1 passed",
    ),
    "other words": (401, b'{"detail":"No"}', {"is_error": True, "http_status": 401, "message": "No key"}, 1, "has not"),
}


@pytest.mark.parametrize(("status", "body", "expected", "code", "printed"), CASES.values(), ids=CASES)
async def test_a_case(status, body, expected, code, printed, tmp_path):
    name = "case.sse" if status == 200 else "case.json"
    folder = tmp_path / "someone"
    folder.mkdir()
    (folder / name).write_bytes(body)
    meta = {"file": name, "http_status": status, "response_headers": {}, "expected": expected}
    (folder / "case.meta.json").write_bytes(orjson.dumps(meta))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "scripts/corpus.py", str(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert (process.returncode, printed in out.decode()) == (code, True), out.decode()
