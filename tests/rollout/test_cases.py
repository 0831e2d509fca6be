"""Behaviour cases of NeMo Gym: how rows become tasks.

They are read from the folder that GYMLET_CASES names, and skipped where it names none.
"""

import os
from pathlib import Path

import orjson
import pytest

from gymlet.config.problems import ConfigError
from gymlet.config.schema import CollectOptions, bind
from gymlet.rollout.sources import open_source
from gymlet.rollout.tasks import Expander, Expansion
from gymlet.wire.errors import RequestError

FOLDER = os.environ.get("GYMLET_CASES")
RENAMED = {"--input": "there is no file"}
"""What stands in messages for the options of NeMo Gym's other command line."""


def load():
    cases = orjson.loads((Path(FOLDER) / "rollout_preprocessing.json").read_bytes()) if FOLDER else []
    return [pytest.param(case, id=case["name"]) for case in cases if case["given"]["op"] == "preprocess"]


def expand(given, folder):
    """What a case gives to the rows it becomes. Raises what a user would be told."""
    config = given["config"]
    path = folder / config.pop("input_jsonl_fpath", "rows.jsonl")
    if given["input_rows"] is not None:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in given["input_rows"]))
    elif "input_text" in given:
        path.write_text(given["input_text"])
    options, problems = bind(
        CollectOptions, {**config, "input_jsonl_fpath": str(path), "output_jsonl_fpath": "x"}, where="command"
    )
    if options is None:
        raise ConfigError(problems)
    expansion = Expansion(
        agent_name=options.agent_name,
        limit=options.limit,
        num_repeats=options.num_repeats,
        add_seed=options.num_repeats_add_seed,
        overrides=options.responses_create_params,
    )
    source = open_source(path)
    expander = Expander(expansion, source.label, unit=source.unit)
    rows = list(expander.expand(source.lines()))
    expander.finish()
    return rows


def at(value, path):
    """The value at a dotted path; raises KeyError or IndexError where there is none."""
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


@pytest.mark.skipif(not FOLDER, reason="GYMLET_CASES names no folder of cases")
@pytest.mark.parametrize("case", load())
def test_case(case, tmp_path):
    expected = case["expected"]
    if "error_contains" in expected:
        with pytest.raises((RequestError, ConfigError)) as caught:
            expand(case["given"], tmp_path)
        for words in expected["error_contains"]:
            assert RENAMED.get(words, words) in str(caught.value)
        return
    rows = expand(case["given"], tmp_path)
    assert rows == expected.get("rows", rows)
    assert len(rows) == expected.get("count", len(rows))
    for path, column in expected.get("column", {}).items():
        assert [at(row, path) for row in rows] == column
    for path, value in expected.get("at", {}).items():
        assert at(rows, path) == value
    for path in expected.get("absent", ()):
        with pytest.raises((KeyError, IndexError)):
            at(rows, path)
