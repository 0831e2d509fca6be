"""A configuration as it goes to another machine, and what serves it there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import orjson

from gymlet.config.paths import package_root
from gymlet.config.problems import ConfigError
from gymlet.config.schema import Instance
from gymlet.rollout.episode import RunAgent
from gymlet.serve.launch import Gym
from gymlet.serve.plugins import load
from gymlet.upstream.limiters import Limiters


def pack(instances: Sequence[Instance], roots: Iterable[Path]) -> bytes:
    """The configuration as bytes, keys and all; roots are where the user's own plug-ins are, on every machine."""
    own = [str(root) for root in roots if root != package_root()]
    return orjson.dumps({"instances": [asdict(each) for each in instances], "roots": own})


@asynccontextmanager
async def serve_agents(configuration: bytes, limiters: Limiters) -> AsyncIterator[RunAgent]:
    """What ``pack`` packed, started. Raises ConfigError where this machine lacks a plug-in."""
    packed = orjson.loads(configuration)
    instances = [Instance(**each) for each in packed["instances"]]
    plugins, problems = load(instances, [*map(Path, packed["roots"]), package_root()])
    if problems:
        raise ConfigError(problems)
    async with Gym(plugins, limiters=limiters).running() as gym:
        yield gym.run_agent
