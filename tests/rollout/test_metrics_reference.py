"""The formulas against numpy, scipy and direct computations, on random data."""

import math
import random

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gymlet.rollout.compact import KeySet, LineNumbers, TaskCounts
from gymlet.rollout.intervals import Clusters, t_975, wilson
from gymlet.rollout.metrics import Aggregator, MetricsSpec, aggregate
from gymlet.rollout.pass_majority import compute_pass_majority_metrics

REWARDS = st.lists(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=6), min_size=1, max_size=8
)
BINARY = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=8)


def rows(tasks):
    return [
        {"_ng_task_index": task, "_ng_rollout_index": index, "reward": float(reward)}
        for task, rollouts in enumerate(tasks)
        for index, reward in enumerate(rollouts)
    ]


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


@given(REWARDS)
def test_means_deviations_and_medians(tasks):
    result = aggregate(MetricsSpec(), rows(tasks))
    for metrics, values in (
        (result["agent_metrics"], [value for task in tasks for value in task]),
        *zip(result["group_level_metrics"], tasks, strict=True),
    ):
        scale = max(map(abs, values))
        assert metrics["mean/reward"] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9 * scale)
        assert metrics["median/reward"] == close(np.median(values))
        assert (metrics["max/reward"], metrics["min/reward"]) == (np.max(values), np.min(values))
        deviation = np.std(values, ddof=1) if len(values) > 1 else 0
        assert metrics["std/reward"] == pytest.approx(deviation, rel=1e-6, abs=1e-9 * scale)


@given(BINARY)
def test_pass_at_k(tasks):
    metrics = aggregate(MetricsSpec(), rows(tasks))["agent_metrics"]
    for k in range(1, max(map(len, tasks)) + 1):
        drawn = [task for task in tasks if len(task) >= k]
        chances = [
            1 - scipy.special.comb(task.count(0), k, exact=True) / scipy.special.comb(len(task), k, exact=True)
            for task in drawn
        ]
        assert metrics[f"pass@{k}/accuracy"] == close(100 * np.mean(chances))
        firsts = [np.mean(task[:k]) for task in tasks]
        assert metrics[f"pass@1[avg-of-{k}]/accuracy"] == close(100 * np.mean(firsts))


def test_pass_at_k_of_many_rollouts():
    rewards = [float(number % 7 == 0) for number in range(400)]
    metrics = aggregate(MetricsSpec(), rows([rewards]))["agent_metrics"]
    right = int(sum(rewards))
    for k in (1, 2, 50, 200, 340, 343, 344, 400):
        wrong = scipy.special.comb(400 - right, k, exact=True) / scipy.special.comb(400, k, exact=True)
        assert metrics[f"pass@{k}/accuracy"] == close(100 * (1 - wrong))


@given(BINARY)
def test_runs_spread(tasks):
    metrics = aggregate(MetricsSpec(), rows(tasks))["agent_metrics"]
    highest = max(map(len, tasks))
    runs = [100 * np.mean([task[run] for task in tasks if run < len(task)]) for run in range(highest)]
    for k in range(2, highest + 1):
        deviation = np.std(runs[:k], ddof=1)
        assert metrics[f"pass@1[avg-of-{k}]/accuracy/std_dev_across_runs"] == close(deviation)
        assert metrics[f"pass@1[avg-of-{k}]/accuracy/std_err_across_runs"] == close(deviation / math.sqrt(k))


ANSWERED = st.lists(
    st.lists(st.tuples(st.sampled_from(["A", "B", "C", None]), st.integers(0, 1)), min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


@given(ANSWERED)
def test_majority_at_k(tasks):
    spec = MetricsSpec(answer_key="answer")
    given_rows = [
        {"_ng_task_index": task, "_ng_rollout_index": index, "reward": float(reward), "answer": answer}
        for task, rollouts in enumerate(tasks)
        for index, (answer, reward) in enumerate(rollouts)
    ]
    metrics = aggregate(spec, given_rows)["agent_metrics"]
    for k in range(1, max(map(len, tasks)) + 1):
        # a tie is between (answer, score) pairs: the same score may be in it twice
        assert metrics[f"majority@{k}/accuracy"] == close(100 * np.mean([naive(task, k) for task in tasks]))
        assert metrics[f"majority@{k}/no_answer"] == 0
    grouped = [[row for row in given_rows if row["_ng_task_index"] == task] for task in range(len(tasks))]
    assert compute_pass_majority_metrics(grouped, answer_key="answer").items() <= metrics.items()


def naive(task, k):
    votes = [(answer, reward) for answer, reward in task[:k] if answer is not None]
    most = max((votes.count(vote) for vote in votes), default=0)
    tied = {vote for vote in votes if votes.count(vote) == most}
    return sum(reward for _, reward in tied) / len(tied) if tied else 0


@pytest.mark.parametrize("degrees", [*range(1, 40), 50, 75, 100, 200, 1000, 10_000, 10**6])
def test_students_t(degrees):
    assert t_975(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-7)


@given(st.integers(1, 3000), st.data())
def test_wilson(count, data):
    right = data.draw(st.integers(0, count))
    reference = scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson(right / count, count)
    assert (low, high) == (pytest.approx(reference.low, abs=1e-9), pytest.approx(reference.high, abs=1e-9))


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=2, max_size=12))
def test_the_clustered_interval(tasks):
    clusters = Clusters()
    for task in tasks:
        clusters.add(task)
    found = clusters.interval()
    if found.method == "wilson":
        return
    values = np.concatenate([np.array(task) for task in tasks])
    residuals = np.array([np.sum(np.array(task) - values.mean()) for task in tasks])
    variance = len(tasks) / (len(tasks) - 1) * np.sum(residuals**2) / len(values) ** 2
    half = scipy.stats.t.ppf(0.975, len(tasks) - 1) * np.sqrt(variance)
    assert found.mean == close(values.mean())
    assert found.low == pytest.approx(max(0, values.mean() - half), abs=1e-7)
    assert found.high == pytest.approx(min(1, values.mean() + half), abs=1e-7)


def test_without_clusters_the_interval_is_the_ordinary_one():
    values = [0.1, 0.4, 0.4, 0.8, 0.9]
    clusters = Clusters()
    for value in values:
        clusters.add([value])
    reference = scipy.stats.t.interval(0.95, 4, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert clusters.interval()[1:3] == pytest.approx(reference)


def test_the_interval_covers_what_it_says():
    """Two hundred runs of known chance: about 95 in 100 intervals hold it."""
    chance = random.Random(5)
    held = 0
    for _ in range(200):
        clusters = Clusters()
        for _ in range(60):
            of_task = chance.betavariate(2, 2)
            clusters.add([float(chance.random() < of_task) for _ in range(4)])
        _, low, high, _ = clusters.interval()
        held += low <= 0.5 <= high
    assert 180 <= held <= 199


@given(
    st.lists(st.tuples(st.integers(-3, 40), st.integers(0, 3), st.floats(0, 1)), unique_by=lambda key: key[:2]),
    st.randoms(),
)
def test_the_order_of_rows_does_not_matter(keys, chance):
    given_rows = [
        {"_ng_task_index": task, "_ng_rollout_index": rollout, "reward": value, **({"late": value} if rollout else {})}
        for task, rollout, value in keys
    ]
    shuffled = chance.sample(given_rows, len(given_rows))
    assert aggregate(MetricsSpec(), shuffled) == aggregate(MetricsSpec(), given_rows)


def test_rows_of_more_than_one_bucket_are_in_order(monkeypatch):
    monkeypatch.setattr("gymlet.rollout.metrics.BUCKET_ROWS", 7)
    keys = [(task, rollout) for task in (-5, 0, 1, 2, 3, 90, 10**12) for rollout in range(5)]
    aggregator = Aggregator(MetricsSpec())
    for task, rollout in random.Random(1).sample(keys, len(keys)):
        aggregator.add({"_ng_task_index": task, "_ng_rollout_index": rollout, "reward": 1.0})
    found = [
        (group["_ng_task_index"], info["_ng_rollout_index"])
        for group in aggregator.groups()
        for info in group["rollout_infos"]
    ]
    assert found == keys


INDICES = st.one_of(st.integers(0, 200), st.integers(-(2**62), 2**62))


@given(st.lists(st.tuples(INDICES, INDICES)), st.lists(st.tuples(INDICES, INDICES)))
def test_a_key_set_is_a_set(added, taken):
    kept, reference = KeySet(), set()
    for key in added:
        assert kept.add(*key) == (key not in reference)
        reference.add(key)
    for key in taken + added[::2]:
        assert kept.discard(*key) == (key in reference)
        reference.discard(key)
    assert len(kept) == len(reference)
    assert all((key in kept) == (key in reference) for key in added + taken)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 50), st.integers(-(10**12), 10**12), st.integers(0, 100_000)), st.integers(1, 3)
        )
    )
)
def test_task_counts_are_a_counter(added):
    kept, reference = TaskCounts(), {}
    for task, count in added:
        assert kept.add(task, count) == reference.get(task, 0)
        reference[task] = reference.get(task, 0) + count
    assert list(kept.tasks()) == sorted(reference)
    assert {task: kept.get(task) for task in reference} == reference
    assert (kept.total, kept.get(10**15)) == (sum(reference.values()), 0)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=3), max_size=300))
def test_lines_are_numbered_as_they_come(lines):
    kept, reference = LineNumbers(), {}
    for line in lines:
        assert kept.number(line) == reference.setdefault(line, len(reference))


def test_lines_of_one_part_are_told_apart():
    """Two hundred thousand lines fill each part with some records: no tag is found across two of them."""
    kept = LineNumbers()
    for expected in range(200_000):
        assert kept.number(b"%d" % expected) == expected
    assert [kept.number(b"%d" % line) for line in range(0, 200_000, 997)] == list(range(0, 200_000, 997))
