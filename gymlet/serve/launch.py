"""Puts the instances of one configuration together, mounts them on one application, starts and stops them."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from difflib import get_close_matches
from typing import Any

from aiohttp import web

from gymlet.config.schema import HeadServer
from gymlet.rollout.metrics import MetricsSpec
from gymlet.serve.agent import Agent
from gymlet.serve.door import open_door
from gymlet.serve.environment import Environment
from gymlet.serve.failures import failures, json_response
from gymlet.serve.fellows import Fellows
from gymlet.serve.gate import Gate, answer_preflight, is_preflight
from gymlet.serve.model import ModelServer
from gymlet.serve.peers import EnvironmentPeer, LocalEnvironment, RemoteEnvironment, RemoteServer
from gymlet.serve.plugins import Plugin
from gymlet.serve.request_ids import put_ids
from gymlet.serve.traffic import Handler, Stop, Traffic
from gymlet.serve.workers import WorkerContext
from gymlet.upstream.limiters import Limiters, LocalLimiters
from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError, StreamError

MAX_BODY_BYTES = 64 * 1024 * 1024
POLICY_MODEL = "policy_model"
TRAFFIC = web.AppKey("traffic", Traffic)


class Gym:
    """All instances of one configuration, wired to each other. Owns their lives."""

    def __init__(
        self, plugins: Sequence[Plugin], worker: WorkerContext | None = None, limiters: Limiters | None = None
    ) -> None:
        self.plugins = tuple(plugins)
        self.worker = worker
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
            if self.worker is not None:
                fellows = Fellows(self.worker)
                stack.push_async_callback(fellows.close)
                for server in self.stateful():
                    server.join(fellows)
            for remote in self._remotes:
                stack.push_async_callback(remote.close)
            for instance in self.servers().values():
                stack.push_async_callback(instance.stop)
                await instance.start()
            yield self

    def run_agent(self, name: str, row: Json) -> Coroutine[Any, Any, Json]:
        """One rollout by the agent ``name``, in this process."""
        return self._agent(name).run(row)

    async def metrics_spec(self, name: str) -> MetricsSpec:
        """What the agent's environment scores."""
        return await self._agent(name).metrics_spec()

    async def limits(self) -> dict[str, Json]:
        """The state of each model's endpoints, by the instance's name."""
        return {name: await model.limits() for name, model in self.models.items()}

    async def agent_names(self) -> list[str]:
        """The agents there are."""
        return sorted(self.agents)

    def interrupt(self, error: StreamError) -> None:
        """Let the replies that providers are still sending end with ``error``, each in its own protocol."""
        for model in self.models.values():
            model.interrupt(error)

    def stateful(self) -> list[ModelServer | Environment]:
        """The instances that remember something between two requests."""
        return [*self.models.values(), *self.environments.values()]

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
        if plugin.is_elsewhere:
            remote = RemoteServer(plugin.options.base_url, plugin.options.api_key)
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


def make_app(gym: Gym, *, url: str, config_yaml: str, head: HeadServer | None = None) -> web.Application:
    """One application: the head at the root, every instance below its name, the policy model at the root too."""
    app = _guarded_app(Gate(head or HeadServer()))
    instances = server_instances(gym.plugins, url)

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


def _guarded_app(gate: Gate) -> web.Application:
    """An application without routes that every request enters through ``gate``."""
    traffic = Traffic()

    @web.middleware
    def enter(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        """No coroutine of its own: every open stream would have it."""
        gate.check(request)
        return traffic.run(request, answer_preflight if is_preflight(request) else handler)

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        put_ids(request, response)
        gate.mark(request, response)
        traffic.mark(request, response)

    app = web.Application(middlewares=[failures, enter], client_max_size=MAX_BODY_BYTES)
    app[TRAFFIC] = traffic
    app.on_response_prepare.append(mark)
    return app


def server_instances(plugins: Sequence[Plugin], url: str) -> list[Json]:
    """What is served where, as /server_instances tells it."""
    return [
        {
            "name": plugin.instance.name,
            "server_type": plugin.instance.type,
            "implementation": plugin.instance.implementation,
            "url": plugin.options.base_url if plugin.is_elsewhere else f"{url}/{plugin.instance.name}",
            "pid": os.getpid(),
        }
        for plugin in plugins
    ]


async def serve(
    gym: Gym, app: web.Application, sock: socket.socket, head: HeadServer, stop: Stop, on_ready: Callable[[], None]
) -> None:
    """Serve until ``stop``; then no new connection, and what is under way has ``head.shutdown_timeout_s`` to end."""
    async with _side_door(gym, app[TRAFFIC]), open_door(app, [sock], head) as door:
        on_ready()
        await stop.soon.wait()
        door.close()
        await app[TRAFFIC].end(stop, head.shutdown_timeout_s, gym.interrupt)


@asynccontextmanager
async def _side_door(gym: Gym, traffic: Traffic) -> AsyncIterator[None]:
    """Where the other workers come in, if there are any."""
    if gym.worker is None:
        yield
        return

    @web.middleware
    def enter(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        return traffic.run(request, handler)

    app = web.Application(middlewares=[failures, enter], client_max_size=MAX_BODY_BYTES)
    for server in gym.stateful():
        instance = web.Application()
        instance.add_routes(server.inner_routes() if isinstance(server, ModelServer) else server.routes())
        app.add_subapp(f"/{server.name}", instance)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(gym.worker.socket_of(gym.worker.index))).start()
        yield
    finally:
        await runner.cleanup()
