"""The commands around a run, each a process of its own, over real files."""

import asyncio
import gzip
import os
import sys
from pathlib import Path

import orjson
import pytest

from gymlet.rollout.sources import open_source, rows_of

MCQA = "+config_paths=[resources_servers/mcqa/configs/mcqa.yaml]"
WITH_MODEL = "+config_paths=[resources_servers/mcqa/configs/mcqa.yaml,responses_api_models/inference_provider/configs/inference_provider.yaml]"
EXAMPLE = "resources_servers/mcqa/data/example.jsonl"
AGENT = {"name": "mcqa_simple_agent"}


def said(text):
    return {
        "output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}],
        "usage": {"output_tokens": 3},
    }


def task(index, rollout, **fields):
    params = {"input": f"question {index}"}
    return {
        "_ng_task_index": index,
        "_ng_rollout_index": rollout,
        "responses_create_params": params,
        "agent_ref": AGENT,
        **fields,
    }


def rollout(index, number, letter, gold="A", **fields):
    right = letter == gold
    question = {"options": [{"A": "x"}, {"B": "y"}], "expected_answer": gold}
    answer = {"response": said(f"\\boxed{{{letter}}}"), "reward": float(right), "extracted_answer": letter}
    return task(index, number, **question, **answer, **fields)


def read(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def write(tmp_path):
    """Write rows: ``write("run.jsonl", rows)`` -> its path."""

    def run(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        return path

    return run


async def succeed(command, *words, code=0):
    returned, out, err = await command(*words)
    assert returned == code, err + out
    assert "Traceback" not in err
    return out, err


# --- ng_export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["out.jsonl.gz", "out.jsonl.zst", "out.parquet", "folder"])
async def test_export_and_back(command, write, tmp_path, form):
    rows = [rollout(0, 0, "A"), rollout(1, 0, "B", metadata={"subject": "é"})]
    write("run.jsonl", rows)
    out, _ = await succeed(command, "ng_export", "+input_jsonl_fpath=run.jsonl", f"+output_fpath={form}")
    assert out == f"2 rows in {form}\n"
    await succeed(command, "ng_export", f"+input_jsonl_fpath={form}", "+output_fpath=back.jsonl")
    assert read(tmp_path / "back.jsonl") == rows


# --- ng_materialize_prompts ------------------------------------------------------------------------------------------


async def test_prompts_are_materialized(command, write, tmp_path):
    write("rows.jsonl", [{"question": "Why?", "responses_create_params": {"temperature": 0}}])
    (tmp_path / "prompt.yaml").write_text("user: 'Q: {question}'\n")
    await succeed(
        command,
        "ng_materialize_prompts",
        "+input_jsonl_fpath=rows.jsonl",
        "+prompt_config=prompt.yaml",
        "+output_jsonl_fpath=out.jsonl",
    )
    assert read(tmp_path / "out.jsonl") == [
        {
            "question": "Why?",
            "responses_create_params": {"temperature": 0, "input": [{"role": "user", "content": "Q: Why?"}]},
            "prompt_config_used": "prompt.yaml",
        }
    ]


# --- ng_reward_profile -----------------------------------------------------------------------------------------------


async def test_a_profile_says_how_hard_each_task_was(command, write, tmp_path):
    write("in.jsonl", [task(index, number, x=index) for index in range(3) for number in range(2)])
    write("run.jsonl", [rollout(1, 1, "B"), rollout(0, 0, "A"), rollout(1, 0, "A"), rollout(0, 1, "A")])
    out, err = await succeed(
        command,
        "ng_reward_profile",
        "+materialized_inputs_jsonl_fpath=in.jsonl",
        "+rollouts_jsonl_fpath=run.jsonl",
        "+output_jsonl_fpath=profile.jsonl",
    )
    first, second, third = read(tmp_path / "profile.jsonl")
    assert out == "3 tasks in profile.jsonl\nalways passed 1, sometimes 1, never 0\n"
    assert "tasks without a rollout: 1" in err
    numbers = ("avg_reward", "std_reward", "min_reward", "max_reward", "total_samples", "pass_rate")
    assert [first[name] for name in numbers] == [1, 0, 1, 1, 2, 1]
    assert [round(second[name], 4) for name in numbers] == [0.5, 0.7071, 0, 1, 2, 0.5]
    assert [third[name] for name in numbers] == [None, None, None, None, 0, None]
    assert (second["pass_rate_passed"], second["pass_rate_total"], second["pass_threshold"]) == (1, 2, 1)
    assert (second["x"], second["agent_ref"], second["mean/output_tokens"]) == (1, AGENT, 3)


async def test_a_profile_at_another_threshold(command, write, tmp_path):
    write("in.jsonl", [task(0, 0)])
    write("run.jsonl", [task(0, 0, reward=0.6, response={})])
    words = (
        "+materialized_inputs_jsonl_fpath=in.jsonl",
        "+rollouts_jsonl_fpath=run.jsonl",
        "+output_jsonl_fpath=p.jsonl",
    )
    await succeed(command, "ng_reward_profile", *words, "+pass_threshold=0.5")
    assert read(tmp_path / "p.jsonl")[0]["pass_rate"] == 1


# --- ng_aggregate_rollouts -------------------------------------------------------------------------------------------


def manifest(index, of, **more):
    expansion = {"num_repeats": 2, "shard_index": index, "num_shards": of}
    return {
        "schema_version": 1,
        "input": {"blake2b": "x"},
        "expansion": expansion,
        "config": {},
        "started": f"2026-01-0{index + 1}",
        "ended": "2026-02-01",
        **more,
    }


@pytest.fixture
def shards(write, tmp_path):
    """Three shards of six tasks with two rollouts: the second has a failure and a torn end, the third a row of the first."""
    for index in range(3):
        tasks = [(number, repeat) for number in range(index, 6, 3) for repeat in range(2)]
        done = [rollout(number, repeat, "A" if repeat else "B") for number, repeat in tasks]
        failed = []
        if index == 1:
            failed = [task(1, 0, error={"class": "timeout"})]
            done = done[1:]
        if index == 2:
            done.append(rollout(0, 0, "A"))
        write(f"out/run-{index}.jsonl", done)
        write(f"out/run-{index}_failures.jsonl", failed)
        write(f"out/run-{index}_materialized_inputs.jsonl", [task(*key) for key in tasks])
        (tmp_path / f"out/run-{index}_manifest.json").write_bytes(orjson.dumps(manifest(index, 3)))
    with (tmp_path / "out/run-1.jsonl").open("ab") as file:
        file.write(b'{"_ng_task_index": 1, "_ng_ro')
    return tmp_path / "out"


AGGREGATE = ("ng_aggregate_rollouts", MCQA, "+input_glob=out/run-*.jsonl", "+output_jsonl_fpath=out/whole.jsonl")


async def test_shards_become_one_run(command, shards):
    out, err = await succeed(command, *AGGREGATE, code=3)
    assert "11 of 12 rollouts in out/whole.jsonl, from 3 shards; scores in out/whole_aggregate_metrics.json" in out
    assert "rows that stand in an earlier shard, too: 1 of 12; the first of each was kept" in err
    keys = [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in read(shards / "whole.jsonl")]
    assert len(keys) == len(set(keys)) == 11
    assert next(row for row in read(shards / "whole.jsonl") if row["_ng_task_index"] == 0)["extracted_answer"] == "B"
    inputs = [
        (row["_ng_task_index"], row["_ng_rollout_index"]) for row in read(shards / "whole_materialized_inputs.jsonl")
    ]
    assert inputs == [(index, number) for index in range(6) for number in range(2)]
    assert [row["error"]["class"] for row in read(shards / "whole_failures.jsonl")] == ["timeout"]
    (entry,) = orjson.loads((shards / "whole_aggregate_metrics.json").read_bytes())
    score = entry["intervals"]["accuracy"]
    assert [score[name] for name in ("expected", "ok", "failed", "missing")] == [12, 11, 1, 0]
    whole = orjson.loads((shards / "whole_manifest.json").read_bytes())
    assert whole["expansion"] == {"num_repeats": 2, "shard_index": 0, "num_shards": 1}
    assert whole["counts"] == {"expected": 12, "ok": 11, "failed": 1, "missing": 0}
    assert (whole["started"], whole["tasks"]) == ("2026-01-01", {"mcqa_simple_agent": 12})
    again, _ = await succeed(command, *AGGREGATE, "+allow_incomplete=true")
    assert again == out, "the whole is no shard, and what stands there already changes nothing"


async def test_only_scores(command, shards):
    await succeed(command, *AGGREGATE, "+merge_shards=false", code=3)
    assert [path.name for path in shards.glob("whole*")] == ["whole_aggregate_metrics.json"]


async def test_a_missing_shard_is_named(command, shards):
    for path in shards.glob("run-1*"):
        path.unlink()
    _, err = await succeed(command, *AGGREGATE, code=3)
    assert "shard 1 is missing" in err


async def test_shards_of_different_runs_are_told_apart(command, shards):
    other = manifest(2, 3)
    other["expansion"]["num_repeats"] = 4
    (shards / "run-2_manifest.json").write_bytes(orjson.dumps(other))
    _, err = await succeed(command, *AGGREGATE, code=2)
    assert "out/run-2.jsonl is no shard of the run of out/run-0.jsonl; it differs in:" in err
    assert "expansion.num_repeats: was 2, is 4" in err


async def test_rollouts_of_others_are_scored_too(command, write, tmp_path):
    """Files without tasks, failures and manifest, such as NeMo Gym's shards."""
    write("a/rollouts.jsonl", [rollout(0, 0, "A")])
    write("b/rollouts.jsonl", [rollout(0, 1, "B")])
    out, err = await succeed(
        command,
        "ng_aggregate_rollouts",
        MCQA,
        "+input_glob='a/*.jsonl, b/*.jsonl'",
        "+output_jsonl_fpath=all.jsonl",
    )
    assert "how many rollouts were wanted is not known" in err
    assert "2 rollouts in all.jsonl" in out
    (entry,) = orjson.loads((tmp_path / "all_aggregate_metrics.json").read_bytes())
    assert entry["agent_metrics"]["pass@2/accuracy"] == 100
    assert [entry["intervals"]["accuracy"][name] for name in ("expected", "ok", "missing")] == [None, 2, None]
    assert not (tmp_path / "all_manifest.json").exists()


async def test_shards_that_two_commands_collected(command, provider, tmp_path):
    """From a table, by two machines, to one run; then verified again."""
    (tmp_path / "env.yaml").write_text(
        f"policy_api_key: k\npolicy_model_name: boxed-random\npolicy_base_url: {provider.url}/v1\n"
    )
    await succeed(command, "ng_export", f"+input_jsonl_fpath={EXAMPLE}", "+output_fpath=rows.parquet")
    for index in range(2):
        shard = (f"+shard_index={index}", "+num_shards=2", f"+output_jsonl_fpath=out/run-{index}.jsonl")
        words = (WITH_MODEL, "+agent_name=mcqa_simple_agent", "+input_jsonl_fpath=rows.parquet", *shard)
        out, _ = await succeed(command, "ng_collect_rollouts", *words)
        assert f"25 of 25 rollouts in out/run-{index}.jsonl" in out
    out, err = await succeed(command, *AGGREGATE)
    assert ("50 of 50 rollouts in out/whole.jsonl, from 2 shards" in out, err) == (True, "")
    assert sorted(row["_ng_task_index"] for row in read(tmp_path / "out" / "whole.jsonl")) == list(range(50))
    again = ("ng_reverify", MCQA, "+rollouts_jsonl_fpath=out/whole.jsonl", "+output_jsonl_fpath=again.jsonl")
    out, _ = await succeed(command, *again)
    assert "verified again: 50, in again.jsonl\nrewards changed: 0 (0 higher, 0 lower)" in out


# --- ng_reverify -----------------------------------------------------------------------------------------------------

REVERIFY = ("ng_reverify", MCQA, "+rollouts_jsonl_fpath=run.jsonl", "+output_jsonl_fpath=again.jsonl")


async def test_rewards_are_given_again(command, write, tmp_path):
    rows = [rollout(index, 0, "A", _ng_timings={"model_s": 2.5}) for index in range(300)]
    rows[7] |= {"reward": 0.0, "extracted_answer": None}
    rows[8] |= {"expected_answer": "B"}
    rows[10]["_ng_timings"] = "odd"
    write("run.jsonl", rows)
    out, _ = await succeed(command, *REVERIFY)
    assert "verified again: 300, in again.jsonl\nrewards changed: 2 (1 higher, 1 lower)\n" in out
    again = {row["_ng_task_index"]: row for row in read(tmp_path / "again.jsonl")}
    assert (again[7]["reward"], again[7]["_ng_previous_reward"], again[7]["extracted_answer"]) == (1, 0, "A")
    assert (again[8]["reward"], again[8]["_ng_previous_reward"], again[8]["expected_answer"]) == (0, 1, "B")
    assert "_ng_previous_reward" not in again[9]
    assert again[9]["_ng_timings"]["model_s"] == 2.5
    assert again[9]["_ng_timings"]["verify_s"] < 2.5
    (entry,) = orjson.loads((tmp_path / "again_aggregate_metrics.json").read_bytes())
    assert entry["intervals"]["accuracy"]["ok"] == 300


async def test_no_scores_if_they_are_not_wanted(command, write, tmp_path):
    write("run.jsonl", [rollout(0, 0, "A")])
    out, _ = await succeed(command, *REVERIFY, "+disable_aggregation=true")
    assert out == "verified again: 1, in again.jsonl\nrewards changed: 0 (0 higher, 0 lower)\n"
    assert not list(tmp_path.glob("*metrics*"))


async def test_another_way_of_grading(command, write):
    write("run.jsonl", [rollout(0, 0, "A") | {"response": said("Answer: A"), "reward": 0.0}])
    out, _ = await succeed(command, *REVERIFY, "++mcqa.resources_servers.mcqa.grading_mode=lenient_answer_colon")
    assert "rewards changed: 1 (1 higher, 0 lower)" in out


async def test_a_verifier_that_fails_is_a_failure_not_a_0(command, write, tmp_path):
    write("run.jsonl", [rollout(0, 0, "A"), rollout(1, 0, "A") | {"options": []}])
    out, err = await succeed(command, *REVERIFY, code=3)
    assert "could not be verified: 1, see again_failures.jsonl" in err
    assert [row["_ng_task_index"] for row in read(tmp_path / "again.jsonl")] == [0]
    (failure,) = read(tmp_path / "again_failures.jsonl")
    assert "'options' must hold at least one option" in failure["error"]["message"]
    assert "verified again: 1, in" in out


async def test_rows_without_their_fields_get_them_from_the_tasks(command, write):
    """NeMo Gym's rollouts do not hold the row's own fields; the materialized inputs do."""
    whole = [rollout(index, 0, "A") for index in range(3)]
    own = ("options", "expected_answer", "responses_create_params")
    write("run.jsonl", [{name: value for name, value in row.items() if name not in own} for row in whole])
    write(
        "run_materialized_inputs.jsonl",
        [{name: value for name, value in row.items() if name not in ("response", "reward")} for row in whole],
    )
    out, _ = await succeed(command, *REVERIFY)
    assert "verified again: 3, in again.jsonl\nrewards changed: 0" in out


async def test_an_output_that_is_there_is_not_overwritten(command, write, tmp_path):
    write("run.jsonl", [rollout(0, 0, "A")])
    write("again.jsonl", [{"old": 1}])
    _, err = await succeed(command, *REVERIFY, code=2)
    assert "again.jsonl is there already; +overwrite=true replaces it" in err
    await succeed(command, *REVERIFY, "+overwrite=true")
    assert "old" not in read(tmp_path / "again.jsonl")[0]
    _, err = await succeed(command, *REVERIFY, "+output_jsonl_fpath=run.jsonl", "+overwrite=true", code=2)
    assert "run.jsonl holds the rollouts that are verified again; name another" in err


STATEFUL = '''
from gymlet.rollout.metrics import MetricsSpec
from gymlet.serve.environment import Environment, tool

class Counter(Environment):
    """The reward is how often a tool was called."""

    async def seed_session(self, session, row):
        session["count"] = row["start"]

    @tool
    async def more(self, session, by):
        session["count"] += by
        return "ok"

    async def verify(self, session, row):
        return {"reward": float(session["count"])}
'''
STATEFUL_CONFIG = """
counter: {resources_servers: {counter: {entrypoint: app.py}}}
counter_agent:
  responses_api_agents:
    simple_agent:
      entrypoint: app.py
      resources_server: {type: resources_servers, name: counter}
      model_server: {type: responses_api_models, name: policy_model}
"""


async def test_tool_calls_are_made_again_for_state_that_counts(command, write, tmp_path):
    folder = tmp_path / "resources_servers" / "counter"
    folder.mkdir(parents=True)
    (folder / "app.py").write_text(STATEFUL)
    (tmp_path / "counter.yaml").write_text(STATEFUL_CONFIG)
    calls = [
        {"type": "function_call", "name": "more", "arguments": f'{{"by": {by}}}', "call_id": str(by)} for by in (2, 3)
    ]
    row = task(0, 0, start=1, reward=6.0, response={"output": calls}) | {"agent_ref": {"name": "counter_agent"}}
    write("run.jsonl", [row])
    words = ("ng_reverify", "+config_paths=[counter.yaml]", *REVERIFY[2:], "+overwrite=true")
    out, _ = await succeed(command, *words)
    assert "rewards changed: 0" in out
    out, _ = await succeed(command, *words, "+replay_tools=false")
    assert "rewards changed: 1 (0 higher, 1 lower)" in out


# --- data sets -------------------------------------------------------------------------------------------------------


def dataset_config(tmp_path, **entries):
    """mcqa with these data sets: {file: type}."""
    listed = "".join(
        f"        - {{name: {name}, type: {kind}, jsonl_fpath: {name}.jsonl, num_repeats: {repeats}}}\n"
        for name, (kind, repeats) in entries.items()
    )
    text = (
        "config_paths: [resources_servers/mcqa/configs/mcqa.yaml]\n"
        f"mcqa_simple_agent:\n  responses_api_agents:\n    simple_agent:\n      datasets:\n{listed}"
    )
    (tmp_path / "data.yaml").write_text(text)


def question(number, **fields):
    return {
        "responses_create_params": {"input": f"q{number}"},
        "options": [{"A": "x"}],
        "expected_answer": "A",
        **fields,
    }


PREPARE = ("ng_prepare_data", "+config_paths=[data.yaml]", "+output_dirpath=prepared")


async def test_data_sets_are_put_together(command, write, tmp_path):
    write("one.jsonl", [question(0), question(1, agent_ref={"name": "other"})])
    (tmp_path / "two.jsonl").write_bytes(orjson.dumps(question(2)) + b"\n\n")
    odd = {"input": "q3", "temperature": "warm", "tools": 1}  # the provider is to judge it
    write("dev.jsonl", [question(3, difficulty=0.5, responses_create_params=odd)])
    dataset_config(tmp_path, one=("train", 2), two=("train", 1), dev=("validation", 1))
    out, _ = await succeed(command, *PREPARE, "+mode=train_preparation")
    assert "4 rows for mcqa_simple_agent" in out
    train = read(tmp_path / "prepared" / "train.jsonl")
    assert [row["responses_create_params"]["input"] for row in train] == ["q0", "q0", "q1", "q1", "q2"]
    assert train[0]["agent_ref"] == {"type": "responses_api_agents", "name": "mcqa_simple_agent"}
    assert train[2]["agent_ref"] == {"name": "other"}
    metrics = orjson.loads((tmp_path / "prepared" / "validation_metrics.json").read_bytes())
    assert metrics["Number of examples"] == 1
    assert metrics["difficulty"]["Average"] == 0.5
    assert metrics["expected_answer"] == {"unique_count": 1, "total_count": 1}


async def test_the_example_data_is_validated(command, tmp_path):
    out, _ = await succeed(command, "ng_prepare_data", MCQA, "+mode=example_validation", "+output_dirpath=prepared")
    assert "50 rows in prepared/example.jsonl, described in prepared/example_metrics.json" in out


async def test_collecting_from_end_to_end(command, provider, write, tmp_path):
    write("one.jsonl", [question(0), question(1)])
    write("two.jsonl", [question(2)])
    dataset_config(tmp_path, one=("benchmark", 1), two=("benchmark", 2))
    (tmp_path / "env.yaml").write_text(
        f"policy_api_key: k\npolicy_model_name: boxed-random\npolicy_base_url: {provider.url}/v1\n"
    )
    words = (
        "ng_e2e_collect_rollouts",
        "+config_paths=[data.yaml,responses_api_models/inference_provider/configs/inference_provider.yaml]",
        "+split=benchmark",
        "+output_jsonl_fpath=out/e2e.jsonl",
        "+num_repeats=2",
        "++responses_create_params.temperature=0.5",
    )
    out, _ = await succeed(command, *words)
    assert "8 of 8 rollouts in out/e2e.jsonl" in out
    rows = read(tmp_path / "out" / "e2e.jsonl")
    asked = sorted((row["_ng_task_index"], row["_ng_rollout_index"]) for row in rows)
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert {row["responses_create_params"]["temperature"] for row in rows} == {0.5}
    again, err = await succeed(command, *words)
    assert ("8 of 8 rollouts" in again, "going on" in err) == (True, True)


# --- looking, testing, beginning -------------------------------------------------------------------------------------


async def test_a_sound_configuration_is_told(command):
    out, err = await succeed(command, "ng_validate", MCQA)
    assert "example.jsonl: 50 rows, 0 cannot be verified" in out
    assert "policy_model" in out
    assert "not configured: nothing can be asked" in out
    assert err == ""


async def test_example_rows_that_cannot_be_verified_are_named(command, write, tmp_path):
    write("bad.jsonl", [question(0), question(1, options=[]), question(2, grading_mode="strict")])
    dataset_config(tmp_path, bad=("example", 1))
    _, err = await succeed(command, "ng_validate", "+config_paths=[data.yaml]", code=2)
    assert "bad.jsonl, row 2: 'options' must hold at least one option" in err
    assert "bad.jsonl, row 3: 'grading_mode' is 'strict'" in err


async def test_a_running_server_is_asked(command, provider, free_port, tmp_path):
    (tmp_path / "env.yaml").write_text(f"policy_api_key: k\npolicy_model_name: m\npolicy_base_url: {provider.url}/v1\n")
    where = f"+head_server.port={free_port}"
    server = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("ng_run")), WITH_MODEL, where, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    try:
        while b"ready" not in await asyncio.wait_for(server.stdout.readline(), 30):
            pass
        out, _ = await succeed(command, "ng_status", where)
        assert {line.split()[0] for line in out.splitlines()} == {"policy_model", "mcqa", "mcqa_simple_agent"}
        assert all(line.endswith("  ok") for line in out.splitlines())
    finally:
        server.kill()
        await server.wait()
    _, err = await succeed(command, "ng_status", where, code=2)
    assert f"no gymlet server answers at http://127.0.0.1:{free_port}" in err


async def test_a_new_environment_works_as_it_is(command, tmp_path):
    await succeed(command, "ng_init_resources_server", "+entrypoint=resources_servers/my_quiz")
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert made == [
        f"resources_servers/my_quiz/{name}"
        for name in (
            "README.md",
            "app.py",
            "configs/my_quiz.yaml",
            "data/example.jsonl",
            "grading.py",
            "tests/test_app.py",
            "tests/test_grading.py",
        )
    ]
    out, _ = await succeed(command, "ng_test", "+entrypoint=resources_servers/my_quiz")
    assert "passed" in out
    out, _ = await succeed(command, "ng_validate", "+config_paths=[resources_servers/my_quiz/configs/my_quiz.yaml]")
    assert "5 rows, 0 cannot be verified" in out
    _, err = await succeed(command, "ng_init_resources_server", "+entrypoint=resources_servers/my_quiz", code=2)
    assert "resources_servers/my_quiz is there already" in err


async def test_a_test_that_fails_is_told(command, tmp_path):
    await succeed(command, "ng_init_resources_server", "+entrypoint=resources_servers/quiz")
    grading = tmp_path / "resources_servers" / "quiz" / "grading.py"
    grading.write_text(grading.read_text().replace("answers[-1]", "answers[0]"))
    out, _ = await succeed(command, "ng_test", "+entrypoint=resources_servers/quiz", code=1)
    assert "test_extract[the last one counts]" in out


async def test_all_commands_are_listed(command):
    out, _ = await succeed(command, "ng_help")
    scripts = {path.name for path in Path(sys.executable).parent.glob("ng_*")}
    assert {line.split()[0] for line in out.splitlines() if line.startswith("ng_")} == scripts
    assert all(len(line.split()) > 3 for line in out.splitlines() if line.startswith("ng_"))


COMMANDS = sorted(path.name for path in Path(sys.executable).parent.glob("ng_*"))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "+help=true"])
async def test_every_command_has_help(command, name, flag):
    out, _ = await succeed(command, name, flag)
    assert out.startswith(name)
    assert f"conf/{name}.yaml" in out


# --- mistakes --------------------------------------------------------------------------------------------------------

SETTINGS = ("++policy_api_key=k", "++policy_model_name=m", "++policy_base_url=http://127.0.0.1:1/v1")
MISTAKES = {
    "nothing given": (("ng_export",), "2 required values are not set (???):\n    input_jsonl_fpath"),
    "an input that is not there": (("ng_export", "+input_jsonl_fpath=runn.jsonl", "+output_fpath=o.parquet"), "'runn.jsonl' is not there; is it spelled correctly? did you mean 'run.jsonl'?"),
    "an unknown form": (("ng_export", "+input_jsonl_fpath=run.jsonl", "+output_fpath=o.xml"), "cannot write '.xml'"),
    "an output that cannot be written": (("ng_export", "+input_jsonl_fpath=run.jsonl", "+output_fpath=run.jsonl/o.jsonl"), "run.jsonl/o.jsonl cannot be written: "),
    "a damaged input": (("ng_export", "+input_jsonl_fpath=cut.jsonl.gz", "+output_fpath=o.parquet"), "cut.jsonl.gz is damaged or cut off after line"),
    "a slip of the hand": (("ng_reward_profile", "+pass_treshold=0.5", "+materialized_inputs_jsonl_fpath=run.jsonl", "+rollouts_jsonl_fpath=run.jsonl", "+output_jsonl_fpath=o.jsonl"), "the command line: pass_treshold: unknown key; did you mean 'pass_threshold'?"),
    "a threshold that is none": (("ng_reward_profile", "+pass_threshold=high", "+materialized_inputs_jsonl_fpath=run.jsonl", "+rollouts_jsonl_fpath=run.jsonl", "+output_jsonl_fpath=o.jsonl"), "ng_reward_profile.pass_threshold: Expected `float`"),
    "a template without user": (("ng_materialize_prompts", "+input_jsonl_fpath=run.jsonl", "+prompt_config=system.yaml", "+output_jsonl_fpath=o.jsonl"), "system.yaml: prompt_config: needs a 'user' template"),
    "templates that are none": (("ng_materialize_prompts", "+input_jsonl_fpath=run.jsonl", "+prompt_config=odd.yaml", "+output_jsonl_fpath=o.jsonl"), "odd.yaml: prompt_config: unknown key 'sytem'; did you mean 'system'?"),
    "inputs that are there": (("ng_materialize_prompts", "+input_jsonl_fpath=run.jsonl", "+prompt_config=user.yaml", "+output_jsonl_fpath=o.jsonl"), "the rows at lines 1, 2 have an input already; prompt_config would overwrite it"),
    "no shard": (("ng_aggregate_rollouts", MCQA, "+input_glob=no/*.jsonl", "+output_jsonl_fpath=o.jsonl"), "no file matches input_glob=no/*.jsonl"),
    "an agent that nobody knows": (("ng_aggregate_rollouts", MCQA, "+input_glob=strange.jsonl", "+output_jsonl_fpath=o.jsonl"), "there is no agent 'mcqa_simpel_agent'; did you mean 'mcqa_simple_agent'?"),
    "rows that are none": (("ng_aggregate_rollouts", MCQA, "+input_glob=bad.jsonl", "+output_jsonl_fpath=o.jsonl"), "bad.jsonl at line 1"),
    "no agents at all": (("ng_reverify", "+rollouts_jsonl_fpath=run.jsonl", "+output_jsonl_fpath=o.jsonl"), "no server instance is configured; name config files"),
    "no data set": (("ng_prepare_data", MCQA, "+mode=train_preparation", "+output_dirpath=p"), "names no data set of type train or validation; there are data sets of type example"),
    "a mode that is none": (("ng_prepare_data", MCQA, "+mode=train", "+output_dirpath=p"), "ng_prepare_data.mode: Invalid enum value 'train'; there are: example_validation, train_preparation"),
    "data that is not there": (("ng_prepare_data", "+config_paths=[gone.yaml]", "+mode=train_preparation", "+output_dirpath=p"), "mcqa_simple_agent.responses_api_agents.simple_agent.datasets[0].jsonl_fpath"),
    "rows without input": (("ng_prepare_data", "+config_paths=[empty.yaml]", "+mode=train_preparation", "+output_dirpath=p"), "the rows at lines 1, 3 have no responses_create_params.input"),
    "nothing to validate": (("ng_validate",), "no server instance is configured"),
    "a folder that is no environment": (("ng_test", "+entrypoint=resources_servers/mcq"), "there is no folder resources_servers/mcq"),
    "a name that is none": (("ng_init_resources_server", "+entrypoint=resources_servers/my-quiz"), "'resources_servers/my-quiz' must be resources_servers/NAME"),
    "a folder elsewhere": (("ng_init_resources_server", "+entrypoint=quiz"), "'quiz' must be resources_servers/NAME"),
    "a model that is not configured": (("ng_e2e_collect_rollouts", MCQA, "+split=example", "+output_jsonl_fpath=o.jsonl"), "there is no responses_api_models instance 'policy_model'"),
    "a split that is none": (("ng_e2e_collect_rollouts", WITH_MODEL, *SETTINGS, "+split=dev", "+output_jsonl_fpath=o.jsonl"), "ng_e2e_collect_rollouts.split: Invalid enum value 'dev'; there are: benchmark, example, train, validation"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_is_told_without_a_traceback(command, write, tmp_path, words, expected):
    rows = [rollout(0, 0, "A"), rollout(1, 0, "B")]
    write("run.jsonl", rows)
    write("strange.jsonl", [rollout(0, 0, "A") | {"agent_ref": {"name": "mcqa_simpel_agent"}}])
    write("bad.jsonl", [{"reward": 1}])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(os.urandom(50_000))[:-9])
    (tmp_path / "system.yaml").write_text("system: x\n")
    (tmp_path / "odd.yaml").write_text("user: [x]\nsytem: y\n")
    (tmp_path / "user.yaml").write_text("user: x\n")
    dataset_config(tmp_path, gone=("train", 1))
    (tmp_path / "data.yaml").rename(tmp_path / "gone.yaml")
    write("empty.jsonl", [{"x": 1}, question(1), {"responses_create_params": {"input": []}}])
    dataset_config(tmp_path, empty=("train", 1))
    (tmp_path / "data.yaml").rename(tmp_path / "empty.yaml")
    code, out, err = await command(*words)
    assert (code, err.count("error:")) == (2, 1), err
    assert expected in err
    assert "Traceback" not in err + out
    assert not list(tmp_path.glob("o.*"))
    assert not list(tmp_path.rglob("*.part"))


async def test_what_is_exported_reads_like_any_source(command, tmp_path):
    await succeed(command, "ng_export", f"+input_jsonl_fpath={EXAMPLE}", "+output_fpath=example.parquet")
    assert len(list(rows_of(open_source(tmp_path / "example.parquet")))) == 50
