"""The environments of a configuration without its models: to verify again what was answered before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import orjson

from gymlet.rollout.metrics import MetricsSpec
from gymlet.serve.launch import unknown_agent
from gymlet.serve.peers import EnvironmentPeer, LocalEnvironment, RemoteEnvironment, RemoteServer, SessionPeer
from gymlet.serve.plugins import Plugin
from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError


@dataclass(frozen=True, slots=True)
class Verifiers:
    """The environments, by the names of the agents that use them.

    ``replay_tools``: the tool calls of a response are made again before it is verified, so that a session whose state
    counts is as it was.
    """

    environments: Mapping[str, EnvironmentPeer]
    replay_tools: bool = True

    async def verify(self, agent: str, row: Json) -> Json:
        """The verified row. Raises GymletError, named by whose fault it was."""
        if agent not in self.environments:
            raise unknown_agent(agent, list(self.environments))
        if not isinstance(row.get("response"), dict):
            raise RequestError("the row has no response to verify", param="response")
        session = await self.environments[agent].open_session(row)
        if self.replay_tools:
            await _replay(session, row["response"])
        return await session.verify(row)


def metrics_specs(plugins: Sequence[Plugin]) -> dict[str, MetricsSpec]:
    """What each agent's environment scores."""
    environments = {each.instance.name: each for each in plugins if each.instance.type == "resources_servers"}
    return {name: environments[environment].cls.metrics for name, environment in _agents(plugins)}


@asynccontextmanager
async def verifiers(plugins: Sequence[Plugin], *, replay_tools: bool = True) -> AsyncIterator[Verifiers]:
    """The environments, started; stopped at the end."""
    async with AsyncExitStack() as stack:
        peers: dict[str, EnvironmentPeer] = {}
        for plugin in plugins:
            if plugin.instance.type == "resources_servers":
                peers[plugin.instance.name] = await _peer(plugin, stack)
        yield Verifiers({name: peers[environment] for name, environment in _agents(plugins)}, replay_tools)


def _agents(plugins: Sequence[Plugin]) -> list[tuple[str, str]]:
    """Each agent with its environment."""
    agents = (each for each in plugins if each.instance.type == "responses_api_agents")
    return [(each.instance.name, each.options.resources_server.name) for each in agents]


async def _peer(plugin: Plugin, stack: AsyncExitStack) -> EnvironmentPeer:
    if plugin.options.base_url is not None:
        remote = RemoteServer(plugin.options.base_url)
        stack.push_async_callback(remote.close)
        return RemoteEnvironment(remote)
    environment = plugin.cls(plugin.instance.name, plugin.options)
    stack.push_async_callback(environment.stop)
    await environment.start()
    return LocalEnvironment(environment)


async def _replay(session: SessionPeer, response: Json) -> None:
    """Make a response's tool calls again, in their order, as the agent made them."""
    for item in response.get("output") or ():
        if isinstance(item, dict) and item.get("type") == "function_call":
            try:
                arguments = orjson.loads(item.get("arguments") or "{}")
            except orjson.JSONDecodeError:
                continue
            if isinstance(arguments, dict):
                await session.call_tool(str(item.get("name")), arguments)
