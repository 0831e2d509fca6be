"""The table of outcomes in docs/reliability.md is the one that the tests run."""

import os
from pathlib import Path

from serve.faults import TABLE, TIMEOUTS, Expected

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- the table: written by a test from tests/serve/faults.py -->\n", "<!-- its end -->"


def told(expected: Expected) -> str:
    """An outcome in words."""
    if expected.end == "completed":
        return "the right answer"
    words = f": “{expected.words}”" if expected.words else ""
    if expected.end == "failed":
        return f"kept what was said, then failed{words}"
    return f"{expected.status}, {expected.kind}{words}"


def table() -> str:
    rows = ["| fault | streamed | whole | attempts |", "|---|---|---|---|"]
    for row in (*TABLE, *TIMEOUTS):
        attempts = {row.streamed.attempts, row.whole.attempts}
        counts = " / ".join(map(str, (row.streamed.attempts, row.whole.attempts) if len(attempts) > 1 else attempts))
        rows.append(f"| `{row.behaviour}` | {told(row.streamed)} | {told(row.whole)} | {counts} |")
    return "\n".join(rows) + "\n"


def test_the_page_shows_the_table_that_the_tests_run():
    """GYMLET_REWRITE_GOLDEN=1 writes it."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    shown, _, after = rest.partition(END)
    if os.environ.get("GYMLET_REWRITE_GOLDEN"):
        PAGE.write_text(before + BEGIN + table() + END + after)
        shown = table()
    assert shown == table()
