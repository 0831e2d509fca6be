"""Scores of verified rollouts: means, pass@k, majority@k, with counts and intervals.

The names are NeMo Gym's; all scores are in percent. Rows are read one by one, in any order, and kept as columns of
numbers: 8 bytes a number, 32 a row, whatever the replies were. Results are made one task at a time.
"""

from __future__ import annotations

import heapq
import math
import statistics
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from gymlet.rollout.compact import TaskCounts
from gymlet.rollout.intervals import Clusters
from gymlet.rollout.pass_majority import NO_ANSWER, PassMajority
from gymlet.wire.errors import RequestError

Json = dict[str, Any]

TASK = "_ng_task_index"
ROLLOUT = "_ng_rollout_index"

BUCKET_ROWS = 1 << 14
"""How many rows are put in order at once."""


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


def aggregate(spec: MetricsSpec, rows: Iterable[Json]) -> Json:
    """The metrics of rows that are all at hand, as /aggregate_metrics answers."""
    aggregator = Aggregator(spec)
    for row in rows:
        aggregator.add(row)
    return aggregator.result()


_Group = tuple[int, list[int]]
"""A task, and the places of its rows."""


class Aggregator:
    """Takes rows one by one. Owns the columns."""

    def __init__(self, spec: MetricsSpec) -> None:
        self._spec = spec
        self._tasks = array("q")
        self._rollouts = array("q")
        self._answers = array("q")
        self._columns: dict[str, array[float]] = {}

    @property
    def rows(self) -> int:
        """How many were added."""
        return len(self._tasks)

    def add(self, row: Json) -> None:
        """Count one verified row; its order among the others does not matter. Raises RequestError for a wrong index."""
        task, rollout = index_of(row, TASK), index_of(row, ROLLOUT)
        count = len(self._tasks)
        for name, value in numbers(row).items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = array("d")
            column.extend([math.nan] * (count - len(column)))
            column.append(value)
        self._tasks.append(task)
        self._rollouts.append(rollout)
        answer = row.get(self._spec.answer_key) if self._spec.answer_key else None
        self._answers.append(-1 if answer is None else hash(str(answer)))  # hash() never gives -1

    def result(self, expected: Mapping[int, int] | None = None, *, failed: int = 0) -> Json:
        """Groups and summary as one value, for as many tasks as one likes to hold; ``expected`` is by task."""
        counts = None if expected is None else TaskCounts.of(expected)
        return {"group_level_metrics": list(self.groups(counts)), **self.summary(counts, failed=failed)}

    def summary(self, expected: TaskCounts | None = None, *, failed: int = 0) -> Json:
        """agent_metrics, key_metrics and intervals.

        ``expected``: rollouts wanted of each task, None where nobody knows; ``failed``: how many ended without a row.
        """
        passes = PassMajority(majority=self._spec.answer_key is not None)
        clusters = {name: Clusters() for name in self._score_names()}
        for places in self._by_task():
            scores = [self._scores(at) for at in places]
            passes.add(scores, [None if self._answers[at] == -1 else self._answers[at] for at in places])
            for name, cluster in clusters.items():
                cluster.add([each[name] for each in scores if name in each])
        metrics = self._describe_all() | passes.metrics()
        counts = self._counts(expected, failed)
        wanted = counts["expected"] if expected is not None else self.rows + failed
        return {
            "agent_metrics": metrics,
            "key_metrics": _key_metrics(self._spec, metrics),
            "intervals": {name: counts | _interval(clusters[name], wanted) for name in sorted(clusters)},
        }

    def groups(self, expected: TaskCounts | None = None) -> Iterator[Json]:
        """group_level_metrics: the same numbers for each task, by its index, one at a time."""
        wanted: Iterable[_Group] = ((task, []) for task in expected.tasks()) if expected is not None else ()
        found: Iterable[_Group] = ((self._tasks[places[0]], places) for places in self._by_task())
        for task, entries in groupby(heapq.merge(wanted, found, key=itemgetter(0)), key=itemgetter(0)):
            places = [at for _, each in entries for at in each]
            yield self._group(task, places, expected.get(task) if expected is not None else len(places))

    def _counts(self, expected: TaskCounts | None, failed: int) -> Json:
        wanted = expected.total if expected is not None else None
        missing = max(0, wanted - self.rows - failed) if wanted is not None else None
        return {"expected": wanted, "ok": self.rows, "failed": failed, "missing": missing}

    def _group(self, task: int, places: list[int], wanted: int) -> Json:
        described: dict[str, float] = {}
        for name, column in self._columns.items():
            described |= describe(name, [column[at] for at in places if _is_there(column, at)])
        return {
            TASK: task,
            **described,
            "num_rollouts": len(places),
            "expected_num_rollouts": wanted,
            "missing_num_rollouts": max(0, wanted - len(places)),
            "rollout_infos": [{ROLLOUT: self._rollouts[at], **self._values(at)} for at in places],
        }

    def _by_task(self) -> Iterator[list[int]]:
        """The places of each task's rows, by task and rollout. Sorts a bucket at a time, which takes 8 bytes a row."""
        tasks, rollouts = self._tasks, self._rollouts
        if not tasks:
            return
        lowest, span, count = min(tasks), max(tasks) - min(tasks) + 1, len(tasks) // BUCKET_ROWS + 1
        buckets = [array("Q") for _ in range(count)]
        for at, task in enumerate(tasks):
            buckets[(task - lowest) * count // span].append(at)
        for bucket in buckets:
            order = sorted(bucket, key=lambda at: (tasks[at], rollouts[at]))
            for _, places in groupby(order, key=tasks.__getitem__):
                yield list(places)

    def _values(self, at: int) -> dict[str, float]:
        return {name: column[at] for name, column in self._columns.items() if _is_there(column, at)}

    def _scores(self, at: int) -> dict[str, float]:
        columns = ((name, self._columns.get(source)) for name, source in self._spec.scores.items())
        scores = {name: column[at] for name, column in columns if column is not None and _is_there(column, at)}
        if self._spec.answer_key:
            scores[NO_ANSWER] = float(self._answers[at] == -1)
        return scores

    def _score_names(self) -> list[str]:
        return [*self._spec.scores, *([NO_ANSWER] if self._spec.answer_key else [])]

    def _describe_all(self) -> dict[str, float]:
        described: dict[str, float] = {}
        for name, column in self._columns.items():
            described |= describe(name, [value for value in column if not math.isnan(value)])
        return described


def index_of(row: Json, name: str) -> int:
    """A row's index of its task or rollout, 0 where it has none. Raises RequestError where it is no whole number."""
    value = row.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >> 63:
        raise RequestError(f"'{name}' must be a whole number, not {value!r}", param=name)
    return value


def numbers(row: Json) -> dict[str, float]:
    """The numeric and boolean fields of a row, and the token counts of its response, which come before fields."""
    response = row.get("response")
    usage = response.get("usage") if isinstance(response, dict) else None
    fields = {name: value for name, value in row.items() if not name.startswith("_ng_")}
    known = fields | usage if isinstance(usage, dict) else fields
    return {name: float(value) for name, value in known.items() if isinstance(value, bool | int | float)}


def _deviation(values: Sequence[float]) -> float:
    """The sample's standard deviation (ddof 1); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


STATISTICS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: math.fsum(values) / len(values),
    "max": max,
    "min": min,
    "median": statistics.median,
    "std": _deviation,
}


def describe(name: str, values: Sequence[float]) -> dict[str, float]:
    """mean/ max/ min/ median/ std/<name>; nothing for no values."""
    return {f"{statistic}/{name}": compute(values) for statistic, compute in STATISTICS.items()} if values else {}


def _is_there(column: array[float], at: int) -> bool:
    return at < len(column) and not math.isnan(column[at])


def _key_metrics(spec: MetricsSpec, metrics: Mapping[str, float]) -> dict[str, float]:
    highest = max(
        (int(name[5:].partition("/")[0]) for name in metrics if name.startswith("pass@") and "[" not in name), default=0
    )
    named = (name.replace("{k}", str(highest)) for name in spec.key_metrics)
    return {name: metrics[name] for name in named if name in metrics}


def _interval(clusters: Clusters, expected: int) -> Json:
    """The mean over what was completed, over what was wanted, and a 95 % interval, in percent."""
    found = clusters.interval()
    return {
        "mean": _percent(found.mean),
        "mean_failures_as_0": _percent(clusters.total / expected if expected else None),
        "ci95_low": _percent(found.low),
        "ci95_high": _percent(found.high),
        "ci95_method": found.method,
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
