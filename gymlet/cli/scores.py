"""Scores as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table


def show_scores(console: Console, entries: Iterable[dict[str, Any]]) -> None:
    """One table per agent: its headline metrics, and the counts and interval of each score."""
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
    table = Table(
        "score",
        "mean",
        "95 % interval",
        "failures as 0",
        "expected",
        "ok",
        "failed",
        "missing",
        box=None,
        pad_edge=False,
    )
    for name, score in entry["intervals"].items():
        low, high = score["ci95_low"], score["ci95_high"]
        table.add_row(
            name,
            f"{score['mean']:.2f} %",
            "one task tells none" if low is None else f"{low:.2f} to {high:.2f} %",
            f"{score['mean_failures_as_0']:.2f} %",
            *(str(score[key]) for key in ("expected", "ok", "failed", "missing")),
        )
    return table
