"""Measures what the server costs: its CPU per reply, and the time to its first byte, beside a handler that only copies.

    make bench        or: python scripts/bench.py [--rounds 7] [--requests 200] [--assert-max-ratio 3]

Provider, peer and gymlet each run in a process of their own; rounds take turns (peer, gymlet, peer, gymlet, …), so that
a machine that gets slower is slower for both. CPU is user + system time of the one process, from /proc. Quote ratios:
absolute times are this machine's, and noise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parent.parent
MODEL_CONFIG = "responses_api_models/inference_provider/configs/inference_provider.yaml"
FIRST_BYTE_REQUESTS = 60


@dataclass(frozen=True, slots=True)
class Server:
    """One of the two: where it is, and what it is asked."""

    name: str
    pid: int
    port: int
    path: str
    body: dict[str, object]

    def request(self, *, stream: bool) -> bytes:
        """The bytes of one HTTP request."""
        body = orjson.dumps({**self.body, "stream": stream})
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        return f"{head}\r\nConnection: close\r\n\r\n".encode() + body

    def cpu_s(self) -> float:
        """User and system time of the process so far, to the nanosecond."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


async def main() -> int:
    """Measure; 1 if a ratio is above the one asserted."""
    given = _arguments()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"command: python scripts/bench.py {' '.join(sys.argv[1:])}")
    print(f"each figure: {given.rounds} rounds of {given.requests} replies of 256 chunks, in one burst; gymlet / peer")
    worst = 0.0
    async with AsyncExitStack() as stack:
        provider_url = await _start_provider(stack)
        peer, gymlet = await _start_peer(stack, provider_url), await _start_gymlet(stack, provider_url, "burst-256")
        for stream in (True, False):
            for concurrency in (1, 8):
                ratios, costs = await _rounds(given, peer, gymlet, stream=stream, concurrency=concurrency)
                worst = max(worst, statistics.median(ratios)) if stream else worst
                what = "streamed" if stream else "whole"
                print(
                    f"CPU per {what} reply, concurrency {concurrency}: ratio {_spread(ratios)}; "
                    f"median ms: gymlet {costs[1]:.2f}, peer {costs[0]:.2f}"
                )
        above_ms = await _first_byte(peer, gymlet)
        print(f"time to the first byte, one client, above the peer's: {above_ms:.2f} ms at the median")
        short, long = [await _start_gymlet(stack, provider_url, f"burst-{chunks}") for chunks in (1_000, 20_000)]
        growth = await _growth(given.rounds, short, long)
        print(f"CPU of a streamed reply of 20,000 chunks over 20 times that of 1,000: {_spread(growth)}")
    if given.assert_max_ratio and worst > given.assert_max_ratio:
        print(f"the median ratio of streamed replies, {worst:.2f}, is above {given.assert_max_ratio}")
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--assert-max-ratio", type=float, default=0.0)
    return parser.parse_args()


async def _start_provider(stack: AsyncExitStack) -> str:
    port = _free_port()
    script = "scripts/scripted_provider.py"
    await stack.enter_async_context(_process(port, sys.executable, script, "--port", str(port)))
    return f"http://127.0.0.1:{port}/v1"


async def _start_peer(stack: AsyncExitStack, provider_url: str) -> Server:
    port = _free_port()
    pid = await stack.enter_async_context(
        _process(port, sys.executable, "scripts/bench_peer.py", provider_url, str(port))
    )
    chat: dict[str, object] = {"model": "burst-256", "messages": [{"role": "user", "content": "hi"}]}
    return Server("peer", pid, port, "/v1/chat/completions", chat)


async def _start_gymlet(stack: AsyncExitStack, provider_url: str, model: str) -> Server:
    port = _free_port()
    pid = await stack.enter_async_context(
        _process(
            port,
            str(Path(sys.executable).with_name("ng_run")),
            f"+config_paths=[{MODEL_CONFIG}]",
            f"++policy_base_url={provider_url}",
            "++policy_api_key=none",
            f"++policy_model_name={model}",
            f"++head_server.port={port}",
        )
    )
    return Server("gymlet", pid, port, "/v1/responses", {"input": "hi"})


@asynccontextmanager
async def _process(port: int, *command: str) -> AsyncIterator[int]:
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=log, stderr=log)
        try:
            await _wait_for(port, process)
            yield process.pid
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


async def _wait_for(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                if process.returncode is not None:
                    raise SystemExit(f"a process of the benchmark ended with {process.returncode}") from None
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def _rounds(
    given: argparse.Namespace, peer: Server, gymlet: Server, *, stream: bool, concurrency: int
) -> tuple[list[float], list[float]]:
    costs: list[list[float]] = []
    for round_ in range(given.rounds + 1):
        pair = [await _cpu_per_reply(server, given.requests, stream, concurrency) for server in (peer, gymlet)]
        if round_:  # the first one warms up
            costs.append(pair)
    ratios = [gymlet_ms / peer_ms for peer_ms, gymlet_ms in costs]
    return ratios, [statistics.median(column) for column in zip(*costs, strict=True)]


async def _cpu_per_reply(server: Server, requests: int, stream: bool, concurrency: int) -> float:
    """Milliseconds."""
    before = server.cpu_s()
    todo = iter(range(requests))

    async def client() -> None:
        for _ in todo:
            await _ask(server, server.request(stream=stream))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return 1000 * (server.cpu_s() - before) / requests


async def _ask(server: Server, request: bytes) -> float:
    """One reply, read to its end; the seconds to its first byte beyond the headers."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise SystemExit(f"{server.name} answered {head!r}: {await reader.read()!r}")
    await reader.read(1)
    first = time.perf_counter() - started
    while await reader.read(1 << 20):
        pass
    writer.close()
    return first


async def _first_byte(peer: Server, gymlet: Server) -> float:
    """Milliseconds between the medians."""
    times: dict[str, list[float]] = {peer.name: [], gymlet.name: []}
    for _ in range(FIRST_BYTE_REQUESTS):
        for server in (peer, gymlet):
            times[server.name].append(await _ask(server, server.request(stream=True)))
    return 1000 * (statistics.median(times[gymlet.name]) - statistics.median(times[peer.name]))


async def _growth(rounds: int, short: Server, long: Server) -> list[float]:
    """The cost of a chunk in a stream of 20,000 over that in one of 1,000."""
    await _cpu_per_reply(short, 20, True, 1), await _cpu_per_reply(long, 1, True, 1)  # warm up
    costs = [
        [await _cpu_per_reply(server, n, True, 1) for server, n in ((short, 60), (long, 3))] for _ in range(rounds)
    ]
    return [cost_long / (20 * cost_short) for cost_short, cost_long in costs]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (min {min(values):.2f}, max {max(values):.2f})"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
