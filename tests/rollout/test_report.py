"""A run on one page: what stands there, and that nothing of it runs."""

from html.parser import HTMLParser

import orjson
import pytest

from gymlet.rollout.files import RunFiles
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.report import MAX_SHOWN_CHARS, MAX_SHOWN_ITEMS, SHOWN_ROLLOUTS, write_report
from gymlet.rollout.scores import score_run

ATTACK = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
MANIFEST = {
    "source": "rows.jsonl",
    "started": "2026-03-01T12:00:00+00:00",
    "ended": "2026-03-01T13:00:00+00:00",
    "counts": {"expected": 4, "ok": 2, "failed": 1, "missing": 1},
    "versions": {"gymlet": "0.1"},
    "config": {"policy_model": {"inference_provider": {"model": ATTACK}}},
}


class Page(HTMLParser):
    """The tags and the texts of a page; every tag must be closed where it was opened."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = set(), [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


def row(task, rollout, **fields):
    return {"_ng_task_index": task, "_ng_rollout_index": rollout, "agent_ref": {"name": "an agent"}, **fields}


def told(text, *, kind="output_text"):
    return {"type": "message", "role": "assistant", "content": [{"type": kind, "text": text}]}


@pytest.fixture
def page(tmp_path):
    """Write the report of rows and failures, and read it: ``page(rows, failures)``."""

    def write(rows, failures=(), manifest=MANIFEST):
        files = RunFiles(tmp_path / "run.jsonl")
        for path, lines in ((files.output, rows), (files.failures, failures)):
            path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        scores = score_run({"an agent": MetricsSpec()}, inputs=None, rows=rows, failures=failures)
        write_report(files, manifest, [each.summary() for each in scores])
        return Page(files.report.read_text("utf-8"))

    return write


ROWS = [
    row(0, 0, reward=1.0, responses_create_params={"input": "2 + 2?"}, response={"output": [told("4")]}),
    row(1, 0, reward=0.0, responses_create_params={"input": [{"role": "user", "content": "3 + 3?"}]}, response={}),
]
FAILURES = [row(2, 0, _ng_failure_class="timeout", error={"class": "timeout", "message": "not ended after 5 s"})] * 2


def test_it_says_what_the_run_was_and_what_came_of_it(page):
    text = page(ROWS, FAILURES).text
    for expected in ("2 of 4 rollouts · 1 failed · 1 missing · from rows.jsonl", "an agent", "accuracy", "50.00 %"):
        assert expected in text
    for expected in ("2 + 2?", "3 + 3?", "0, 0: reward 1.0", "timeout", "(2, 0): not ended after 5 s"):
        assert expected in text
    assert "pass@1/accuracy" in text


def test_what_is_hostile_is_shown_and_does_nothing(page):
    hostile = row(0, 0, reward=1.0, responses_create_params={"input": ATTACK}, response={"output": [told(ATTACK)]})
    failure = row(1, 0, _ng_failure_class=ATTACK, error={"message": ATTACK})
    shown = page([hostile | {ATTACK: ATTACK, "agent_ref": {"name": "an agent"}}], [failure])
    assert not shown.tags & {"script", "img"}
    assert shown.text.count(ATTACK) >= 5


ODD = {
    "no response": {},
    "a response that is none": {"response": "text"},
    "items that are none": {"response": {"output": [1, None, "x"]}},
    "parts that are none": {"response": {"output": [{"type": "message", "content": [1, None, {"type": "x"}]}]}},
    "calls": {"response": {"output": [{"type": "function_call", "name": "f", "arguments": "{}"}]}},
    "params that are none": {"responses_create_params": []},
    "input of another kind": {"responses_create_params": {"input": 5}},
}


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD)
def test_rows_of_any_shape_are_shown(page, fields):
    assert "0, 0: reward 1" in page([row(0, 0, reward=1, **fields)]).text


def test_a_large_run_has_a_small_page(page, tmp_path):
    rows = [row(task, 0, reward=1.0, response={"output": [told("x" * 100_000)]}) for task in range(50)]
    text = page(rows).text
    assert text.count(": reward") == SHOWN_ROLLOUTS
    assert (tmp_path / "run_report.html").stat().st_size < 2 * SHOWN_ROLLOUTS * MAX_SHOWN_CHARS


def test_a_long_rollout_is_shown_by_its_first_items(page):
    html = page([row(0, 0, response={"output": [told(f"item {number}.") for number in range(MAX_SHOWN_ITEMS + 1)]})])
    assert f"item {MAX_SHOWN_ITEMS - 1}." in html.text
    assert f"item {MAX_SHOWN_ITEMS}." not in html.text
    assert f"({MAX_SHOWN_ITEMS + 1} items)" in html.text


def test_a_row_that_can_be_read_and_not_written_is_shown(tmp_path):
    files = RunFiles(tmp_path / "run.jsonl")
    files.output.write_bytes(orjson.dumps(row(0, 0, deep=0)).replace(b":0}", b":" + b"[" * 300 + b"]" * 300 + b"}"))
    write_report(files, {}, [])
    assert "nested too deeply to be shown" in files.report.read_text("utf-8")


def test_a_run_without_anything_has_a_page(page):
    assert "run" in page([], manifest={}).text
