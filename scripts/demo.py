"""The demo: serve the local model, stream one answer, collect rollouts, show the scores, stop everything."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich.console import Console

from gymlet.wire.sse import SseDecoder

CONFIGS = "resources_servers/mcqa/configs/mcqa.yaml,responses_api_models/local_model/configs/local_model_mcqa.yaml"
DATA = "resources_servers/mcqa/data/example.jsonl"
RESULTS = "results/demo"
ROWS, REPEATS = 20, 2
READY_TIMEOUT_S = 60.0
STYLES = {"response.reasoning_summary_text.delta": "dim italic", "response.output_text.delta": "bold green"}

out = Console(highlight=False, soft_wrap=True)


async def main() -> int:
    """Run the demo; the exit code of the collection."""
    port = _free_port()
    command = ["ng_run", f"+config_paths=[{CONFIGS}]", f"+head_server.port={port}"]
    out.rule("serving")
    out.print(f"$ {_shown(command)}", markup=False, style="cyan")
    server = await _start(command)
    try:
        await _wait_until_ready(server, port)
        await _stream_one(port)
        return await _collect(port)
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGTERM)
        await server.wait()


async def _stream_one(port: int) -> None:
    body = {**_first_question(), "stream": True}
    out.rule("one answer, as it is said: [dim italic]reasoning[/], [bold green]answer[/]")
    out.print(body["input"][0]["content"], markup=False)
    out.print()
    async with aiohttp.ClientSession() as session, session.post(_url(port, "/v1/responses"), json=body) as response:
        response.raise_for_status()
        decoder = SseDecoder()
        async for chunk in response.content.iter_any():
            for name, data in decoder.feed(chunk):
                if name in STYLES:
                    out.print(orjson.loads(data)["delta"], end="", markup=False, style=STYLES[name])
    out.print()


def _first_question() -> dict[str, Any]:
    with Path(DATA).open("rb") as rows:
        params: dict[str, Any] = orjson.loads(rows.readline())["responses_create_params"]
        return params


async def _collect(port: int) -> int:
    out.rule(f"rollouts: {ROWS} questions, {REPEATS} times each")
    shutil.rmtree(RESULTS, ignore_errors=True)
    command = [
        "ng_collect_rollouts",
        "+agent_name=mcqa_simple_agent",
        f"+input_jsonl_fpath={DATA}",
        f"+output_jsonl_fpath={RESULTS}/rollouts.jsonl",
        f"+limit={ROWS}",
        f"+num_repeats={REPEATS}",
        f"+head_server.port={port}",
    ]
    out.print(f"$ {_shown(command)}", markup=False, style="cyan")
    collector = await _start(command)
    code = await collector.wait()
    if code == 0:
        out.print(f"all on one page: {RESULTS}/rollouts_report.html", markup=False)
        out.print(
            "With ten options, chance is 10 %. A model of 135 million parameters knows little more than that: "
            "a grammar makes it choose a letter, and which one is its own."
        )
    return code


async def _start(command: list[str]) -> asyncio.subprocess.Process:
    program = Path(sys.executable).with_name(command[0])
    return await asyncio.create_subprocess_exec(str(program), *command[1:])


async def _wait_until_ready(server: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession() as session:
        while server.returncode is None:
            try:
                async with session.get(_url(port, "/health")) as response:
                    response.raise_for_status()
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
    sys.exit(server.returncode)


def _url(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}{path}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _shown(command: list[str]) -> str:
    return " ".join(f'"{word}"' if "[" in word else word for word in command)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
