"""The commands as users type them, each a process of its own, against the scripted provider."""

import asyncio
import signal
from collections import Counter

import aiohttp
import orjson
import pytest

CONFIGS = (
    "resources_servers/mcqa/configs/mcqa.yaml,responses_api_models/inference_provider/configs/inference_provider.yaml"
)
KEY = "sk-very-secret-0123456789"


@pytest.fixture
async def cli(tmp_path, provider, spawn):
    """Start commands in a folder with an env.yaml; what still runs at the end is killed."""
    (tmp_path / "env.yaml").write_text(
        f"policy_api_key: {KEY}\npolicy_model_name: boxed-random\npolicy_base_url: {provider.url}/v1\n"
    )
    return spawn


async def finish(process):
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def ready(process):
    lines = []
    while line := await asyncio.wait_for(process.stdout.readline(), 30):
        lines.append(line.decode())
        if lines[-1].startswith("ready"):
            return "".join(lines)
    raise AssertionError((await process.stderr.read()).decode())


async def run_server(cli, free_port):
    server = await cli("ng_run", f"+config_paths=[{CONFIGS}]", f"+head_server.port={free_port}")
    return server, await ready(server)


async def grown(path, size, process):
    """Wait until a file has so many bytes."""
    while not path.exists() or path.stat().st_size < size:
        assert process.returncode is None
        await asyncio.sleep(0.02)


def rows(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_a_server_tells_what_it_serves_and_stops_cleanly(cli, free_port, signal_):
    server, told = await run_server(cli, free_port)
    for name in ("mcqa", "mcqa_simple_agent", "policy_model"):
        assert f"http://127.0.0.1:{free_port}/{name}" in told
    server.send_signal(signal_)
    code, out, err = await finish(server)
    assert (code, out, err) == (0, "stopped\n", "")
    assert KEY not in told


async def test_collecting_from_a_running_server(cli, free_port, tmp_path):
    await run_server(cli, free_port)
    collector = await cli(
        "ng_collect_rollouts",
        "+agent_name=mcqa_simple_agent",
        "+input_jsonl_fpath=resources_servers/mcqa/data/example.jsonl",
        "+output_jsonl_fpath=results/mcqa_rollouts.jsonl",
        f"+head_server.port={free_port}",
    )
    code, out, err = await finish(collector)
    assert code == 0, err
    assert "50 of 50 rollouts in results/mcqa_rollouts.jsonl" in out
    assert "pass@1[avg-of-1]/accuracy" in out
    kept = rows(tmp_path / "results" / "mcqa_rollouts.jsonl")
    assert all(row["reward"] in (0, 1) and row["extracted_answer"] in "ABCDEFGHIJ" for row in kept)
    assert {"uuid", "options", "grading_mode", "expected_answer", "response", "agent_ref"} <= kept[0].keys()
    metrics = orjson.loads((tmp_path / "results" / "mcqa_rollouts_aggregate_metrics.json").read_bytes())
    assert metrics[0]["agent_metrics"]["mean/reward"] == sum(row["reward"] for row in kept) / 50


async def test_collecting_without_a_server_hides_the_key(cli, tmp_path):
    collector = await cli(
        "ng_collect_rollouts",
        f"+config_paths=[{CONFIGS}]",
        "+agent_name=mcqa_simple_agent",
        "+input_jsonl_fpath=resources_servers/mcqa/data/example.jsonl",
        "+output_jsonl_fpath=out.jsonl",
        "+limit=5",
        "+num_repeats=2",
    )
    code, out, err = await finish(collector)
    assert (code, len(rows(tmp_path / "out.jsonl"))) == (0, 10), err
    written = "".join(path.read_text() for path in tmp_path.glob("out*")) + out + err
    assert KEY not in written


async def test_kill_9_in_the_middle_then_resume_has_every_rollout_once(cli, free_port, tmp_path):
    await run_server(cli, free_port)
    row = {"responses_create_params": {"input": "?"}, "options": [{"A": "a"}], "expected_answer": "A"}
    lines = [orjson.dumps({**row, "uuid": str(number)}) for number in range(2000)]
    (tmp_path / "tiled.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    arguments = (
        "+agent_name=mcqa_simple_agent",
        "+input_jsonl_fpath=tiled.jsonl",
        "+output_jsonl_fpath=out.jsonl",
        "+num_samples_in_parallel=64",
        "+resume_from_cache=true",
        f"+head_server.port={free_port}",
    )
    first = await cli("ng_collect_rollouts", *arguments)
    output = tmp_path / "out.jsonl"
    await grown(output, 200_000, first)
    first.send_signal(signal.SIGKILL)
    await finish(first)
    half = output.read_bytes().count(b"\n")
    assert 0 < half < 2000
    code, out, err = await finish(await cli("ng_collect_rollouts", *arguments))
    assert code == 0, err
    assert "2000 of 2000" in out
    counts = Counter((row["_ng_task_index"], row["_ng_rollout_index"]) for row in rows(output))
    assert (len(counts), set(counts.values())) == (2000, {1})


async def test_ctrl_c_keeps_what_is_there_and_says_how_to_go_on(cli, tmp_path):
    slow = (tmp_path / "env.yaml").read_text().replace("boxed-random", "slow")
    (tmp_path / "env.yaml").write_text(slow)
    collector = await cli(
        "ng_collect_rollouts",
        f"+config_paths=[{CONFIGS}]",
        "+agent_name=mcqa_simple_agent",
        "+input_jsonl_fpath=resources_servers/mcqa/data/example.jsonl",
        "+output_jsonl_fpath=out.jsonl",
        "+num_samples_in_parallel=1",
    )
    await grown(tmp_path / "out.jsonl", 1, collector)
    collector.send_signal(signal.SIGINT)
    code, out, err = await finish(collector)
    assert (code, "of 50 rollouts" in out) == (130, True)
    assert "the same command goes on from here" in err


MISTAKES = {
    "no server": (
        ("ng_collect_rollouts", "+agent_name=a", "+input_jsonl_fpath=resources_servers/mcqa/data/example.jsonl", "+output_jsonl_fpath=o.jsonl", "+head_server.port=1"),
        "no server answers at 127.0.0.1:1",
    ),
    "no data": (
        ("ng_collect_rollouts", f"+config_paths=[{CONFIGS}]", "+agent_name=a", "+input_jsonl_fpath=exmple.jsonl", "+output_jsonl_fpath=o.jsonl"),
        "config file 'exmple.jsonl' is not there",
    ),
    "an agent that is not there": (
        ("ng_collect_rollouts", f"+config_paths=[{CONFIGS}]", "+agent_name=mcqa_simpel_agent", "+input_jsonl_fpath=resources_servers/mcqa/data/example.jsonl", "+output_jsonl_fpath=o.jsonl"),
        "there is no agent 'mcqa_simpel_agent'; did you mean 'mcqa_simple_agent'?",
    ),
    "nothing to write to": (("ng_collect_rollouts", "+input_jsonl_fpath=x"), "1 required value is not set (???):\n    output_jsonl_fpath"),
    "a wrong number": (
        ("ng_collect_rollouts", f"+config_paths=[{CONFIGS}]", "+num_repeats=0", "+input_jsonl_fpath=x", "+output_jsonl_fpath=o.jsonl"),
        "num_repeats: Expected",
    ),
    "an unknown key of a server": (
        ("ng_run", f"+config_paths=[{CONFIGS}]", "++policy_model.responses_api_models.inference_provider.use_reasoning_parser=true"),
        "policy_model.responses_api_models.inference_provider.use_reasoning_parser: unknown key; did you mean 'uses_reasoning_parser'?",
    ),
    "an implementation that is not there": (
        ("ng_run", "++x.resources_servers.mcq.entrypoint=app.py"),
        "no resources_servers/mcq/app.py",
    ),
    "nothing to serve": (("ng_run",), "no server instance is configured"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_is_told_without_a_traceback(cli, words, expected):
    code, out, err = await finish(await cli(*words))
    assert code == 2
    assert err.startswith("error:")
    assert expected in err
    assert "Traceback" not in err + out


async def test_a_collector_with_the_wrong_key_is_told(cli, free_port, tmp_path):
    env = (tmp_path / "env.yaml").read_text()
    (tmp_path / "env.yaml").write_text(env + "head_server: {api_key: [key-of-ada, key-of-bob]}\n")
    await run_server(cli, free_port)
    arguments = (
        "+agent_name=mcqa_simple_agent",
        "+input_jsonl_fpath=resources_servers/mcqa/data/example.jsonl",
        "+output_jsonl_fpath=out.jsonl",
        "+limit=2",
        f"+head_server.port={free_port}",
    )
    code, _, err = await finish(await cli("ng_collect_rollouts", *arguments))
    assert code == 0, err
    code, _, err = await finish(await cli("ng_collect_rollouts", *arguments, "head_server.api_key=another"))
    assert code == 2
    assert f"the server at 127.0.0.1:{free_port} does not let us in: the key is not one of this server's" in err


async def test_a_server_is_not_opened_to_others_by_accident(cli):
    code, _, err = await finish(await cli("ng_run", f"+config_paths=[{CONFIGS}]", "head_server.host=::"))
    assert code == 2
    assert "head_server.api_key: is required to listen on ::" in err


async def test_a_port_in_use_is_told(cli, provider):
    port = provider.url.rpartition(":")[2]
    code, _, err = await finish(await cli("ng_run", f"+config_paths=[{CONFIGS}]", f"+head_server.port={port}"))
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert "choose another port: +head_server.port=" in err


async def test_a_dump_hides_secrets_and_names_sources(cli):
    code, out, _ = await finish(await cli("ng_dump_config", f"+config_paths=[{CONFIGS}]"))
    assert code == 0
    assert "api_key: '****'" in out
    assert KEY not in out
    _, out, _ = await finish(await cli("ng_dump_config", f"+config_paths=[{CONFIGS}]", "+json=true", "+sources=true"))
    assert orjson.loads(out)["policy_api_key"].endswith("env.yaml")


@pytest.mark.parametrize("name", ["ng_run", "ng_collect_rollouts", "ng_dump_config", "ng_version"])
@pytest.mark.parametrize("flag", ["--help", "+help=true"])
async def test_every_command_has_help(cli, name, flag):
    code, out, _ = await finish(await cli(name, flag))
    assert code == 0
    assert out.startswith(name)


async def test_the_openai_compatible_door_is_open(cli, free_port):
    await run_server(cli, free_port)
    url = f"http://127.0.0.1:{free_port}/v1/responses"
    async with aiohttp.ClientSession() as session, session.post(url, json={"input": "hi"}) as response:
        assert (response.status, (await response.json())["status"]) == (200, "completed")
