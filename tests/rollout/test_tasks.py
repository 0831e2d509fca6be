"""Rows become tasks."""

import tracemalloc

import orjson
import pytest

from gymlet.rollout.tasks import Expander, Expansion, RowError


def line(**fields):
    return orjson.dumps({"responses_create_params": {"input": []}, **fields}) + b"\n"


def expand(lines, **options):
    expander = Expander(Expansion(**{"agent_name": "a", **options}), "rows.jsonl")
    tasks = list(expander.expand(lines))
    return tasks, expander.finish()


def keys(tasks):
    return [(task["_ng_task_index"], task["_ng_rollout_index"]) for task in tasks]


A, B = line(x=0), line(x=1)
ORDERS = {
    "one of each": ([A, B], {}, [(0, 0), (1, 0)]),
    "repeats stay together": ([A, B], {"num_repeats": 2}, [(0, 0), (0, 1), (1, 0), (1, 1)]),
    "the same line goes on counting": ([A, B, A], {"num_repeats": 2}, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]),
    "the limit comes first": ([A, B], {"limit": 1, "num_repeats": 2}, [(0, 0), (0, 1)]),
    "lines of one stamp go on counting": ([line(_ng_task_index=7, x=0), line(_ng_task_index=7, x=1)], {"num_repeats": 2}, [(7, 0), (7, 1), (7, 2), (7, 3)]),
    "a stamped line takes no number": ([line(_ng_task_index=7), A, B], {}, [(7, 0), (0, 0), (1, 0)]),
    "blank lines are none": ([A, b"\n", B], {}, [(0, 0), (1, 0)]),
    "a stamped index is kept": ([line(_ng_task_index=7)], {"num_repeats": 2}, [(7, 0), (7, 1)]),
    "the last line needs no newline": ([A, B.rstrip()], {}, [(0, 0), (1, 0)]),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "options", "expected"), ORDERS.values(), ids=ORDERS)
def test_order(lines, options, expected):
    assert keys(expand(lines, **options)[0]) == expected


def test_shards_share_the_tasks_and_their_indices():
    lines = [line(x=number % 7) for number in range(20)]
    shards = [expand(lines, num_repeats=2, num_shards=3, shard_index=index)[0] for index in range(3)]
    whole = expand(lines, num_repeats=2)[0]
    assert sorted(key for shard in shards for key in keys(shard)) == sorted(keys(whole))
    assert all(task % 3 == index for index, shard in enumerate(shards) for task, _ in keys(shard))
    assert {(*keys([row])[0], row["x"]) for shard in shards for row in shard} == {
        (*keys([row])[0], row["x"]) for row in whole
    }


def test_overrides_lie_over_the_row():
    row = orjson.dumps({"responses_create_params": {"input": [], "temperature": 1, "top_p": 0.5}, "keep": 1})
    (task,), _ = expand([row], overrides={"temperature": 0.1})
    assert task["responses_create_params"] == {"input": [], "temperature": 0.1, "top_p": 0.5}
    assert (task["keep"], task["agent_ref"]) == (1, {"name": "a"})


def test_a_rows_own_agent_wins():
    tasks, _ = expand([line(agent_ref={"name": "own"}), line()])
    assert [task["agent_ref"]["name"] for task in tasks] == ["own", "a"]


def test_seeds_go_where_only_the_provider_reads_them():
    tasks, _ = expand([A], num_repeats=2, add_seed=True)
    assert [task["responses_create_params"]["metadata"]["extra_body"] for task in tasks] == [
        '{"seed": 0}',
        '{"seed": 1}',
    ]


def test_a_failures_file_may_be_the_input():
    failed = line(_ng_task_index=7, _ng_failure_class="x", _ng_failure_terminal=True, _ng_attempt_index=2)
    (task,), _ = expand([failed])
    assert task == {**orjson.loads(line()), "_ng_task_index": 7, "_ng_rollout_index": 0, "agent_ref": {"name": "a"}}


def test_repeats_by_agent():
    rows = [line(agent_ref={"name": "alpha"}), line(agent_ref={"name": "beta"})]
    tasks, warnings = expand(rows, num_repeats={"alpha": 3, "_default": 1, "gone": 2})
    assert [task["agent_ref"]["name"] for task in tasks] == ["alpha"] * 3 + ["beta"]
    assert warnings == ["num_repeats names 'gone', and no row uses that agent"]


def test_a_prompt_is_filled_from_the_row():
    row = orjson.dumps({"question": "Why?", "responses_create_params": {"temperature": 0}})
    (task,), _ = expand([row], prompt={"system": "Be {{brief}}.", "user": "Q: {question}"})
    assert task["responses_create_params"] == {
        "temperature": 0,
        "input": [{"role": "system", "content": "Be {brief}."}, {"role": "user", "content": "Q: Why?"}],
    }


MISTAKES = {
    "no JSON": ([A, B, b"{not json\n"], {}, "Malformed JSON in rows.jsonl at line 3"),
    "no object": ([b"[1]"], {}, "rows.jsonl at line 1: a row must be a JSON object"),
    "no parameters": ([b'{"x":1}'], {}, "rows.jsonl at line 1: 'responses_create_params' must be an object"),
    "a stamp that is no index": ([line(_ng_task_index="7")], {}, "rows.jsonl at line 1: '_ng_task_index' must be a whole number from 0 on, not '7'"),
    "an agent that is none": ([line(agent_ref="a")], {}, "rows.jsonl at line 1: 'agent_ref' must be an object with the agent's name"),
    "an agent whose name is none": ([line(agent_ref={"name": ["a"]})], {}, "rows.jsonl at line 1: 'agent_ref' must be an object"),
    "what is nested too deep": ([A, b'{"x":%s%s}' % (b"[" * 300, b"]" * 300)], {}, "rows.jsonl at line 2: lists and objects are nested more than 254 deep"),
    "no place for a seed": ([b'{"responses_create_params":{"metadata":"x"}}'], {"add_seed": True}, "rows.jsonl at line 1: 'metadata.extra_body' must hold"),
    "no rows": ([b"\n"], {}, "rows.jsonl has no rows"),
    "rows without an agent, all of them": ([A, B], {"agent_name": None}, "the rows at lines 1, 2 name no agent; give one with +agent_name"),
    "agents without repeats, all of them": (
        [line(agent_ref={"name": "beta"}), line(agent_ref={"name": "gamma"})],
        {"num_repeats": {"alpha": 2}},
        "num_repeats has no entry for 'beta', 'gamma'; add them, or a '_default'",
    ),
    "a prompt over inputs, all of them": (
        [orjson.dumps({"responses_create_params": {"input": "x"}})] * 2,
        {"prompt": {"user": "x"}},
        "the rows at lines 1, 2 have an input already",
    ),
    "no object for a seed": ([b'{"responses_create_params":{"metadata":{"extra_body":"[1]"}}}'], {"add_seed": True}, "'metadata.extra_body' must hold a JSON object"),
    "a prompt that a row cannot fill": ([b'{"b":[1]}'], {"prompt": {"user": "{b[x]}"}}, "the prompt cannot be filled (list indices must be"),
    "a prompt's missing field": ([b'{"b":1,"a":2}'], {"prompt": {"user": "{c}"}}, "the prompt needs 'c', and the row's fields are: a, b"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "options", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(lines, options, words):
    with pytest.raises(RowError) as caught:
        expand(lines, **options)
    assert words in str(caught.value)


def test_a_thousand_rows_with_one_mistake_are_counted_not_listed():
    with pytest.raises(RowError, match=r"the rows at lines 1, 2, (\d+, ){17}20 and 980 more name no agent"):
        expand([A] * 1000, agent_name=None)


def test_a_table_has_rows():
    expander = Expander(Expansion(), "rows.parquet", unit="row")
    with pytest.raises(RowError, match=r"rows\.parquet at row 1: a row must be a JSON object"):
        list(expander.expand([b"[]"]))


def test_a_million_lines_take_little_memory():
    tracemalloc.start()
    expander = Expander(Expansion(agent_name="a"), "rows.jsonl")
    rows = 50_000
    for _ in expander.expand(b'{"responses_create_params":{},"x":%d}' % number for number in range(rows)):
        pass
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    parts = 65_536 * 130  # what empty parts take; each holds many lines once there are a million
    assert taken < parts + 40 * rows
