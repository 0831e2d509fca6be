"""ng_run: composes a configuration and serves it as one process on one port."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.console import EXIT_INTERRUPTED, EXIT_OK, note, run_async, run_command
from gymlet.config.compose import Composition, compose, require_instances, to_yaml
from gymlet.config.paths import search_roots
from gymlet.config.problems import ConfigError
from gymlet.config.schema import HeadServer
from gymlet.config.secrets import hide_secrets
from gymlet.serve.door import listen
from gymlet.serve.gate import check_reach, is_loopback
from gymlet.serve.launch import Gym, make_app, serve, server_instances
from gymlet.serve.plugins import load
from gymlet.serve.traffic import Stop

USAGE = """
ng_run "+config_paths=[ENVIRONMENT.yaml,MODEL.yaml]" [+key=value …]

Serves what the config files name: each instance below its name, policy_model at the root too, so that any client
of OpenAI's API works with base_url=http://127.0.0.1:11000/v1. Keys of providers belong into env.yaml.
"""

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command("ng_run", run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal."""
    started = time.perf_counter()
    composition = compose("ng_run", arguments)
    head = composition.head_server
    if problems := [*check_reach(head)]:
        raise ConfigError(problems)
    gym = build_gym(composition)
    with listen(head.host, head.port) as sock:
        url = head.url(sock.getsockname()[1])
        for message in composition.notes:
            note(message)
        _warn_if_open(head)

        def ready() -> None:
            _show(composition, gym, url)
            out.print(f"ready after {time.perf_counter() - started:.2f} s; Ctrl-C stops it")

        stop = Stop()

        async def live() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.ask)
            async with gym.running():
                config_yaml = to_yaml(hide_secrets(composition.tree))
                app = make_app(gym, url=url, config_yaml=config_yaml, head=head)
                await serve(gym, app, sock, head, stop, ready)

        run_async(live())
    out.print("stopped")
    return EXIT_INTERRUPTED if stop.now.is_set() else EXIT_OK


def build_gym(composition: Composition) -> Gym:
    """The instances of a configuration, their classes loaded. Raises ConfigError with every mistake."""
    require_instances(composition)
    plugins, problems = load(composition.instances, search_roots(Path.cwd()))
    if problems:
        raise ConfigError(problems)
    return Gym(plugins)


def _show(composition: Composition, gym: Gym, url: str) -> None:
    out.print(f"composed of: {', '.join(composition.layers)}", markup=False)
    for entry in server_instances(gym, url):
        kind = f"{entry['server_type']}/{entry['implementation']}"
        out.print(f"{entry['name']:<24} {kind:<40} {entry['url']}", markup=False)
    for model in gym.models.values():
        options = model.options
        where = getattr(options, "base_url", "this machine")
        out.print(
            f"{model.name}: {options.model} at {where}, at most {options.num_concurrent_requests} requests at once",
            markup=False,
        )
    if "policy_model" in gym.models:
        out.print(f"OpenAI-compatible: base_url={url}/v1", markup=False)


def _warn_if_open(head: HeadServer) -> None:
    if not head.keys and not is_loopback(head.host):
        note(f"listening on {head.host} without head_server.api_key: whoever reaches this machine can spend your key")
