"""How hard each task was for a model: a row per task, with its rewards in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.compact import TaskCounts
from gymlet.rollout.files import read_rows, scan
from gymlet.rollout.metrics import ROLLOUT, TASK, Aggregator, MetricsSpec
from gymlet.rollout.row_index import RowIndex
from gymlet.rollout.whole_file import whole_file

Json = dict[str, Any]


@dataclass(slots=True)
class Profile:
    """What was found: tasks by how many of their rollouts passed."""

    tasks: int = 0
    always: int = 0
    sometimes: int = 0
    never: int = 0
    without_rollouts: int = 0


def profile_rewards(inputs: Path, rollouts: Path, target: Path, *, pass_threshold: float) -> Profile:
    """Write a row per task: its input, its rewards' average, deviation and extremes, and how many passed.

    A rollout passes with a reward of ``pass_threshold`` or more. Raises RequestError for rows that are none.
    """
    aggregator = Aggregator(MetricsSpec())
    for row in read_rows(rollouts):
        aggregator.add(row)
    expected = TaskCounts()
    for line in scan(inputs):
        expected.add(line.key[0])
    profile = Profile()
    with whole_file(target) as file, RowIndex(inputs) as index:
        for group in aggregator.groups(expected):
            told = _rewards(group, pass_threshold)
            _count(profile, told)
            file.write(orjson.dumps({**_input(index.get(group[TASK])), TASK: group[TASK], **told}) + b"\n")
    return profile


def _input(row: Json | None) -> Json:
    return {name: value for name, value in (row or {}).items() if name not in (TASK, ROLLOUT)}


def _rewards(group: Json, pass_threshold: float) -> Json:
    rewards = [info["reward"] for info in group["rollout_infos"] if "reward" in info]
    passed = sum(reward >= pass_threshold for reward in rewards)
    return {
        "avg_reward": group.get("mean/reward"),
        "std_reward": group.get("std/reward"),
        "min_reward": group.get("min/reward"),
        "max_reward": group.get("max/reward"),
        "total_samples": len(rewards),
        "expected_samples": group["expected_num_rollouts"],
        "pass_rate": passed / len(rewards) if rewards else None,
        "pass_rate_total": len(rewards),
        "pass_rate_passed": passed,
        "pass_threshold": pass_threshold,
        **dict(_others(group)),
    }


def _others(group: Json) -> Iterator[tuple[str, Any]]:
    """The numbers of the other fields, under the names of the metrics file."""
    return ((name, value) for name, value in group.items() if "/" in name)


def _count(profile: Profile, told: Json) -> None:
    profile.tasks += 1
    if not told["total_samples"]:
        profile.without_rollouts += 1
    elif told["pass_rate"] == 1:
        profile.always += 1
    elif told["pass_rate"] == 0:
        profile.never += 1
    else:
        profile.sometimes += 1
