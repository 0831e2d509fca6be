"""Scores as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console

COUNTS = ("expected", "ok", "failed", "missing")
GAP = "  "


def show_scores(console: Console, entries: Iterable[dict[str, Any]]) -> None:
    """Two tables per agent: its headline metrics, and the counts and interval of each score."""
    for entry in entries:
        console.print(entry["agent_ref"]["name"], style="italic", markup=False)
        for table in (_metrics(entry), _intervals(entry)):
            for line in _aligned(list(table)):
                console.print(line, markup=False)


def _metrics(entry: dict[str, Any]) -> Iterator[Sequence[str]]:
    yield "metric", "value"
    for name, value in entry["key_metrics"].items():
        yield name, f"{value:.4f}" if name.startswith("mean/") else f"{value:.2f} %"


def _intervals(entry: dict[str, Any]) -> Iterator[Sequence[str]]:
    yield "score", "mean", "95 % interval", "failures as 0", *COUNTS
    for name, score in entry["intervals"].items():
        yield (
            name,
            _percent(score["mean"]),
            _range(score),
            _percent(score["mean_failures_as_0"]),
            *("-" if score[key] is None else str(score[key]) for key in COUNTS),
        )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines: names to the left, values to the right; a narrow terminal breaks them itself."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        cells = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
        yield GAP.join((name.ljust(widths[0]), *cells))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _range(score: dict[str, Any]) -> str:
    low, high = score["ci95_low"], score["ci95_high"]
    if low is None or high is None:
        return "-" if score["mean"] is None else "one task tells none"
    return f"{low:.2f} to {high:.2f} %"
