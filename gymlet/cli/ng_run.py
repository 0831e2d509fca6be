"""ng_run: composes a configuration and serves it on one port, as one process or as several workers."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from gymlet.cli.command import load_plugins, not_by_each
from gymlet.cli.console import EXIT_INTERRUPTED, EXIT_OK, exit_code, hide_in_log, note, run_async, run_command
from gymlet.config.compose import Composition, compose, require_instances, to_yaml
from gymlet.config.problems import ConfigError
from gymlet.config.schema import RunOptions, bind
from gymlet.config.secrets import hide_secrets
from gymlet.serve.descriptors import limit, raise_limit, shortage
from gymlet.serve.door import listen_often
from gymlet.serve.gate import check_reach, is_loopback
from gymlet.serve.launch import POLICY_MODEL, Gym, make_app, serve, server_instances
from gymlet.serve.plugins import Plugin
from gymlet.serve.traffic import Stop
from gymlet.serve.workers import HUB_SOCKET, Fleet, Plan, WorkerContext
from gymlet.upstream.borrowed import HubLimiters
from gymlet.upstream.hub import Hub
from gymlet.upstream.limiters import Limiters, LocalLimiters

USAGE = """
ng_run "+config_paths=[ENVIRONMENT.yaml,MODEL.yaml]" [+key=value …]

Serves what the config files name: each instance below its name, policy_model at the root too, so that any client
of OpenAI's API works with base_url=http://127.0.0.1:11000/v1. Keys of providers belong into env.yaml.
"""

STOP_MARGIN_S = 30.0
"""A worker that has not stopped so long after its time is killed."""

out = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point."""
    run_command("ng_run", run, USAGE)


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal."""
    started = time.perf_counter()
    composition = compose("ng_run", arguments)
    hide_in_log(composition.tree)
    options = _options(composition)
    require_instances(composition)
    plugins = load_plugins(composition)
    _check(composition, plugins, options)
    head = composition.head_server
    socks = listen_often(head.host, head.port, options.num_workers)
    with ExitStack() as stack:
        for sock in socks:
            stack.enter_context(sock)
        server = Server(composition, plugins, head.url(socks[0].getsockname()[1]), tuple(socks))
        _tell_notes(composition, plugins, options)

        def ready(pids: Sequence[int] = ()) -> None:
            _show(server, pids)
            out.print(f"ready after {time.perf_counter() - started:.2f} s; Ctrl-C stops it")

        code = _alone(server, ready) if len(socks) == 1 else _together(server, ready)
    if code in (EXIT_OK, EXIT_INTERRUPTED):
        out.print("stopped")
    return code


@dataclass(frozen=True, slots=True)
class Server:
    """What is served: ``socks`` has a listening socket for each worker."""

    composition: Composition
    plugins: Sequence[Plugin]
    url: str
    socks: tuple[socket.socket, ...]

    async def serve(self, worker: WorkerContext | None, stop: Stop, ready: Callable[[], None]) -> None:
        """Be one of its workers, or the only one."""
        sock = self.socks[0 if worker is None else worker.index]
        for other in self.socks:
            if other is not sock:
                other.close()
        head = self.composition.head_server
        async with _limiters(worker) as limiters:
            gym = Gym(self.plugins, worker, limiters)
            async with gym.running():
                config_yaml = to_yaml(hide_secrets(self.composition.tree))
                app = make_app(gym, url=self.url, config_yaml=config_yaml, head=head)
                await serve(gym, app, sock, head, stop, ready)


@asynccontextmanager
async def _limiters(worker: WorkerContext | None) -> AsyncIterator[Limiters]:
    """One worker's own, or what several share."""
    if worker is None:
        yield LocalLimiters()
        return
    async with HubLimiters.connect(worker.hub_socket) as limiters:
        yield limiters


def _alone(server: Server, ready: Callable[[], None]) -> int:
    stop = Stop()

    async def live() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.ask)
        await server.serve(None, stop, ready)

    run_async(live())
    return EXIT_INTERRUPTED if stop.now.is_set() else EXIT_OK


def _together(server: Server, ready: Callable[[Sequence[int]], None]) -> int:
    def run_worker(work: Coroutine[Any, Any, None]) -> int:
        return exit_code(lambda: run_async(work) or EXIT_OK)

    def close() -> None:
        for sock in server.socks:
            sock.close()

    plan = Plan(
        work=server.serve,
        run=run_worker,
        on_ready=ready,
        close=close,
        stop_timeout_s=server.composition.head_server.shutdown_timeout_s + STOP_MARGIN_S,
        hub=lambda folder: Hub().serving(folder / HUB_SOCKET),
    )
    return Fleet(len(server.socks), plan).run()


def _options(composition: Composition) -> RunOptions:
    given = {"num_workers": composition.tree.get("num_workers", 1)}
    options, problems = bind(RunOptions, given, where="ng_run", sources=composition.sources)
    if options is None:
        raise ConfigError(problems)
    return options


def _check(composition: Composition, plugins: Sequence[Plugin], options: RunOptions) -> None:
    problems = [*check_reach(composition.head_server)]
    if options.num_workers > 1:
        problems += not_by_each(plugins, composition)
    if problems:
        raise ConfigError(problems)


def build_gym(composition: Composition) -> Gym:
    """The instances of a configuration, to run in this process. Raises ConfigError with every mistake."""
    require_instances(composition)
    return Gym(load_plugins(composition))


def _tell_notes(composition: Composition, plugins: Sequence[Plugin], options: RunOptions) -> None:
    head = composition.head_server
    for message in composition.notes:
        note(message)
    if not head.keys and not is_loopback(head.host):
        note(f"listening on {head.host} without head_server.api_key: whoever reaches this machine can spend your key")
    raise_limit()
    requests = sum(plugin.options.num_concurrent_requests for plugin in _models(plugins))
    missing = shortage(requests, options.num_workers, limit())
    if missing is not None:
        note(missing)


def _models(plugins: Sequence[Plugin]) -> list[Plugin]:
    return [plugin for plugin in plugins if plugin.instance.type == "responses_api_models"]


def _show(server: Server, pids: Sequence[int]) -> None:
    out.print(f"composed of: {', '.join(server.composition.layers)}", markup=False)
    for entry in server_instances(server.plugins, server.url):
        kind = f"{entry['server_type']}/{entry['implementation']}"
        out.print(f"{entry['name']:<24} {kind:<40} {entry['url']}", markup=False)
    for plugin in _models(server.plugins):
        options = plugin.options
        where = getattr(options, "base_url", "this machine")
        if isinstance(where, str):
            where = where.partition("?")[0]  # some providers want a key there
        out.print(
            f"{plugin.instance.name}: {options.model} at {where}, "
            f"at most {options.num_concurrent_requests} requests at once",
            markup=False,
        )
        if plugin.instance.name == POLICY_MODEL:
            out.print(f"OpenAI-compatible: base_url={server.url}/v1", markup=False)
    if pids:
        out.print(f"{len(pids)} workers share the port; their pids: {', '.join(map(str, pids))}")
