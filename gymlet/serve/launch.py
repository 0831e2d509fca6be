"""Puts the instances of one configuration together, mounts them on one application, starts and stops them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from difflib import get_close_matches

from aiohttp import web

from gymlet.rollout.metrics import MetricsSpec
from gymlet.serve.agent import Agent
from gymlet.serve.environment import Environment
from gymlet.serve.failures import failures, json_response
from gymlet.serve.model import ModelServer
from gymlet.serve.peers import EnvironmentPeer, LocalEnvironment, RemoteEnvironment, RemoteServer
from gymlet.serve.plugins import Plugin
from gymlet.upstream.limiters import Limiters, LocalLimiters
from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError

MAX_BODY_BYTES = 64 * 1024 * 1024
BACKLOG = 4096
SHUTDOWN_TIMEOUT_S = 10.0
POLICY_MODEL = "policy_model"


class Gym:
    """All instances of one configuration, wired to each other. Owns their lives."""

    def __init__(self, plugins: Sequence[Plugin], limiters: Limiters | None = None) -> None:
        self.plugins = tuple(plugins)
        self._limiters = limiters or LocalLimiters()
        self.models: dict[str, ModelServer] = {}
        self.environments: dict[str, Environment] = {}
        self.agents: dict[str, Agent] = {}
        self._peers: dict[str, EnvironmentPeer] = {}
        self._remotes: list[RemoteServer] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Gym]:
        """Everything started, in the order of who needs whom; stopped the other way round."""
        async with AsyncExitStack() as stack:
            self._build()
            for remote in self._remotes:
                stack.push_async_callback(remote.close)
            for server in self.servers().values():
                stack.push_async_callback(server.stop)
                await server.start()
            yield self

    async def run_agent(self, name: str, row: Json) -> Json:
        """One rollout by the agent ``name``, in this process."""
        return await self._agent(name).run(row)

    async def metrics_spec(self, name: str) -> MetricsSpec:
        """What the agent's environment scores."""
        return await self._agent(name).metrics_spec()

    async def limits(self) -> dict[str, Json]:
        """The state of each model's endpoints, by the instance's name."""
        return {name: await model.limits() for name, model in self.models.items()}

    async def agent_names(self) -> list[str]:
        """The agents there are."""
        return sorted(self.agents)

    def servers(self) -> dict[str, ModelServer | Environment | Agent]:
        """The instances that this process serves, by name."""
        return {**self.models, **self.environments, **self.agents}

    def _agent(self, name: str) -> Agent:
        agent = self.agents.get(name)
        if agent is None:
            raise unknown_agent(name, self.agents)
        return agent

    def _build(self) -> None:
        by_type: dict[str, list[Plugin]] = {}
        for plugin in self.plugins:
            by_type.setdefault(plugin.instance.type, []).append(plugin)
        for plugin in by_type.get("responses_api_models", ()):
            model = self.models[plugin.instance.name] = plugin.cls(plugin.instance.name, plugin.options)
            model.limiters = self._limiters
        for plugin in by_type.get("resources_servers", ()):
            self._add_environment(plugin)
        for plugin in by_type.get("responses_api_agents", ()):
            self.agents[plugin.instance.name] = plugin.cls(
                plugin.instance.name,
                plugin.options,
                model=self.models[plugin.options.model_server.name],
                environment=self._peers[plugin.options.resources_server.name],
            )

    def _add_environment(self, plugin: Plugin) -> None:
        name = plugin.instance.name
        if plugin.options.base_url is not None:
            remote = RemoteServer(plugin.options.base_url)
            self._remotes.append(remote)
            self._peers[name] = RemoteEnvironment(remote)
            return
        environment = plugin.cls(name, plugin.options)
        self.environments[name] = environment
        self._peers[name] = LocalEnvironment(environment)


def unknown_agent(name: str, known: Sequence[str] | dict[str, Agent]) -> RequestError:
    """The error for an agent that is not there, with a near miss."""
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
    return RequestError(f"there is no agent '{name}'; {hint}", param="agent_ref", status=404)


def make_app(gym: Gym, *, url: str, config_yaml: str) -> web.Application:
    """One application: the head at the root, every instance below its name, the policy model at the root too."""
    app = web.Application(middlewares=[failures], client_max_size=MAX_BODY_BYTES)
    instances = server_instances(gym, url)

    async def health(_request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def list_instances(_request: web.Request) -> web.Response:
        return json_response(instances)

    async def global_config(_request: web.Request) -> web.Response:
        return json_response(config_yaml)

    app.router.add_get("/health", health)
    app.router.add_get("/server_instances", list_instances)
    app.router.add_get("/global_config_dict_yaml", global_config)
    for name, server in gym.servers().items():
        instance = web.Application()
        instance.router.add_get("/health", health)
        instance.add_routes(server.routes())
        app.add_subapp(f"/{name}", instance)
    if POLICY_MODEL in gym.models:
        app.add_routes(gym.models[POLICY_MODEL].routes())
    return app


def server_instances(gym: Gym, url: str) -> list[Json]:
    """What is mounted where, as /server_instances tells it."""
    served = gym.servers()
    return [
        {
            "name": plugin.instance.name,
            "server_type": plugin.instance.type,
            "implementation": plugin.instance.implementation,
            "url": f"{url}/{plugin.instance.name}" if plugin.instance.name in served else plugin.options.base_url,
            "pid": os.getpid(),
        }
        for plugin in gym.plugins
    ]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises RequestError when the address is taken or is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise RequestError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            f"stop what is there, or choose another port: +head_server.port={port + 1 if port < 65535 else port - 1}",
            param="head_server.port",
        ) from error


async def serve(app: web.Application, sock: socket.socket, *, on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; then no new connection, and open replies get a moment to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        await web.SockSite(runner, sock, backlog=BACKLOG).start()
        on_ready()
        await stop.wait()
    finally:
        await runner.cleanup()
