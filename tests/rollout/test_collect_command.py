"""The command as users type it: what Ctrl-C, a full disk and a failing provider lead to, and what is told then."""

import asyncio
import os
import resource
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from serve import faults

from gymlet.cli.ng_collect_rollouts import resume_command
from gymlet.cli.progress import Progress
from gymlet.rollout.collect import Job, Run
from gymlet.rollout.files import RunFiles
from gymlet.rollout.pace import Pace
from gymlet.rollout.sources import open_source
from gymlet.rollout.tasks import Expansion
from gymlet.serve.peers import RemoteAgents
from gymlet.wire.errors import AgentError, GymletError, ProviderError

BIN = Path(sys.executable).parent
until = partial(faults.until, within_s=60.0)
MCQA = "resources_servers/mcqa/configs/mcqa.yaml"
PROVIDER = "responses_api_models/inference_provider/configs/inference_provider.yaml"
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": r"\boxed{A}"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Gate:
    """A provider that answers when it is let: as many requests as ``free`` are answered at once, the others wait."""

    def __init__(self):
        self.free = asyncio.Semaphore(0)
        self.asked = 0
        self.status = 200

    def app(self):
        async def completions(request):
            await request.read()
            self.asked += 1
            await self.free.acquire()
            return web.json_response(ANSWER, status=self.status)

        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        return app

    def let(self, count):
        for _ in range(count):
            self.free.release()


@pytest.fixture
async def gate(serve, tmp_path):
    gate = Gate()
    running = await serve(gate.app())
    row = {"responses_create_params": {"input": "?"}, "options": [{"A": "a"}], "expected_answer": "A"}
    lines = [orjson.dumps({**row, "uuid": str(number)}) + b"\n" for number in range(20)]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "env.yaml").write_text(
        f"policy_api_key: sk-0123456789\npolicy_model_name: m\npolicy_base_url: {running.url}/v1\n"
    )
    return gate


@pytest.fixture
async def collector(spawn):
    """Start the command: ``await collector("+num_repeats=2")``."""

    async def start(*arguments, preexec_fn=None, config_paths=f"+config_paths=[{MCQA},{PROVIDER}]"):
        return await spawn(
            "ng_collect_rollouts",
            *([config_paths] if config_paths else []),
            "+agent_name=mcqa_simple_agent",
            "+input_jsonl_fpath=rows.jsonl",
            "+output_jsonl_fpath=out.jsonl",
            "+num_samples_in_parallel=4",
            *arguments,
            preexec_fn=preexec_fn,
        )

    return start


async def end(process):
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


def rows_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def test_ctrl_c_once_lets_what_is_in_flight_end(gate, collector, tmp_path):
    output = tmp_path / "out.jsonl"
    gate.let(3)
    process = await collector("+overwrite=true")
    await until(lambda: rows_of(output) == 3 and gate.asked == 7)
    process.send_signal(signal.SIGINT)
    await until_line(process.stderr, "again to stop at once")
    gate.let(100)
    code, out, err = await end(process)
    assert (code, rows_of(output), gate.asked) == (130, 7, 7)
    assert "7 of 20 rollouts" in out
    assert "pass@1/accuracy" in out, "the scores of what there is are shown"
    command = err.partition("goes on from here:\n")[2].strip()
    assert command.startswith("ng_collect_rollouts ")
    assert "overwrite" not in command
    process = await asyncio.create_subprocess_shell(
        f"{BIN}/{command}", cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    code, out, _ = await end(process)
    assert (code, rows_of(output), gate.asked) == (0, 20, 20), "the command that was told goes on"


async def test_ctrl_c_twice_stops_now_and_keeps_what_is_committed(gate, collector, tmp_path):
    output = tmp_path / "out.jsonl"
    gate.let(3)
    process = await collector()
    await until(lambda: rows_of(output) == 3 and gate.asked == 7)
    process.send_signal(signal.SIGINT)
    await until_line(process.stderr, "again to stop at once")
    process.send_signal(signal.SIGINT)
    code, out, _ = await end(process)
    assert (code, rows_of(output)) == (130, 3)
    assert "3 of 20 rollouts" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_a_signal_while_scores_are_made_says_how_to_go_on(gate, collector, tmp_path, number):
    os.mkfifo(tmp_path / "out_aggregate_metrics.json.part")  # whoever opens it to write waits for a reader
    gate.let(20)
    process = await collector()
    manifest = tmp_path / "out_manifest.json"
    await until(lambda: manifest.exists() and orjson.loads(manifest.read_bytes())["ended"] is not None)
    process.send_signal(number)
    code, out, err = await end(process)
    assert (code, rows_of(tmp_path / "out.jsonl")) == (130, 20)
    assert "20 of 20 rollouts" in out
    assert "goes on from here:\n  ng_collect_rollouts" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_a_signal_while_the_data_set_is_read_leaves_nothing_half_done(gate, collector, tmp_path, number):
    rows = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(rows * 50_000)
    process = await collector()
    await until(lambda: list(tmp_path.glob("*.part")))
    process.send_signal(number)
    code, _, err = await end(process)
    assert (code, "Traceback" in err, gate.asked) == (130, False, 0)
    assert not list(tmp_path.glob("out*"))


BLOCKING = """
import time
from gymlet.serve.environment import Environment

class Blocking(Environment):
    async def verify(self, session, row):
        open("blocked", "w").close()
        time.sleep(600)
"""


async def test_ctrl_c_twice_stops_what_a_verifier_blocks(gate, collector, tmp_path):
    folder = tmp_path / "resources_servers" / "blocking"
    folder.mkdir(parents=True)
    (folder / "app.py").write_text(BLOCKING)
    (tmp_path / "blocking.yaml").write_text(
        "blocking: {resources_servers: {blocking: {entrypoint: app.py}}}\n"
        "mcqa_simple_agent: {responses_api_agents: {simple_agent: {resources_server: {name: blocking}}}}\n"
    )
    gate.let(1)
    process = await collector(config_paths=f"+config_paths=[{MCQA},{PROVIDER},blocking.yaml]")
    await until((tmp_path / "blocked").exists)
    process.send_signal(signal.SIGINT)
    await asyncio.sleep(0.2)  # two at once would be one
    process.send_signal(signal.SIGINT)
    code, _, err = await end(process)
    assert code == 130
    assert "goes on from here:\n  ng_collect_rollouts" in err


async def test_a_shard_that_there_is_not_is_told(gate, collector):
    code, _, err = await end(await collector("+shard_index=2", "+num_shards=2"))
    assert (code, gate.asked) == (2, 0)
    assert "shard_index is 2; with num_shards=2 there are 0 to 1" in err


async def test_a_shard_runs_its_own_tasks(gate, collector, tmp_path):
    gate.let(100)
    code, out, _ = await end(await collector("+shard_index=1", "+num_shards=3"))
    tasks = [orjson.loads(line)["_ng_task_index"] for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert (code, sorted(tasks)) == (0, list(range(1, 20, 3)))
    assert "7 of 7 rollouts" in out


async def until_line(stream, words):
    async with asyncio.timeout(60):
        while words not in (await stream.readline()).decode():
            pass


async def test_a_disk_that_is_full_ends_the_run_with_what_it_has(gate, collector, tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    gate.let(100)
    code, _, err = await end(await collector(preexec_fn=small_disk))
    output = tmp_path / "out.jsonl"
    kept = output.read_bytes()
    assert (code, kept.endswith(b"}\n"), 0 < rows_of(output) < 20) == (3, True, True)
    assert err.startswith(f"error: {Path('out.jsonl')} cannot be written: File too large; what was committed is kept")
    assert "make room, then go on with\n  ng_collect_rollouts" in err
    assert "Traceback" not in err
    code, _, _ = await end(await collector())
    assert (code, rows_of(output), output.read_bytes()[: len(kept)]) == (0, 20, kept)


async def test_what_fails_too_often_says_how_it_is_tried_again(gate, collector):
    gate.status = 400
    gate.let(1000)
    code, out, err = await end(await collector("+limit=2"))
    assert (code, gate.asked) == (3, 2), "a provider that rejects a request is not asked again in the same run"
    assert "2 failed, see out_failures.jsonl" in out
    assert "incomplete; the same command tries again what is missing:\n  ng_collect_rollouts" in err
    for _ in range(2):
        code, out, err = await end(await collector("+limit=2"))
    assert (code, gate.asked) == (3, 6)
    assert "2 will not be tried again: they failed for good, or 3 times; NEMO_GYM_MAX_ROLLOUT_ATTEMPTS=6" in err
    code, out, _ = await end(await collector("+limit=2", "+allow_incomplete=true"))
    assert (code, gate.asked) == (0, 6)


async def test_a_run_under_way_shows_on_a_terminal_what_was_done_before(gate, collector, tmp_path):
    gate.let(5)
    process = await collector()
    await until(lambda: rows_of(tmp_path / "out.jsonl") == 5)
    process.kill()
    await process.communicate()
    expansion = Expansion(agent_name="mcqa_simple_agent")
    files = RunFiles(tmp_path / "out.jsonl")
    with Run(Job(open_source(tmp_path / "rows.jsonl"), files, expansion, resume=True, force_resume=True)) as run:

        async def limits():
            return Counter(limit=64, in_flight=12, queued=0, retries=3, throttled=0)

        assert await Progress(run, limits).line() == "5/20 rollouts, 0.0/s, connections 12 of 64, 3 retries"


def test_the_rate_is_of_this_run_and_of_the_last_minute():
    pace = Pace(100.0)
    assert (pace.per_s, pace.left_s(10)) == (0, None)
    for second in range(1, 200):
        pace.add(100.0 + second, 10 * second if second < 100 else 1000 + 2 * (second - 100))
    assert (round(pace.per_s), pace.left_s(120)) == (2, pytest.approx(60))


COMMANDS = {
    "what starts afresh is left out": (["+a=1", "+overwrite=true", "overwrite=true"], "ng_collect_rollouts +a=1"),
    "secrets are hidden": (["++policy_api_key=sk-1"], "ng_collect_rollouts '++policy_api_key=****'"),
    "secrets are hidden in mappings": (
        ["++a={b: {api_key: sk-1, n: 2}, max_tokens: 3}", '+b={"key": [sk-1, sk-2], url: http://token:8}'],
        "ng_collect_rollouts '++a={b: {api_key: ****, n: 2}, max_tokens: 3}' '+b={\"key\": ****, url: http://token:8}'",
    ),
    "numbers of tokens are no secrets": (
        ["+responses_create_params.max_output_tokens=512"],
        "ng_collect_rollouts +responses_create_params.max_output_tokens=512",
    ),
    "it can be pasted": (["+config_paths=[a,b]"], "ng_collect_rollouts '+config_paths=[a,b]'"),
}


@pytest.mark.parametrize(("arguments", "command"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_that_goes_on(arguments, command):
    assert resume_command(arguments) == command


async def test_agents_of_a_running_server_fail_as_they_do_here(gymlet, serve_bytes, tmp_path):
    """Class, status and code come over HTTP as they are."""
    told = b'{"error":{"message":"slow down","code":"too_fast"}}'
    server = await gymlet((await serve_bytes([told], status=429, content_type="application/json")).url)
    remote = RemoteAgents(server.url)
    row = {"responses_create_params": {"input": "?"}, "options": [{"A": "a"}], "expected_answer": "A"}
    try:
        assert await remote.agent_names() == ["mcqa_simple_agent"]
        limits = await remote.limits()
        assert (list(limits), limits["policy_model"]["in_flight"]) == (["policy_model"], 0)
        with pytest.raises(ProviderError) as caught:
            await remote.run_agent("mcqa_simple_agent", row)
        error = caught.value
        assert (error.failure_class, error.status, error.code) == ("provider_rate_limited", 429, "too_fast")
        with pytest.raises(GymletError) as unusable:
            await remote.run_agent("mcqa_simple_agent", {})
        assert (unusable.value.failure_class, unusable.value.status) == ("invalid_row", 400)
    finally:
        await remote.close()


async def test_a_server_that_is_gone_is_the_agents_fault(free_port):
    remote = RemoteAgents(f"http://127.0.0.1:{free_port}")
    try:
        with pytest.raises(AgentError, match="cannot be reached"):
            await remote.run_agent("a", {})
    finally:
        await remote.close()


async def test_a_run_of_a_server_is_gone_on_with_without_it(gate, collector, free_port, tmp_path):
    """The manifest holds what serves the run, wherever that is; another model over there is another run."""
    gate.let(1000)
    server = await served(tmp_path, free_port)
    try:
        code, _, err = await end(await collector("+limit=5", f"+head_server.port={free_port}", config_paths=""))
        assert (code, gate.asked) == (0, 5), err
    finally:
        server.terminate()
        await server.communicate()
    code, _, err = await end(await collector("+limit=5"))
    assert (code, gate.asked) == (0, 5), err
    code, _, err = await end(await collector("+limit=5", "++policy_model_name=another"))
    assert (code, gate.asked) == (2, 5)
    assert 'config.policy_model.inference_provider.model: was "m", is "another"' in err


async def test_a_server_that_is_gone_ends_the_run_and_costs_no_attempts(gate, collector, free_port, tmp_path):
    server = await served(tmp_path, free_port)
    try:
        process = await collector("+num_repeats=10", f"+head_server.port={free_port}", config_paths="")
        gate.let(3)
        await until(lambda: rows_of(tmp_path / "out.jsonl") == 3 and gate.asked == 7)
    finally:
        server.kill()
        await server.communicate()
    code, _, err = await end(process)
    assert (code, rows_of(tmp_path / "out.jsonl")) == (3, 3)
    assert "the server is gone: no rollout begins any more" in err
    assert "the same command tries again what is missing" in err
    lines = (tmp_path / "out_failures.jsonl").read_bytes().splitlines()
    attempts = Counter((row["_ng_task_index"], row["_ng_rollout_index"]) for row in map(orjson.loads, lines))
    assert 4 <= len(attempts) < 50, "those in flight, and the first that found nobody"
    assert set(attempts.values()) == {1}
    gate.let(1000)
    code, _, err = await end(await collector("+num_repeats=10"))
    assert (code, rows_of(tmp_path / "out.jsonl")) == (0, 200), err


async def served(folder, port):
    server = await asyncio.create_subprocess_exec(
        str(BIN / "ng_run"),
        f"+config_paths=[{MCQA},{PROVIDER}]",
        f"+head_server.port={port}",
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
    )
    await until_line(server.stdout, "ready")
    return server
