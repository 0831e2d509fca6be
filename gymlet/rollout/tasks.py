"""Rows of a data set to tasks: agent, overrides, repeats, indices. Pure; streams.

    read (limit first) -> prompt template -> per row: agent, overrides, task index, repeats   (abc -> aabbcc)

The task index is the running number of the distinct raw line, or what a slicer stamped; a task that comes again goes on
counting its rollouts.
Mistakes in rows are gathered over the whole data set and told once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson

from gymlet.rollout.compact import LineNumbers, TaskCounts
from gymlet.rollout.metrics import ROLLOUT, TASK
from gymlet.rollout.places import Places, RowError, Unit, parse_row
from gymlet.rollout.prompt import fill_prompt, has_input

Json = dict[str, Any]
MAX_INDEX = 1 << 63

OUTCOME = ("_ng_failure_class", "_ng_failure_terminal", "_ng_no_persist", "_ng_attempt_index")
"""How a rollout ended that is a row's source: a failures file may be the input of another run."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """How rows become tasks; the keys of ng_collect_rollouts.

    ``prompt`` is the parsed prompt_config: ``user`` and, optionally, ``system`` templates. Of ``num_shards`` machines
    that expand the same rows, each gets the tasks whose index leaves ``shard_index``, with all their rollouts: indices
    are the same as without shards.
    """

    agent_name: str | None = None
    limit: int | None = None
    num_repeats: int | Mapping[str, int] | None = None
    add_seed: bool = False
    overrides: Json = field(default_factory=dict)
    prompt: Mapping[str, str] | None = None
    shard_index: int = 0
    num_shards: int = 1


class Expander:
    """Expands the lines of one data set. Owns what was seen of them; ``finish`` tells the mistakes."""

    def __init__(self, options: Expansion, source: str, *, unit: Unit = "line") -> None:
        """``source`` and ``unit`` say in errors where a row stands: "data.jsonl at line 3"."""
        self._options = options
        self._source = source
        self._unit = unit
        self._lines = LineNumbers()
        self._rollouts = TaskCounts()
        self._without_agent = Places(unit)
        self._unlisted: dict[str, None] = {}
        self._with_input = Places(unit)
        self._used: set[str] = set()
        self.rows = 0

    def expand(self, lines: Iterable[bytes]) -> Iterator[Json]:
        """All tasks, in order. Raises RowError for a line that is no row."""
        for number, line in enumerate(lines, start=1):
            if self._options.limit is not None and self.rows >= self._options.limit:
                return
            if line.strip():
                self.rows += 1
                yield from self._expand_row(self._parse(line, number), line.strip(), number)

    def finish(self) -> list[str]:
        """Warnings. Raises RowError with every mistake of the rows."""
        wrong = list(self._mistakes())
        if wrong:
            raise RowError("\n".join(wrong))
        repeats = self._options.num_repeats
        listed = repeats.keys() - {"_default"} if isinstance(repeats, Mapping) else set()
        return [f"num_repeats names '{name}', and no row uses that agent" for name in sorted(listed - self._used)]

    def _mistakes(self) -> Iterator[str]:
        if self.rows == 0:
            yield f"{self._source} has no rows"
        if self._without_agent:
            yield (
                f"{self._source}: {self._without_agent} name no agent; "
                "give one with +agent_name=<name>, or an agent_ref in the row"
            )
        if self._unlisted:
            names = ", ".join(f"'{name}'" for name in self._unlisted)
            yield f"num_repeats has no entry for {names}; add them, or a '_default'"
        if self._with_input:
            yield f"{self._source}: {self._with_input} have an input already; prompt_config would overwrite it"

    def _parse(self, line: bytes, number: int) -> Json:
        row = parse_row(line, self._at(number))
        for name in OUTCOME:
            row.pop(name, None)
        params = row.get("responses_create_params", {} if self._options.prompt else None)
        if not isinstance(params, dict):
            raise RowError(f"{self._at(number)}: 'responses_create_params' must be an object")
        stamp = row.get(TASK, 0)
        if not isinstance(stamp, int) or isinstance(stamp, bool) or not 0 <= stamp < MAX_INDEX:
            raise RowError(f"{self._at(number)}: '{TASK}' must be a whole number from 0 on, not {stamp!r}")
        ref = row.get("agent_ref") or {}
        if not isinstance(ref, dict) or not isinstance(ref.get("name", ""), str | None):
            raise RowError(f"{self._at(number)}: 'agent_ref' must be an object with the agent's name: {{\"name\": …}}")
        return row

    def _at(self, number: int) -> str:
        return f"{self._source} at {self._unit} {number}"

    def _expand_row(self, row: Json, line: bytes, number: int) -> Iterator[Json]:
        self._place_prompt(row, number)
        agent = self._agent(row, number)
        repeats = self._repeats(agent)
        params = (row.get("responses_create_params") or {}) | self._options.overrides
        task = row[TASK] if TASK in row else self._lines.number(line)
        first = self._rollouts.add(task, repeats)
        if task % self._options.num_shards != self._options.shard_index:
            return
        extra = _extra_body(params, self._at(number)) if self._options.add_seed else {}
        for rollout in range(first, first + repeats):
            shown = _with_seed(params, extra, rollout) if self._options.add_seed else params
            yield {**row, "responses_create_params": shown, "agent_ref": agent, TASK: task, ROLLOUT: rollout}

    def _agent(self, row: Json, number: int) -> Json:
        ref = row.get("agent_ref")
        if ref and ref.get("name"):
            agent: Json = ref
        elif self._options.agent_name:
            agent = {"name": self._options.agent_name}
        else:
            self._without_agent.append(number)
            agent = {"name": ""}
        self._used.add(agent["name"])
        return agent

    def _repeats(self, agent: Json) -> int:
        repeats = self._options.num_repeats
        if repeats is None or isinstance(repeats, int):
            return repeats or 1
        listed = repeats.get(agent["name"], repeats.get("_default"))
        if listed is None and agent["name"]:
            self._unlisted[agent["name"]] = None
        return listed or 1

    def _place_prompt(self, row: Json, number: int) -> None:
        prompt = self._options.prompt
        if prompt is None:
            return
        if has_input(row):
            self._with_input.append(number)
        else:
            fill_prompt(prompt, row, self._at(number))


def _extra_body(params: Json, place: str) -> Json:
    """What only the provider reads, so far. Raises RowError where a seed cannot be put there."""
    metadata = params.get("metadata") or {}
    extra = (metadata.get("extra_body") or {}) if isinstance(metadata, dict) else None
    if isinstance(extra, str):
        with suppress(orjson.JSONDecodeError):
            extra = orjson.loads(extra)
    if not isinstance(extra, dict):
        raise RowError(
            f"{place}: 'metadata.extra_body' must hold a JSON object; num_repeats_add_seed puts a seed there"
        )
    return extra


def _with_seed(params: Json, extra: Json, seed: int) -> Json:
    """The rollout's number as seed, where only the provider reads it."""
    entries = ({**extra, "seed": seed}).items()
    text = ", ".join(f"{orjson.dumps(key).decode()}: {orjson.dumps(value).decode()}" for key, value in entries)
    return {**params, "metadata": {**(params.get("metadata") or {}), "extra_body": f"{{{text}}}"}}
