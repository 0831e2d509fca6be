"""Scores of verified rollouts: means, pass@k, majority@k, with counts and intervals.

The names and formulas are NeMo Gym's (pass@k after Chen et al. 2021, "Evaluating Large Language Models Trained on
Code"); all scores are in percent. Rows are read one by one and kept as columns of numbers, not as rows: a million
rollouts of ten numbers take some hundred megabytes at most, whatever their replies were.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

Json = dict[str, Any]

TASK = "_ng_task_index"
ROLLOUT = "_ng_rollout_index"
NO_ANSWER = "no_answer"

_T_975 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}
_Z_975 = 1.959964


@dataclass(frozen=True, slots=True)
class MetricsSpec:
    """What an environment counts.

    ``scores``: score name -> row field (0 to 1, or a boolean). ``answer_key``: the field with the extracted answer, for
    majority@k and no_answer. ``key_metrics``: the headline names, ``{k}`` standing for the highest k there is.
    """

    scores: Mapping[str, str] = field(default_factory=lambda: {"accuracy": "reward"})
    answer_key: str | None = None
    key_metrics: tuple[str, ...] = ("mean/reward", "pass@1[avg-of-{k}]/accuracy")

    def to_json(self) -> Json:
        """As it goes over the wire."""
        return {"scores": dict(self.scores), "answer_key": self.answer_key, "key_metrics": list(self.key_metrics)}

    @classmethod
    def from_json(cls, payload: Json) -> MetricsSpec:
        """As it came over the wire."""
        return cls(dict(payload["scores"]), payload["answer_key"], tuple(payload["key_metrics"]))


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is kept of one row: its numbers, and its answer's number (-1: none)."""

    index: int
    values: Mapping[str, float]
    answer: int


def aggregate(spec: MetricsSpec, rows: Iterable[Json]) -> Json:
    """The metrics of rows that are all at hand, as /aggregate_metrics answers."""
    aggregator = Aggregator(spec)
    for row in rows:
        aggregator.add(row)
    return aggregator.result()


class Aggregator:
    """Takes rows one by one. Owns the columns."""

    def __init__(self, spec: MetricsSpec) -> None:
        self._spec = spec
        self._tasks = array("q")
        self._rollouts = array("q")
        self._answers = array("q")
        self._columns: dict[str, array[float]] = {}
        self._answer_ids: dict[str, int] = {}

    def add(self, row: Json) -> None:
        """Count one verified row; its order among the others does not matter."""
        count = len(self._tasks)
        for name, value in _numbers(row):
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = array("d")
            column.extend([math.nan] * (count - len(column)))
            column.append(value)
        self._tasks.append(row.get(TASK, 0))
        self._rollouts.append(row.get(ROLLOUT, 0))
        answer = row.get(self._spec.answer_key) if self._spec.answer_key else None
        self._answers.append(-1 if answer is None else self._answer_ids.setdefault(str(answer), len(self._answer_ids)))

    def result(self, expected: Mapping[int, int] | None = None, *, failed: int = 0) -> Json:
        """group_level_metrics, agent_metrics, key_metrics and intervals.

        ``expected``: rollouts wanted of each task; ``failed``: how many ended without a row.
        """
        groups = list(self._groups())
        if not groups and not expected:
            return {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}, "intervals": {}}
        every = [rollout.values for _, rollouts in groups for rollout in rollouts]
        scored = [[self._scores(rollout) for rollout in rollouts] for _, rollouts in groups]
        answers = [[rollout.answer for rollout in rollouts] for _, rollouts in groups]
        agent = _describe(every, self._columns) | _pass_majority(scored, answers, majority=bool(self._spec.answer_key))
        wanted = expected or {task: len(rollouts) for task, rollouts in groups}
        return {
            "group_level_metrics": [self._group(task, rollouts, wanted) for task, rollouts in groups],
            "agent_metrics": agent,
            "key_metrics": _key_metrics(self._spec, agent),
            "intervals": _intervals(scored, sum(wanted.values()), len(every), failed),
        }

    def _groups(self) -> Iterator[tuple[int, list[Rollout]]]:
        order = sorted(range(len(self._tasks)), key=lambda at: (self._tasks[at], self._rollouts[at]))
        for task, places in groupby(order, key=lambda at: self._tasks[at]):
            yield task, [self._rollout(at) for at in places]

    def _rollout(self, at: int) -> Rollout:
        values = {
            name: column[at]
            for name, column in self._columns.items()
            if at < len(column) and not math.isnan(column[at])
        }
        return Rollout(self._rollouts[at], values, self._answers[at])

    def _scores(self, rollout: Rollout) -> dict[str, float]:
        scores = {
            name: rollout.values[source] for name, source in self._spec.scores.items() if source in rollout.values
        }
        if self._spec.answer_key:
            scores[NO_ANSWER] = float(rollout.answer < 0)
        return scores

    def _group(self, task: int, rollouts: list[Rollout], expected: Mapping[int, int]) -> Json:
        wanted = expected.get(task, len(rollouts))
        return {
            TASK: task,
            **_describe([rollout.values for rollout in rollouts], self._columns),
            "num_rollouts": len(rollouts),
            "expected_num_rollouts": wanted,
            "missing_num_rollouts": max(0, wanted - len(rollouts)),
            "rollout_infos": [{ROLLOUT: rollout.index, **rollout.values} for rollout in rollouts],
        }


def _numbers(row: Json) -> Iterator[tuple[str, float]]:
    """The numeric and boolean fields of a row, and the token counts of its response."""
    for name, value in row.items():
        if isinstance(value, bool | int | float) and not name.startswith("_ng_"):
            yield name, float(value)
    usage = (row.get("response") or {}).get("usage") or {}
    for name, value in usage.items():
        if isinstance(value, int | float):
            yield name, float(value)


def _describe(rollouts: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    described: dict[str, float] = {}
    for name in names:
        values = [values[name] for values in rollouts if name in values]
        if values:
            described[f"mean/{name}"] = math.fsum(values) / len(values)
            described[f"max/{name}"] = max(values)
            described[f"min/{name}"] = min(values)
            described[f"median/{name}"] = statistics.median(values)
            described[f"std/{name}"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return described


Scored = list[list[dict[str, float]]]
"""For each task, for each of its rollouts in order, the named scores."""


def _pass_majority(scored: Scored, answers: list[list[int]], *, majority: bool) -> dict[str, float]:
    highest = max((len(task) for task in scored), default=0)
    names = sorted({name for task in scored for scores in task for name in scores})
    found: dict[str, float | None] = {}
    for k in range(1, highest + 1):
        for name in names:
            found[f"pass@{k}/{name}"] = _mean(_pass_at(k, name, task) for task in scored)
            found[f"pass@1[avg-of-{k}]/{name}"] = _mean(_average(k, name, task) for task in scored)
            if majority:
                voted = (_majority(k, name, task, given) for task, given in zip(scored, answers, strict=True))
                found[f"majority@{k}/{name}"] = _mean(voted)
    metrics = {name: 100 * value for name, value in found.items() if value is not None}
    return metrics | _spread(scored, names, highest)


def _pass_at(k: int, name: str, task: list[dict[str, float]]) -> float | None:
    values = [scores[name] for scores in task if name in scores]
    if len(values) < k:
        return None
    if any(value not in (0, 1) for value in values):
        return max(values[:k])
    wrong = values.count(0)
    return 1.0 if wrong < k else 1 - math.comb(wrong, k) / math.comb(len(values), k)


def _average(k: int, name: str, task: list[dict[str, float]]) -> float | None:
    return _mean(scores.get(name) for scores in task[:k])


def _majority(k: int, name: str, task: list[dict[str, float]], answers: list[int]) -> float:
    votes = Counter(
        (answer, scores[name])
        for scores, answer in zip(task[:k], answers[:k], strict=True)
        if answer >= 0 and name in scores
    )
    most = max(votes.values(), default=0)
    return _mean(score for (_, score), count in votes.items() if count == most) or 0.0


def _spread(scored: Scored, names: Sequence[str], highest: int) -> dict[str, float]:
    """How much the mean over all tasks differs from repeat to repeat."""
    spread: dict[str, float] = {}
    for name in names:
        runs = [_mean(task[run].get(name) for task in scored if run < len(task)) for run in range(highest)]
        means = [100 * mean for mean in runs if mean is not None]
        for k in range(2, highest + 1):
            if len(means[:k]) > 1:
                deviation = statistics.stdev(means[:k])
                spread[f"pass@1[avg-of-{k}]/{name}/std_dev_across_runs"] = deviation
                spread[f"pass@1[avg-of-{k}]/{name}/std_err_across_runs"] = deviation / math.sqrt(len(means[:k]))
    return spread


def _key_metrics(spec: MetricsSpec, metrics: Mapping[str, float]) -> dict[str, float]:
    highest = max(
        (int(name[5:].partition("/")[0]) for name in metrics if name.startswith("pass@") and "[" not in name), default=0
    )
    named = (name.replace("{k}", str(highest)) for name in spec.key_metrics)
    return {name: metrics[name] for name in named if name in metrics}


def _intervals(scored: Scored, expected: int, ok: int, failed: int) -> Json:
    """For each score: the counts, the mean over what was completed, over what was wanted, and a 95 % interval."""
    counts = {"expected": expected, "ok": ok, "failed": failed, "missing": max(0, expected - ok - failed)}
    names = sorted({name for task in scored for scores in task for name in scores} - {NO_ANSWER})
    return {name: counts | _interval([_values(name, task) for task in scored], expected) for name in names}


def _values(name: str, task: list[dict[str, float]]) -> list[float]:
    return [scores[name] for scores in task if name in scores]


def _interval(tasks: list[list[float]], expected: int) -> Json:
    tasks = [task for task in tasks if task]
    every = [value for task in tasks for value in task]
    mean = math.fsum(every) / len(every)
    binary_singles = all(len(task) == 1 and task[0] in (0, 1) for task in tasks)
    alike = set(every) <= {0} or set(every) <= {1}
    wilson = binary_singles or alike  # rollouts that are all alike have no spread to measure: count tasks
    low, high = _wilson(mean, len(tasks)) if wilson else _clustered(tasks, mean)
    if low is not None and high is not None and all(0 <= value <= 1 for value in every):
        low, high = max(0.0, low), min(1.0, high)
    return {
        "mean": 100 * mean,
        "mean_failures_as_0": 100 * math.fsum(every) / expected if expected else None,
        "ci95_low": None if low is None else 100 * low,
        "ci95_high": None if high is None else 100 * high,
        "ci95_method": "wilson" if wilson else "t_clustered_by_task",
    }


def _wilson(mean: float, count: int) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    z2 = _Z_975**2
    centre = (mean + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z_975 * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _clustered(tasks: list[list[float]], mean: float) -> tuple[float | None, float | None]:
    """The mean over all rollouts with the tasks as clusters; one task alone tells nothing of the others."""
    groups, count = len(tasks), sum(map(len, tasks))
    if groups < 2:
        return None, None
    squares = math.fsum((math.fsum(task) - len(task) * mean) ** 2 for task in tasks)
    half = _t_975(groups - 1) * math.sqrt(groups / (groups - 1) * squares) / count
    return mean - half, mean + half


def _t_975(degrees: int) -> float:
    """Student's t at 97.5 %; from 5 degrees on by Cornish and Fisher's expansion, right to 3 digits."""
    if degrees in _T_975:
        return _T_975[degrees]
    z, v = _Z_975, degrees
    first = (z**3 + z) / (4 * v)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return z + first + second + third


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
