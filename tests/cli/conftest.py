"""Servers that are processes, and a provider that holds its replies back."""

import asyncio
import os
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from wire.pipeline import chunk, text

BIN = Path(os.environ.get("GYMLET_BIN", Path(sys.executable).parent))
CONFIGS = (
    "resources_servers/mcqa/configs/mcqa.yaml,responses_api_models/inference_provider/configs/inference_provider.yaml"
)


class Held:
    """A provider that begins every reply and ends it when told to. Counts what it has said to the end."""

    def __init__(self):
        self.open = asyncio.Semaphore(0)
        self.asked = self.finished = 0
        self.news = asyncio.Condition()

    async def completions(self, request):
        await request.read()
        async with self.news:
            self.asked += 1
            self.news.notify_all()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(text(r"\boxed{"))
        await self.open.acquire()
        await response.write(text("A}") + chunk({}, "stop") + b"data: [DONE]\n\n")
        self.finished += 1
        return response

    async def reached(self, count):
        """Wait for so many requests."""
        async with asyncio.timeout(20), self.news:
            await self.news.wait_for(lambda: self.asked >= count)

    def let_go(self):
        """End what is held, and what comes."""
        for _ in range(1000):
            self.open.release()


@pytest.fixture
async def held(serve):
    """A provider that holds its replies back."""
    provider = Held()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", provider.completions)
    provider.url = (await serve(app)).url
    yield provider
    provider.let_go()


@pytest.fixture
async def start(tmp_path):
    """Start ng_run in front of a provider: ``await start(url, "+key=value")`` -> (process, its url, what it told)."""
    processes = []

    async def run(provider_url, *overrides, configs=CONFIGS, env=None, settings=""):
        (tmp_path / "env.yaml").write_text(
            settings or f"policy_api_key: sk-0123456789\npolicy_model_name: plain\npolicy_base_url: {provider_url}/v1\n"
        )
        process = await asyncio.create_subprocess_exec(
            str(BIN / "ng_run"), f"+config_paths=[{configs}]", "head_server.port=0", *overrides,
            cwd=tmp_path, env={**os.environ, **(env or {})}, start_new_session=True,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        told = ""
        while line := (await asyncio.wait_for(process.stdout.readline(), 30)).decode():
            told += line
            if line.startswith("ready"):
                return process, told.split("base_url=")[1].partition("/v1\n")[0], told
        err = (await process.stderr.read()).decode()
        raise AssertionError(f"exit code {await process.wait()}: {err}")

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def client():
    """A client that opens a connection for each request."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield session
