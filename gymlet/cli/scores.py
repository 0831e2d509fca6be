"""Scores as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

COUNTS = ("expected", "ok", "failed", "missing")


def show_scores(console: Console, entries: Iterable[dict[str, Any]]) -> None:
    """Two tables per agent: its headline metrics, and the counts and interval of each score."""
    for entry in entries:
        console.print(_metrics(entry))
        console.print(_intervals(entry))


def _metrics(entry: dict[str, Any]) -> Table:
    table = Table(title=entry["agent_ref"]["name"], title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in entry["key_metrics"].items():
        table.add_row(name.replace("[", r"\["), f"{value:.4f}" if name.startswith("mean/") else f"{value:.2f} %")
    return table


def _intervals(entry: dict[str, Any]) -> Table:
    table = Table("score", "mean", "95 % interval", "failures as 0", *COUNTS, box=None, pad_edge=False)
    for name, score in entry["intervals"].items():
        table.add_row(
            name,
            _percent(score["mean"]),
            _range(score),
            _percent(score["mean_failures_as_0"]),
            *("-" if score[key] is None else str(score[key]) for key in COUNTS),
        )
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _range(score: dict[str, Any]) -> str:
    low, high = score["ci95_low"], score["ci95_high"]
    if low is None or high is None:
        return "-" if score["mean"] is None else "one task tells none"
    return f"{low:.2f} to {high:.2f} %"
