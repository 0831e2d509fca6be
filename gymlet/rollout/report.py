"""A run on one page of HTML: what it was, what it scored, what failed, and how the first rollouts read.

The page stands alone: no script, no other file. What models and providers said is hostile text; all of it is escaped,
and the page's policy forbids whatever would get through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

import orjson

from gymlet.rollout.files import RunFiles, read_rows
from gymlet.rollout.metrics import ROLLOUT, TASK
from gymlet.rollout.whole_file import whole_file

Json = dict[str, Any]

TEMPLATE = Path(__file__).parent.parent / "templates" / "report.html.tmpl"
SHOWN_ROLLOUTS = 10
SHOWN_CLASSES = 50
MAX_SHOWN_ITEMS = 100
MAX_SHOWN_CHARS = 4000
COUNTS = ("expected", "ok", "failed", "missing")


def write_report(files: RunFiles, manifest: Json, summaries: Sequence[Json]) -> None:
    """Write the page beside the run's other files. ``summaries``: each agent's scores. Raises StorageError."""
    title = files.output.stem
    body = "\n".join(
        (
            f"<h1>{escape(title)}</h1>",
            *_about(manifest),
            *(part for summary in summaries for part in _scores(summary)),
            *_failures(read_rows(files.failures)),
            *_rollouts(read_rows(files.output)),
            *_details("What the run was made of", manifest),
        )
    )
    page = Template(TEMPLATE.read_text("utf-8")).substitute(title=escape(title), body=body)
    with whole_file(files.report) as file:
        file.write(page.encode("utf-8", "replace"))


def _about(manifest: Json) -> Iterator[str]:
    counts, version = manifest.get("counts") or {}, (manifest.get("versions") or {}).get("gymlet")
    told = [
        f"{counts['ok']} of {counts['expected']} rollouts" if counts else "",
        f"{counts['failed']} failed" if counts.get("failed") else "",
        f"{counts['missing']} missing" if counts.get("missing") else "",
        f"from {manifest['source']}" if manifest.get("source") else "",
        f"{manifest['started']} to {manifest['ended']}" if manifest.get("ended") else "",
        f"gymlet {version}" if version else "",
    ]
    yield f'<p class="quiet">{escape(" · ".join(each for each in told if each))}</p>'


def _scores(summary: Json) -> Iterator[str]:
    yield f"<h2>{escape(summary['agent_ref']['name'])}</h2>"
    head = ("score", "", "mean", "95 % interval", "failures as 0", *COUNTS)
    yield _table(head, (_score(name, each) for name, each in summary["intervals"].items()), numbers_from=2)
    metrics = ((escape(name), _number(value)) for name, value in summary["agent_metrics"].items())
    yield f"<details><summary>All metrics</summary>{_table(('metric', 'value'), metrics, numbers_from=1)}</details>"


def _score(name: str, score: Json) -> Sequence[str]:
    low, high = score["ci95_low"], score["ci95_high"]
    return (
        escape(name),
        _bar(score["mean"], low, high),
        _percent(score["mean"]),
        "" if low is None or high is None else f"{low:.2f} to {high:.2f} %",
        _percent(score["mean_failures_as_0"]),
        *("" if score[key] is None else str(score[key]) for key in COUNTS),
    )


def _bar(mean: float | None, low: float | None, high: float | None) -> str:
    """The mean and its interval between 0 and 100 %; nothing for scores that lie elsewhere."""
    if mean is None or not 0 <= mean <= 100:
        return ""
    span = ""
    if low is not None and high is not None:
        left, right = max(0.0, low), min(100.0, high)
        span = f'<div class="range" style="left:{left:.2f}%;width:{right - left:.2f}%"></div>'
    return f'<div class="scale">{span}<div class="mean" style="left:{mean:.2f}%"></div></div>'


def _failures(rows: Iterable[Json]) -> Iterator[str]:
    attempts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row in rows:
        error = row.get("error")
        told = error if isinstance(error, dict) else {}
        name = str(row.get("_ng_failure_class") or told.get("class"))
        attempts[name] += 1
        examples.setdefault(name, f"({row[TASK]}, {row[ROLLOUT]}): {told.get('message')}")
    if attempts:
        yield f"<h2>Attempts that failed: {attempts.total()}</h2>"
        shown = attempts.most_common(SHOWN_CLASSES)
        lines = ((escape(name), str(count), _text(examples[name])) for name, count in shown)
        yield _table(("class", "attempts", "the first: task, rollout, and what was told"), lines)


def _rollouts(rows: Iterable[Json]) -> Iterator[str]:
    first = list(islice(rows, SHOWN_ROLLOUTS))
    if first:
        yield f"<h2>The first {len(first)} rollouts</h2>" if len(first) > 1 else "<h2>The first rollout</h2>"
    for row in first:
        params, response = row.get("responses_create_params"), row.get("response")
        asked = params.get("input") if isinstance(params, dict) else None
        output = response.get("output") if isinstance(response, dict) else None
        rest = {name: value for name, value in row.items() if name not in ("responses_create_params", "response")}
        yield (
            f"<details><summary>{row[TASK]}, {row[ROLLOUT]}: reward {escape(str(row.get('reward')))}</summary>"
            f"{_said(asked)}{_said(output)}{_text(_json(rest))}</details>"
        )


def _said(items: Any) -> str:
    """Messages and other items, each with its role or type."""
    if not isinstance(items, list):
        return "" if items is None else f"<h4>user</h4>{_text(str(items))}"
    more = f"<p>… ({len(items)} items)</p>" if len(items) > MAX_SHOWN_ITEMS else ""
    return "".join(_item(item) for item in items[:MAX_SHOWN_ITEMS] if isinstance(item, dict)) + more


def _item(item: Json) -> str:
    parts = [item.get(name) for name in ("summary", "content", "arguments", "input", "output")]
    texts = [text for part in parts if part for text in _texts(part)]
    return f"<h4>{escape(str(item.get('role') or item.get('type')))}</h4>{_text(chr(10).join(texts))}"


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, list):
        for each in part:
            text = each.get("text") if isinstance(each, dict) else each
            yield text if isinstance(text, str) else _json(each)
    else:
        yield part if isinstance(part, str) else _json(part)


def _details(title: str, value: Json) -> Iterator[str]:
    if value:
        keys = escape(", ".join(value))
        yield f"<h2>{title}</h2><details><summary>{keys}</summary>{_text(_json(value))}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None) -> str:
    """``rows`` are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (
            ' class="number"' if numbers_from is not None and at >= numbers_from else "" for at in range(len(cells))
        )
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{line(head, 'th')}</tr>{body}</table>"


def _text(text: str) -> str:
    cut = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}… ({len(text)} characters)"
    return f"<pre>{escape(cut)}</pre>"


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
    except orjson.JSONEncodeError:  # rows of others, which were read and never written here
        return "(nested too deeply to be shown)"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")
