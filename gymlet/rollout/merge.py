"""Shards of one run, read as the run that they are: rows once each, failures, inputs, manifests, scores over all.

A shard is what one command wrote: ``<stem>.jsonl`` and its siblings. Rows know their task and rollout by indices that
are the same in every shard, so that putting shards together is a matter of dropping what is there twice.
"""

from __future__ import annotations

import glob
import heapq
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.compact import KeySet
from gymlet.rollout.files import Line, RunFiles, scan, write_json
from gymlet.rollout.manifest import differences
from gymlet.rollout.metrics import MetricsSpec
from gymlet.rollout.report import write_report
from gymlet.rollout.scores import AgentScores, agent_of, score_run, write_scores
from gymlet.rollout.whole_file import whole_file
from gymlet.wire.errors import RequestError

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Merged:
    """What the shards hold together. ``summaries``: each agent's scores; ``notes`` are for the user."""

    summaries: list[Json]
    expected: int | None
    ok: int
    notes: tuple[str, ...]
    missing: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether every shard is there, and every rollout that was wanted."""
        return not self.missing and (self.expected is None or self.ok >= self.expected)


def find_shards(patterns: str, output: RunFiles) -> list[RunFiles]:
    """The shards that patterns, separated by commas, match; neither siblings of one nor ``output`` itself.

    Raises RequestError where nothing matches.
    """
    given = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    paths = dict.fromkeys(Path(path) for pattern in given for path in sorted(glob.glob(pattern)))  # noqa: PTH207  patterns may be absolute
    siblings = {sibling.resolve() for path in paths for sibling in RunFiles(path).all() if sibling != path}
    siblings.update(path.resolve() for path in output.all())
    shards = [RunFiles(path) for path in paths if path.resolve() not in siblings and path.is_file()]
    if not shards:
        raise RequestError(f"no file matches input_glob={patterns}")
    return shards


def agents_in(shards: Iterable[RunFiles]) -> list[str]:
    """The agents that the shards' tasks, or where those are not kept their rows, name."""
    paths = (shard.inputs if shard.inputs.exists() else shard.output for shard in shards)
    return sorted({agent_of(row) for path in paths for row in _rows(_scan(path))})


def merge(shards: Sequence[RunFiles], output: RunFiles, specs: Mapping[str, MetricsSpec], *, rows: bool) -> Merged:
    """Write the scores over all shards and, with ``rows``, all their files as one run's.

    Raises RequestError for shards of different runs, and for rows that are none.
    """
    manifests = [_manifest(shard) for shard in shards]
    _check_same_run(shards, manifests)
    known = all(shard.inputs.exists() for shard in shards)
    scores = score_run(
        specs,
        inputs=_rows(_merged_inputs(shards)) if known else None,
        rows=_rows(_first_of_each(_scan(shard.output) for shard in shards)),
        failures=(row for shard in shards for row in _rows(_scan(shard.failures))),
    )
    summaries = write_scores(output.metrics, scores)
    counts, missing = _counts(scores), _missing(manifests)
    if rows:
        _write_rows(shards, output, known=known)
        manifest = _joined(shards, manifests, scores, counts) if all(manifests) else {}
        if manifest:
            write_json(output.manifest, manifest)
        write_report(output, manifest, summaries)
    notes = _notes(shards, counts["ok"], missing, known=known)
    return Merged(summaries, counts["expected"], counts["ok"], tuple(notes), missing)


def _scan(path: Path) -> Iterator[Line]:
    """The rows of a file; the torn last line of a shard that was killed is none."""
    end = _whole_bytes(path)
    for line in scan(path) if end else ():
        yield line
        if line.offset + len(line.text) >= end:
            return


def _whole_bytes(path: Path) -> int:
    """Where a file ends without its torn last line."""
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        tail = text.rfind(b"\n") + 1
        try:
            whole = tail == size or isinstance(orjson.loads(text[tail:]), dict)
        except orjson.JSONDecodeError:
            whole = False
    return size if whole else tail


def _rows(lines: Iterable[Line]) -> Iterator[Json]:
    return (orjson.loads(line.text) for line in lines)


def _first_of_each(shards: Iterable[Iterable[Line]]) -> Iterator[Line]:
    seen = KeySet()
    return (line for lines in shards for line in lines if seen.add(*line.key))


def _merged_inputs(shards: Sequence[RunFiles]) -> Iterator[Line]:
    """The tasks of all shards, in the order in which one run would have them."""
    seen = KeySet()
    merged = heapq.merge(*(_scan(shard.inputs) for shard in shards), key=lambda line: line.key)
    return (line for line in merged if seen.add(*line.key))


def _write_rows(shards: Sequence[RunFiles], output: RunFiles, *, known: bool) -> None:
    parts: dict[Path, Iterable[Line]] = {
        output.output: _first_of_each(_scan(shard.output) for shard in shards),
        output.failures: (line for shard in shards for line in _scan(shard.failures)),
    }
    if known:
        parts[output.inputs] = _merged_inputs(shards)
    with ExitStack() as stack:
        for path, lines in parts.items():
            stack.enter_context(whole_file(path)).writelines(line.text.rstrip() + b"\n" for line in lines)


def _manifest(shard: RunFiles) -> Json:
    """A shard's manifest; empty where it has none."""
    if not shard.manifest.exists():
        return {}
    try:
        manifest = orjson.loads(shard.manifest.read_bytes())
    except orjson.JSONDecodeError as error:
        raise RequestError(f"Malformed JSON in {shard.manifest}: {error}") from None
    return manifest if isinstance(manifest, dict) else {}


def _check_same_run(shards: Sequence[RunFiles], manifests: Sequence[Json]) -> None:
    told = [(shard, manifest) for shard, manifest in zip(shards, manifests, strict=True) if manifest]
    for shard, manifest in told[1:]:
        first, whole = told[0]
        lines = differences(_of_shards(whole), _of_shards(manifest))
        if lines:
            shown = "".join(f"\n    {line}" for line in lines)
            raise RequestError(f"{shard.output} is no shard of the run of {first.output}; it differs in:{shown}")


def _of_shards(manifest: Json, **expansion: int) -> Json:
    """What all shards of a run have in common; with ``num_shards=1``, what the whole run has."""
    return {**manifest, "expansion": {**(manifest.get("expansion") or {}), "shard_index": 0, **expansion}}


def _missing(manifests: Sequence[Json]) -> tuple[int, ...]:
    """The shards that some manifest says there are, and that nobody is."""
    expansions = [manifest.get("expansion") or {} for manifest in manifests if manifest]
    there = {expansion.get("shard_index", 0) for expansion in expansions}
    wanted = max((each.get("num_shards", 1) for each in expansions), default=0)
    return tuple(sorted(set(range(wanted)) - there))


def _counts(scores: Sequence[AgentScores]) -> Json:
    ok = sum(each.aggregator.rows for each in scores)
    failed = sum(len(each.failures) for each in scores)
    if any(each.expected is None for each in scores):
        return {"expected": None, "ok": ok, "failed": failed, "missing": None}
    expected = sum(each.expected.total for each in scores if each.expected is not None)
    return {"expected": expected, "ok": ok, "failed": failed, "missing": expected - ok - failed}


def _joined(shards: Sequence[RunFiles], manifests: Sequence[Json], scores: Sequence[AgentScores], counts: Json) -> Json:
    ended = [manifest.get("ended") for manifest in manifests]
    first = manifests[0]
    return {
        **(_of_shards(first) if _missing(manifests) else _of_shards(first, num_shards=1)),
        "started": min(str(manifest.get("started")) for manifest in manifests),
        "ended": max(map(str, ended)) if all(ended) else None,
        "tasks": {each.agent: each.expected.total for each in scores if each.expected is not None},
        "counts": counts,
        "merged": [shard.output.name for shard in shards],
    }


def _notes(shards: Sequence[RunFiles], ok: int, missing: Sequence[int], *, known: bool) -> Iterator[str]:
    stood = sum(1 for shard in shards for _ in _scan(shard.output))
    if stood > ok:
        yield f"rows that stand in an earlier shard, too: {stood - ok} of {stood}; the first of each was kept"
    if missing:
        named = ", ".join(map(str, missing))
        yield f"shard{'s' if len(missing) > 1 else ''} {named} {'are' if len(missing) > 1 else 'is'} missing"
    if not known:
        without = next(shard for shard in shards if not shard.inputs.exists())
        yield f"{without.inputs.name} is not there: how many rollouts were wanted is not known"
