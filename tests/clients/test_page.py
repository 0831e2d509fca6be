"""What docs/clients.md tells its readers to write, works."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from scripts.scripted_provider import BUILT_IN, Call, Script, make_app

HERE = Path(__file__).resolve().parent
PAGE = (HERE.parents[1] / "docs" / "clients.md").read_text()
URL = "http://127.0.0.1:11000/v1"
OPTIONS = "++policy_model.responses_api_models.inference_provider."


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


async def run(*command, cwd, env=None):
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=asyncio.subprocess.DEVNULL, stdout=pipe
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


@pytest.mark.clients
@pytest.mark.parametrize("code", blocks("python"))
async def test_python(code, provider, gymlet, tmp_path):
    server = await gymlet(provider.url, "reasoning", f"{OPTIONS}uses_reasoning_parser=true")
    out = await run(sys.executable, "-c", code.replace(URL, f"{server.url}/v1"), cwd=tmp_path)
    assert out.strip().endswith("The answer is 42.")


@pytest.mark.clients
@pytest.mark.parametrize("code", blocks("js"))
async def test_node(code, provider, gymlet):
    server = await gymlet(provider.url, "reasoning", f"{OPTIONS}uses_reasoning_parser=true")
    out = await run("node", "--input-type=module", "-e", code.replace(URL, f"{server.url}/v1"), cwd=HERE)
    assert out == "The answer is 42.\n"


@pytest.mark.clients
@pytest.mark.skipif(shutil.which("codex") is None, reason="Codex is not installed")
async def test_codex(serve, gymlet, tmp_path):
    script = Script(
        reasoning=("I must ", "look."),
        calls=(Call("exec_command", ('{"cmd":', '"echo from the tool"}')),),
        after_tools=("It said ", "so."),
        finish_reason="tool_calls",
    )
    upstream = await serve(make_app({**BUILT_IN, "codex": script}))
    options = ("uses_reasoning_parser=true", "unsupported_tools=drop", "reasoning_out=reasoning_content")
    server = await gymlet(upstream.url, "codex", *(OPTIONS + option for option in options))
    home = tmp_path / "codex"
    home.mkdir()
    (home / "config.toml").write_text(blocks("toml")[0].replace(URL, f"{server.url}/v1"))
    command = ("codex", "exec", "--skip-git-repo-check", "look")
    assert await run(*command, cwd=tmp_path, env={"CODEX_HOME": str(home)}) == "It said so.\n"
    assistant, tool = upstream.requests[-1]["messages"][-2:]
    assert assistant["reasoning_content"] == "I must look.", "Codex sent back what it cannot read"
    assert "from the tool" in tool["content"]
