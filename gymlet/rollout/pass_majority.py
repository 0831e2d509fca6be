"""pass@k, pass@1[avg-of-k] and majority@k, with NeMo Gym's names and formulas, one task at a time.

pass@k is the unbiased estimate of Chen et al. 2021, "Evaluating Large Language Models Trained on Code". What is kept
are sums for each k: nothing grows with the number of tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, zip_longest
from typing import Any

NO_ANSWER = "no_answer"

Scores = Mapping[str, float]
"""One rollout's scores by name."""

ScoreFn = Callable[[dict[str, Any]], Mapping[str, float]]


def compute_pass_majority_metrics(
    tasks: Iterable[Sequence[dict[str, Any]]], score_fn: ScoreFn | None = None, answer_key: str | None = None
) -> dict[str, float]:
    """The metrics of tasks, each a list of verified rows in the order of their rollouts; scores in percent.

    ``score_fn`` gives a row's scores by name (without: the reward as ``accuracy``); ``answer_key`` names the field with
    the extracted answer, and asks for majority@k and the score ``no_answer``.
    """
    metrics = PassMajority(majority=answer_key is not None)
    for rows in tasks:
        scores = [dict((score_fn or _accuracy)(row)) for row in rows]
        answers = [_hashable(row.get(answer_key)) if answer_key is not None else None for row in rows]
        if answer_key is not None:
            for each, answer in zip(scores, answers, strict=True):
                each[NO_ANSWER] = float(answer is None)
        metrics.add(scores, answers)
    return metrics.metrics()


class PassMajority:
    """Takes tasks one by one. Owns the sums."""

    def __init__(self, *, majority: bool) -> None:
        self._majority = majority
        self._tasks = 0
        self._names: dict[str, _Sums] = {}

    def add(self, scores: Sequence[Scores], answers: Sequence[Hashable | None]) -> None:
        """Count one task: the scores and the answers (None: none) of its rollouts, in their order."""
        self._tasks += 1
        for name in {name: None for each in scores for name in each}:
            values = [each.get(name) for each in scores]
            sums = self._names.setdefault(name, _Sums())
            sums.add(values, list(_majorities(values, answers)) if self._majority else None)

    def metrics(self) -> dict[str, float]:
        """All metrics in percent; k goes from 1 to the most rollouts of any task."""
        names = sorted(self._names)
        highest = max((sums.highest for sums in self._names.values()), default=0)
        found: dict[str, float | None] = {}
        sums = [zip(*(means.up_to(highest) for means in self._names[name].of_tasks()), strict=True) for name in names]
        for k, parts in enumerate(zip(*sums, strict=True), start=1):
            for name, (passed, average, majority) in zip(names, parts, strict=True):
                found[f"pass@{k}/{name}"] = passed.value
                found[f"pass@1[avg-of-{k}]/{name}"] = average.value
                if self._majority:
                    found[f"majority@{k}/{name}"] = majority.total / self._tasks
        metrics = {name: 100 * value for name, value in found.items() if value is not None}
        for name in names:
            metrics |= _spread(name, self._names[name].runs, highest)
        return metrics


class _Mean:
    """A sum, and of how many."""

    __slots__ = ("count", "total")

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total = total
        self.count = count

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class _Means:
    """A mean for each k. A task that ends at n rollouts may go on counting, as it was at n, for all k beyond."""

    def __init__(self) -> None:
        self._at: list[_Mean] = []
        self._after: list[_Mean] = []

    def add(self, values: Sequence[float | None], *, goes_on: bool = False) -> None:
        """One task's values for k = 1, 2, …; None does not count."""
        while len(self._at) < len(values):
            self._at.append(_Mean())
            self._after.append(_Mean())
        for mean, value in zip(self._at, values, strict=False):
            if value is not None:
                mean.add(value)
        if goes_on and values and values[-1] is not None:
            self._after[len(values) - 1].add(values[-1])

    def up_to(self, highest: int) -> Iterator[_Mean]:
        """The mean at each k from 1 to ``highest``."""
        ended = _Mean()
        for at, after, _ in zip_longest(self._at, self._after, range(highest), fillvalue=_Mean()):
            yield _Mean(at.total + ended.total, at.count + ended.count)
            ended = _Mean(ended.total + after.total, ended.count + after.count)


class _Sums:
    """What is kept of one score."""

    def __init__(self) -> None:
        self.highest = 0
        self.passed = _Means()
        self.average = _Means()
        self.majority = _Means()
        self.runs = _Means()

    def of_tasks(self) -> tuple[_Means, _Means, _Means]:
        """What is known for each k: pass, average and majority."""
        return self.passed, self.average, self.majority

    def add(self, values: Sequence[float | None], majorities: list[float] | None) -> None:
        """One task's values, rollout by rollout, and its majority's score for each k."""
        self.highest = max(self.highest, len(values))
        known = [value for value in values if value is not None]
        self.passed.add(list(_passes(known)))
        self.average.add(list(_averages(values)), goes_on=True)
        self.runs.add(values)
        if majorities is not None:
            self.majority.add(majorities, goes_on=True)


def _passes(values: Sequence[float]) -> Iterator[float]:
    """pass@k of one task for each k that it has scores for."""
    wrong = values.count(0)
    if wrong + values.count(1) < len(values):
        yield from accumulate(values, max)
        return
    all_wrong = 1.0
    for drawn in range(len(values)):
        all_wrong *= max(0, wrong - drawn) / (len(values) - drawn)
        yield 1 - all_wrong


def _averages(values: Sequence[float | None]) -> Iterator[float | None]:
    """The mean of the first k, for each k."""
    so_far = _Mean()
    for value in values:
        if value is not None:
            so_far.add(value)
        yield so_far.value


def _majorities(values: Sequence[float | None], answers: Sequence[Hashable | None]) -> Iterator[float]:
    """For each k, the score of the most common (answer, score) among the first k; a tie averages the tied."""
    votes: Counter[tuple[Hashable, float]] = Counter()
    with_votes: dict[int, _Mean] = {}
    most = 0
    for value, answer in zip(values, answers, strict=True):
        if value is not None and answer is not None:
            votes[answer, value] += 1
            count = votes[answer, value]
            with_votes.setdefault(count, _Mean()).add(value)  # a pair stays among those with fewer votes, too
            most = max(most, count)
        yield with_votes[most].total / with_votes[most].count if most else 0.0


def _spread(name: str, runs: _Means, highest: int) -> dict[str, float]:
    """How much the mean over all tasks differs from repeat to repeat."""
    means = [100 * run.value for run in runs.up_to(highest) if run.value is not None]
    deviations = list(_deviations(means))
    spread: dict[str, float] = {}
    for k in range(2, highest + 1):
        count = min(k, len(means))
        if count > 1:
            spread[f"pass@1[avg-of-{k}]/{name}/std_dev_across_runs"] = deviations[count - 1]
            spread[f"pass@1[avg-of-{k}]/{name}/std_err_across_runs"] = deviations[count - 1] / math.sqrt(count)
    return spread


def _deviations(values: Sequence[float]) -> Iterator[float]:
    """The sample's standard deviation of the first k, for each k (Welford 1962)."""
    mean = squares = 0.0
    for k, value in enumerate(values, start=1):
        away = value - mean
        mean += away / k
        squares += away * (value - mean)
        yield math.sqrt(squares / (k - 1)) if k > 1 else 0.0


def _accuracy(row: dict[str, Any]) -> Scores:
    return {"accuracy": float(row["reward"])}


def _hashable(answer: Any) -> Hashable | None:
    return answer if isinstance(answer, Hashable) else str(answer)
