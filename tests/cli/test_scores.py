"""How scores are shown."""

import io

from rich.console import Console

from gymlet.cli.scores import show_scores

SCORE = {
    "mean": 50.0,
    "mean_failures_as_0": 25.0,
    "ci95_low": 9.5,
    "ci95_high": 90.5,
    "expected": 4,
    "ok": 2,
    "failed": 1,
    "missing": 1,
}
NONE = {
    "mean": None,
    "mean_failures_as_0": None,
    "ci95_low": None,
    "ci95_high": None,
    "expected": None,
    "ok": 0,
    "failed": 0,
    "missing": None,
}
SHOWN = """
a[b]
metric                       value
mean/reward                 0.5000
pass@1[avg-of-4]/accuracy  50.00 %
score         mean        95 % interval  failures as 0  expected  ok  failed  missing
accuracy   50.00 %      9.50 to 90.50 %        25.00 %         4   2       1        1
no_answer        -                    -              -         -   0       0        -
one        50.00 %  one task tells none        25.00 %         4   2       1        1
"""


def test_the_table():
    entry = {
        "agent_ref": {"name": "a[b]"},
        "key_metrics": {"mean/reward": 0.5, "pass@1[avg-of-4]/accuracy": 50},
        "intervals": {"accuracy": SCORE, "no_answer": NONE, "one": SCORE | {"ci95_low": None, "ci95_high": None}},
    }
    shown = io.StringIO()
    show_scores(Console(file=shown, width=40, soft_wrap=True), [entry])
    assert shown.getvalue().strip() == SHOWN.strip()
