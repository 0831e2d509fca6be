"""The scores of a run, from its files: agent by agent, in bounded memory, with what failed and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.compact import KeySet, TaskCounts
from gymlet.rollout.keys import key_of
from gymlet.rollout.metrics import ROLLOUT, TASK, Aggregator, MetricsSpec
from gymlet.rollout.whole_file import whole_file
from gymlet.wire.errors import RequestError

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AgentScores:
    """What one agent scored. ``expected`` is None where nobody knows what was wanted."""

    agent: str
    aggregator: Aggregator
    expected: TaskCounts | None
    failures: KeySet = field(default_factory=KeySet)

    def summary(self) -> Json:
        """agent_ref, agent_metrics, key_metrics and intervals: an entry of the metrics file but for its tasks."""
        summary = self.aggregator.summary(self.expected, failed=len(self.failures))
        return {"agent_ref": {"name": self.agent}, **summary}

    def groups(self) -> Iterator[Json]:
        """group_level_metrics, task by task."""
        return self.aggregator.groups(self.expected)


def score_run(
    specs: Mapping[str, MetricsSpec], *, inputs: Iterable[Json] | None, rows: Iterable[Json], failures: Iterable[Json]
) -> list[AgentScores]:
    """Each agent's scores, from the rows of a run's files; each is read once, in this order.

    ``inputs``: all tasks, None where they are not known; rows and failures that are of none of them, such as those of a
    run that was made smaller, do not count. A failed attempt counts unless a row of the same key is there.
    """
    scores = {
        name: AgentScores(name, Aggregator(spec), TaskCounts() if inputs is not None else None)
        for name, spec in specs.items()
    }
    wanted = None if inputs is None else KeySet()
    for task in inputs or ():
        expected = _of(scores, task).expected
        if expected is not None and wanted is not None:
            expected.add(task[TASK])
            wanted.add(*key_of(task))
    for failure in _wanted(failures, wanted):
        _of(scores, failure).failures.add(failure[TASK], failure[ROLLOUT])
    for row in _wanted(rows, wanted):
        agent = _of(scores, row)
        agent.aggregator.add(row)
        agent.failures.discard(row[TASK], row[ROLLOUT])
    return list(scores.values())


def _wanted(rows: Iterable[Json], wanted: KeySet | None) -> Iterator[Json]:
    return (row for row in rows if wanted is None or key_of(row) in wanted)


def write_scores(path: Path, scores: Iterable[AgentScores]) -> list[Json]:
    """Write the metrics file, an array of one object per agent, task by task; returns the entries without the tasks."""
    summaries: list[Json] = []
    with whole_file(path) as file:
        for each in scores:
            summary = each.summary()
            file.write(b",\n" if summaries else b"[\n")
            file.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2)[:-2] + b',\n  "group_level_metrics": [')
            for number, group in enumerate(each.groups()):
                file.write((b",\n    " if number else b"\n    ") + orjson.dumps(group))
            file.write(b"\n  ]\n}")
            summaries.append(summary)
        file.write(b"\n]\n" if summaries else b"[]\n")
    return summaries


def _of(scores: Mapping[str, AgentScores], row: Json) -> AgentScores:
    name = agent_of(row)
    if name not in scores:
        raise RequestError(f"no agent '{name}' is known here; there are: {', '.join(sorted(scores)) or 'none'}")
    return scores[name]


def agent_of(row: Json) -> str:
    """The agent that a row names; empty where it names none."""
    ref = row.get("agent_ref")
    return str(ref.get("name", "")) if isinstance(ref, dict) else ""
