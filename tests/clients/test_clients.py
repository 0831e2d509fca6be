"""Real clients against the running server: what each of them makes of the same replies.

openai-python runs with the tests; the others are heavy, or of another language: ``make clients`` installs and runs them.
"""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from scripts.scripted_provider import BUILT_IN, Script, make_app

HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "plain": BUILT_IN["plain"],
    "reasoning": BUILT_IN["reasoning"],
    "tools": BUILT_IN["reasoning-tool-call"],
    "structured": Script(content=('{"city":', '"Paris",', '"degrees":', "7}")),
    "refused": BUILT_IN["error-429"],
    "broken": BUILT_IN["cut-stream"],
}
EXPECTED = {
    "plain": "Hello, world!",
    "reasoning": {"reasoning": "Let me think.", "text": "The answer is 42."},
    "tools": {"called": {"city": "Paris"}, "text": "It is cold."},
    "structured": {"city": "Paris", "degrees": 7},
}
CLIENTS = [
    "openai_agents_python.py",
    "pydantic_ai_python.py",
    "langchain_python.py",
    "openai_node.mjs",
    "ai_sdk_node.mjs",
]
PARSER = "++policy_model.responses_api_models.inference_provider.uses_reasoning_parser=true"


@pytest.fixture
async def upstream(serve):
    return await serve(make_app(SCRIPTS))


@pytest.fixture
async def urls(upstream, gymlet):
    return {name: f"{(await gymlet(upstream.url, name, PARSER)).url}/v1" for name in SCRIPTS}


def check(said, upstream):
    """What a client made of the replies, and what the provider was sent back."""
    assert {name: said[name] for name in EXPECTED} == EXPECTED
    assert "slow down" in said["refused"]
    assert "the provider's" in said["broken"], "the provider's stream, or its reply, broke off"
    (*_, back) = [request["messages"] for request in upstream.requests if request["model"] == "tools"]
    assert [message["role"] for message in back[-3:]] == ["user", "assistant", "tool"]
    assert back[-2]["tool_calls"][0]["id"] == back[-1]["tool_call_id"] == "call_1"
    (structured,) = [request for request in upstream.requests if request["model"] == "structured"]
    assert structured["response_format"]["json_schema"]["schema"]["required"] == ["city", "degrees"]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    "client", ["openai_python.py", *(pytest.param(name, marks=pytest.mark.clients) for name in CLIENTS)]
)
async def test_a_client(client, streamed, urls, upstream):
    runtime = sys.executable if client.endswith(".py") else shutil.which("node") or "node"
    given = json.dumps({"urls": urls, "streamed": streamed})
    process = await asyncio.create_subprocess_exec(runtime, HERE / client, given, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    check(json.loads(out), upstream)
