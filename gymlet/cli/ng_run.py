"""ng_run: composes a configuration and serves it as one process on one port."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gymlet.cli.console import EXIT_OK, note, run_async, run_command
from gymlet.config.compose import Composition, compose, require_instances, to_yaml
from gymlet.config.paths import search_roots
from gymlet.config.problems import ConfigError
from gymlet.config.secrets import hide_secrets
from gymlet.serve.launch import Gym, listen, make_app, serve, server_instances
from gymlet.serve.plugins import load

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
    gym = build_gym(composition)
    head = composition.head_server
    with listen(head.host, head.port) as sock:
        port = sock.getsockname()[1]
        url = f"http://{f'[{head.host}]' if ':' in head.host else head.host}:{port}"
        for message in composition.notes:
            note(message)
        _warn_if_open(head.host)

        def ready() -> None:
            _show(composition, gym, url)
            out.print(f"ready after {time.perf_counter() - started:.2f} s; Ctrl-C stops it")

        async def live() -> None:
            async with gym.running():
                config_yaml = to_yaml(hide_secrets(composition.tree))
                await serve(make_app(gym, url=url, config_yaml=config_yaml), sock, on_ready=ready)

        run_async(live())
    out.print("stopped")
    return EXIT_OK


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


def _warn_if_open(host: str) -> None:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        note(f"listening on {host}: whoever reaches this machine can spend your key")
