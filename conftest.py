"""Real servers on real sockets, for every test that needs one."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web

from gymlet.config.compose import compose
from gymlet.serve.door import listen, open_door
from gymlet.serve.launch import Gym, make_app
from gymlet.serve.plugins import load
from scripts.scripted_provider import BUILT_IN, REQUESTS
from scripts.scripted_provider import make_app as make_provider

ROOT = Path(__file__).resolve().parent
BIN = Path(os.environ.get("GYMLET_BIN", Path(sys.executable).parent))
"""Where the commands are; of an installed wheel, somewhere else."""

MCQA = "resources_servers/mcqa/configs/mcqa.yaml"
PROVIDER = "responses_api_models/inference_provider/configs/inference_provider.yaml"
NO_RETRIES = "++policy_model.responses_api_models.inference_provider.max_retries=0"
"""What a provider does is told at once; tests of retries turn them on."""

KEY = "sk-very-secret-0123456789"


@dataclass
class Running:
    """A server and a client for it."""

    url: str
    client: aiohttp.ClientSession
    app: web.Application
    gym: Gym | None = None

    async def post(self, path, body, **headers):
        """Status, headers and the body of one POST."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self.client.post(self.url + path, data=data, headers=headers) as response:
            return response.status, response.headers, await response.read()

    async def post_json(self, path, body):
        """Status and JSON of one POST."""
        status, _, raw = await self.post(path, body)
        return status, orjson.loads(raw)

    async def get_json(self, path):
        """Status and JSON of one GET."""
        async with self.client.get(self.url + path) as response:
            return response.status, orjson.loads(await response.read())

    @property
    def requests(self):
        """What a scripted provider was asked."""
        return list(self.app[REQUESTS])


@pytest.fixture
async def serve():
    """Serve an aiohttp application on a free port: ``await serve(app)``."""
    runners = []
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:

        async def start(app, gym=None):
            runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            return Running(f"http://127.0.0.1:{port}", client, app, gym)

        yield start
    for runner in reversed(runners):
        await runner.cleanup()


@pytest.fixture
async def provider(serve):
    """The scripted provider."""
    return await serve(make_provider(BUILT_IN))


@pytest.fixture
async def serve_bytes(serve):
    """A provider that answers with exactly these pieces: ``await serve_bytes([b"…"], delay_s=0.1, drop=True)``."""

    async def start(pieces, *, status=200, content_type="text/event-stream", delay_s=0.0, drop=False):
        async def completions(request):
            await request.read()
            response = web.StreamResponse(status=status, headers={"Content-Type": content_type})
            await response.prepare(request)
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(delay_s)
            if drop:
                request.transport.abort()
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", completions)
        return await serve(app)

    return start


@pytest.fixture
async def gymlet(tmp_path):
    """A whole gymlet in front of a provider: ``await gymlet(provider.url, "plain", "+key=value")``."""

    async def start(provider_url, model="plain", *overrides, configs=(MCQA, PROVIDER)):
        (tmp_path / "env.yaml").write_text(
            f"policy_api_key: {KEY}\npolicy_model_name: {model}\npolicy_base_url: {provider_url}/v1\n"
        )
        once = [NO_RETRIES] if any("inference_provider" in name for name in configs) else []
        composition = compose("ng_run", [f"+config_paths=[{','.join(configs)}]", *once, *overrides], cwd=tmp_path)
        plugins, problems = load(composition.instances, [tmp_path, ROOT])
        assert not problems
        gym = await stack.enter_async_context(Gym(plugins).running())
        head = composition.head_server
        app = make_app(gym, url="http://here", config_yaml="", head=head)
        sock = listen(head.host, 0)
        url = head.url(sock.getsockname()[1])
        await stack.enter_async_context(open_door(app, [sock], head, linger_s=0.1))
        return Running(url, client, app, gym)

    async with AsyncExitStack() as stack, aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        yield start


@pytest.fixture
def free_port():
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture
async def spawn(tmp_path):
    """Start a command in a folder of its own, and kill it at the end: ``await spawn("ng_run", "+a=b")``."""
    started = []

    async def start(name, *arguments, **options):
        process = await asyncio.create_subprocess_exec(
            str(BIN / name),
            *arguments,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
def command(tmp_path):
    """Run one of the commands in a folder of its own: ``await command("ng_run", "+a=b")`` -> (code, out, err)."""

    async def run(name, *arguments, env=None, cwd=tmp_path, timeout_s=60):
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name(name)),
            *arguments,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "160", **(env or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout_s)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return process.returncode, out.decode(), err.decode()

    return run
