"""Scores: NeMo Gym's names and formulas, and our counts and intervals."""

import math
import statistics
import time
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymlet.rollout.compact import TaskCounts
from gymlet.rollout.intervals import wilson
from gymlet.rollout.metrics import Aggregator, MetricsSpec, aggregate

SPEC = MetricsSpec(
    answer_key="answer", key_metrics=("mean/reward", "pass@1[avg-of-{k}]/accuracy", "majority@{k}/accuracy")
)


def rows(tasks):
    """[[("A", 1), …], …] to verified rows."""
    return [
        {"_ng_task_index": task, "_ng_rollout_index": index, "reward": float(reward), "answer": answer}
        for task, rollouts in enumerate(tasks)
        for index, (answer, reward) in enumerate(rollouts)
    ]


VECTOR = [
    [("A", 1), ("A", 1), ("B", 0), ("A", 1)],
    [("B", 0), ("C", 1), ("B", 0), (None, 0)],
    [("D", 0), ("D", 0), ("C", 0), (None, 0)],
]
EXPECTED = {
    "mean/reward": 0.3333,
    "std/reward": 0.4924,
    **{f"pass@{k}/accuracy": value for k, value in enumerate((33.3333, 50, 58.3333, 66.6667), 1)},
    **{f"pass@1[avg-of-{k}]/accuracy": value for k, value in enumerate((33.3333, 50, 33.3333, 33.3333), 1)},
    **{f"majority@{k}/accuracy": value for k, value in enumerate((33.3333, 50, 33.3333, 33.3333), 1)},
    **{f"pass@{k}/no_answer": value for k, value in enumerate((16.6667, 33.3333, 50, 66.6667), 1)},
    **{f"majority@{k}/no_answer": 0 for k in range(1, 5)},
    "pass@1[avg-of-4]/no_answer": 16.6667,
    "pass@1[avg-of-2]/accuracy/std_dev_across_runs": 23.5702,
    "pass@1[avg-of-2]/accuracy/std_err_across_runs": 16.6667,
    "pass@1[avg-of-3]/accuracy/std_dev_across_runs": 33.3333,
    "pass@1[avg-of-3]/accuracy/std_err_across_runs": 19.2450,
    "pass@1[avg-of-4]/accuracy/std_dev_across_runs": 27.2166,
    "pass@1[avg-of-4]/accuracy/std_err_across_runs": 13.6083,
}


def test_the_vector_computed_with_nemo_gym():
    metrics = aggregate(SPEC, rows(VECTOR))["agent_metrics"]
    assert {name: round(metrics[name], 4) for name in EXPECTED} == EXPECTED


def test_the_order_of_rows_does_not_matter():
    assert aggregate(SPEC, reversed(rows(VECTOR))) == aggregate(SPEC, rows(VECTOR))


def test_key_metrics_name_the_highest_k():
    assert list(aggregate(SPEC, rows(VECTOR))["key_metrics"]) == [
        "mean/reward",
        "pass@1[avg-of-4]/accuracy",
        "majority@4/accuracy",
    ]


def test_a_tie_averages_the_tied():
    metrics = aggregate(SPEC, rows([[("A", 1), ("B", 0)]]))["agent_metrics"]
    assert metrics["majority@2/accuracy"] == 50


def test_scores_between_take_the_best():
    metrics = aggregate(MetricsSpec(), rows([[("A", 0.25), ("A", 0.75)]]))["agent_metrics"]
    assert (metrics["pass@1/accuracy"], metrics["pass@2/accuracy"]) == (25, 75)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=6))
def test_pass_at_k_is_the_chance_that_k_of_n_hold_a_right_one(tasks):
    metrics = aggregate(MetricsSpec(), rows([[("A", reward) for reward in task] for task in tasks]))["agent_metrics"]
    for k in range(1, max(map(len, tasks)) + 1):
        chances = [statistics.mean(max(drawn) for drawn in combinations(task, k)) for task in tasks if len(task) >= k]
        assert metrics[f"pass@{k}/accuracy"] == pytest.approx(100 * statistics.mean(chances))


def test_groups_tell_what_is_missing():
    aggregator = Aggregator(SPEC)
    for row in rows(VECTOR)[:6]:
        aggregator.add(row)
    expected = TaskCounts.of({0: 4, 1: 4, 2: 3})
    groups = list(aggregator.groups(expected))
    keys = ("_ng_task_index", "num_rollouts", "expected_num_rollouts", "missing_num_rollouts")
    assert [[group[key] for key in keys] for group in groups] == [[0, 4, 4, 0], [1, 2, 4, 2], [2, 0, 3, 3]]
    score = aggregator.summary(expected, failed=1)["intervals"]["accuracy"]
    assert [score[key] for key in ("expected", "ok", "failed", "missing")] == [11, 6, 1, 4]
    assert (score["mean"], score["mean_failures_as_0"]) == (pytest.approx(400 / 6), pytest.approx(400 / 11))


def test_ten_thousand_repeats_take_no_minute():
    """Each k from 1 to the most repeats costs the same; 0.3 s here, and half a minute if each looked at all before."""
    rows = [{"_ng_task_index": 0, "_ng_rollout_index": at, "reward": float(at % 3 == 0)} for at in range(10_000)]
    started = time.process_time()
    metrics = aggregate(MetricsSpec(), rows)["agent_metrics"]
    assert time.process_time() - started < 10
    assert metrics["pass@1[avg-of-10000]/accuracy"] == pytest.approx(33.34)


def test_where_all_failed_the_counts_stand_all_the_same():
    score = Aggregator(MetricsSpec()).summary(TaskCounts.of({0: 2}), failed=2)["intervals"]["accuracy"]
    assert score == {
        "expected": 2,
        "ok": 0,
        "failed": 2,
        "missing": 0,
        "mean": None,
        "mean_failures_as_0": 0,
        "ci95_low": None,
        "ci95_high": None,
        "ci95_method": "t_clustered_by_task",
    }


def test_no_answer_is_a_score_like_any_other():
    score = aggregate(SPEC, rows(VECTOR))["intervals"]["no_answer"]
    assert (round(score["mean"], 4), score["ok"]) == (16.6667, 12)


def test_single_binary_rollouts_have_wilsons_interval():
    score = aggregate(MetricsSpec(), rows([[("A", task < 8)] for task in range(10)]))["intervals"]["accuracy"]
    assert (round(score["ci95_low"], 2), round(score["ci95_high"], 2), score["ci95_method"]) == (49.02, 94.33, "wilson")


def test_repeats_are_clustered_by_task():
    tasks = [[("A", 1), ("A", 1)], [("A", 0), ("A", 1)], [("A", 0), ("A", 0)]]
    score = aggregate(MetricsSpec(), rows(tasks))["intervals"]["accuracy"]
    error = statistics.stdev([1, 0.5, 0]) / math.sqrt(3)
    assert score["ci95_method"] == "t_clustered_by_task"
    assert (score["ci95_low"], score["ci95_high"]) == (
        max(0, 100 * (0.5 - 4.3027 * error)),
        min(100, 100 * (0.5 + 4.3027 * error)),
    )


def test_rollouts_that_are_all_alike_are_not_certain():
    score = aggregate(MetricsSpec(), rows([[("A", 0), ("A", 0)]] * 5))["intervals"]["accuracy"]
    assert (score["ci95_low"], round(score["ci95_high"], 2)) == (0, 43.45)


def test_an_interval_holds_its_mean():
    """Rounding had put 100 % above the upper bound for 20,000 rollouts."""
    for count in [*range(1, 300), 20_000]:
        assert (wilson(0.0, count)[0], wilson(1.0, count)[1]) == (0, 1)


def test_usage_and_booleans_are_described():
    row = {
        "_ng_task_index": 0,
        "_ng_rollout_index": 0,
        "reward": 1.0,
        "right": True,
        "response": {"usage": {"output_tokens": 5}},
    }
    metrics = aggregate(MetricsSpec(), [row])["agent_metrics"]
    assert (metrics["mean/right"], metrics["mean/output_tokens"], metrics["std/reward"]) == (1, 5, 0)


def test_a_field_named_like_a_token_count_is_one_column():
    rows_ = [
        {"_ng_rollout_index": index, "reward": 1.0, "tokens": 7, "response": {"usage": {"tokens": index}}}
        for index in range(4)
    ]
    metrics = aggregate(MetricsSpec(), rows_)["agent_metrics"]
    assert (metrics["mean/tokens"], metrics["max/tokens"]) == (1.5, 3)


@pytest.mark.parametrize(
    "response", [None, "text", [1], {"usage": None}, {"usage": [1]}, {"usage": {"details": {"a": 1}}}], ids=str
)
def test_a_response_without_counts_has_none(response):
    metrics = aggregate(MetricsSpec(), [{"reward": 1.0, "response": response}])["agent_metrics"]
    assert {name for name in metrics if name.startswith("mean/")} == {"mean/reward"}


def test_a_column_may_begin_late():
    late = [
        {"_ng_task_index": 0, "_ng_rollout_index": index, "reward": 1.0, **({"extra": 3} if index else {})}
        for index in range(3)
    ]
    metrics = aggregate(MetricsSpec(), late)["agent_metrics"]
    assert (metrics["mean/extra"], metrics["mean/reward"]) == (3, 1)


def test_no_rows_have_no_metrics():
    assert aggregate(MetricsSpec(), [])["agent_metrics"] == {}
