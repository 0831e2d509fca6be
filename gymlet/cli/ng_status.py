"""ng_status: asks a running server what it serves, and whether each instance answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp
import orjson
from rich.console import Console

from gymlet.cli.console import EXIT_INCOMPLETE, EXIT_OK, run_async, run_command
from gymlet.config.compose import compose
from gymlet.config.problems import ConfigError, Problem

USAGE = """
ng_status [+head_server.host=127.0.0.1] [+head_server.port=11000]

Exit codes: 0 all instances answer, 3 one does not, 2 no server answers at all.
"""

COMMAND = "ng_status"


class State(NamedTuple):
    """An instance as the server tells of it, and what is wrong with it."""

    instance: dict[str, Any]
    error: str | None


out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command(COMMAND, run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Ask, and show."""
    composition = compose(COMMAND, arguments)
    head = composition.head_server
    host = f"[{head.host}]" if ":" in head.host else head.host
    states = run_async(_ask(f"http://{host}:{head.port}", composition.tree["timeout_s"]))
    for state in states:
        kind = f"{state.instance['server_type']}/{state.instance['implementation']}"
        shown = f"{state.instance['name']:<24} {kind:<40} {state.instance['url']}"
        out.print(f"{shown}  {state.error or 'ok'}", markup=False)
    return EXIT_OK if not any(state.error for state in states) else EXIT_INCOMPLETE


async def _ask(url: str, timeout_s: float) -> list[State]:
    """The instances of the server at ``url``. Raises ConfigError where there is none."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
        try:
            async with session.get(f"{url}/server_instances", raise_for_status=True) as response:
                instances = orjson.loads(await response.read())
            return list(await asyncio.gather(*(_state(session, instance) for instance in instances)))
        except (aiohttp.ClientError, OSError, TimeoutError, orjson.JSONDecodeError, TypeError, KeyError) as error:
            told = str(error) or type(error).__name__
            message = (
                f"no gymlet server answers at {url} ({told}); start one with ng_run, or say where: +head_server.port=…"
            )
            raise ConfigError([Problem(message)]) from error


async def _state(session: aiohttp.ClientSession, instance: dict[str, Any]) -> State:
    try:
        async with session.get(f"{instance['url']}/health") as response:
            return State(instance, None if response.status == 200 else f"HTTP {response.status}")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return State(instance, _words(error))


def _words(error: Exception) -> str:
    reason = getattr(getattr(error, "os_error", error), "strerror", None)
    return reason or str(error) or type(error).__name__
