"""Very many streams open at once through gymlet: what each costs, and that each comes to its end.

    python scripts/many_streams.py [--streams 16000] [--workers 2] [--hold-s 10]

The provider says something on each stream, then a little more now and then, until all of them were open at once for a
while. Memory is the resident memory of all of gymlet's processes. The exit code is 1 if a stream was not open with the
others or did not end well, or if a stream costs more than --most-kb.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gymlet.cli.console import run_async
from scripts.hostile.client import Client
from scripts.hostile.outcome import DONE, RESPONSES, ask
from scripts.hostile.processes import Server, end_on_sigterm, gymlet, hostile_provider, settings

OPENING = 256
"""So many connect at a time: more only wait in the system's queue."""

WARM_UP = 200
BOUND_S = 180.0
SPARE_FILES = 200


class Stream(Client):
    """A streamed reply of which nothing is kept but what is asked: has it begun, is it its own, did it end well."""

    def __init__(self) -> None:
        super().__init__()
        self.mark = b""
        self.begun = asyncio.Event()
        self.completed = False
        self._tail = b""

    def take(self, data: bytes) -> None:
        """A piece of the body has come."""
        if not self.begun.is_set() and self.mark in data:
            self.begun.set()
        self.completed = self.completed or b"event: response.completed\n" in data
        self._tail = (self._tail + data)[-len(DONE) :]

    @property
    def ended_well(self) -> bool:
        """Its own answer, completed, with its [DONE]."""
        return self.begun.is_set() and self.completed and self._tail == DONE


class Found(NamedTuple):
    """How many were open at once, the memory at that time, how many ended well, and how long both took."""

    open: int
    rss_bytes: int
    ended_well: int
    opening_s: float
    ending_s: float


async def main() -> int:
    """Measure; 1 if a stream fails or costs too much."""
    given = _arguments()
    end_on_sigterm()
    _check_files(given.streams + SPARE_FILES)
    print(f"command: python scripts/many_streams.py {' '.join(sys.argv[1:])}", flush=True)
    limits = settings(num_concurrent_requests=given.streams, adaptive_concurrency=False)
    workers = [f"++num_workers={given.workers}"] if given.workers > 1 else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with hostile_provider(folder) as provider:
            model = f"'hold:{given.interval_s:g}'"
            async with gymlet(folder, provider, model, *limits, *workers) as server:
                await _measure(provider, server, WARM_UP, 0)
                return await _report(given, provider, server)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16_000)
    parser.add_argument("--workers", type=int, default=2, help="processes of gymlet: each takes two files per stream")
    parser.add_argument("--hold-s", type=float, default=10.0, help="how long all of them stay open")
    parser.add_argument("--interval-s", type=float, default=5.0, help="how often something new is said on each")
    parser.add_argument("--most-kb", type=float, default=60.0, help="what a stream may cost")
    return parser.parse_args()


def _check_files(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(
            f"{needed} open files are needed, {hard} are allowed: raise `ulimit -n`, or take fewer --streams"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


async def _report(given: argparse.Namespace, provider: Server, server: Server) -> int:
    before = server.rss_bytes()
    found = await _measure(provider, server, given.streams, given.hold_s)
    kb = (found.rss_bytes - before) / 1024 / given.streams
    after = found.rss_bytes
    print(f"gymlet's memory: {before / 2**20:.0f} MB before, {after / 2**20:.0f} MB with all streams open, ", end="")
    print(f"in {len(server.pids())} processes: {kb:.1f} KB a stream")
    print(f"{found.open} of {given.streams} open at once, after {found.opening_s:.1f} s, for {given.hold_s:g} s")
    print(f"{found.ended_well} ended well, the others failed; all had ended after {found.ending_s:.1f} s")
    good = found.open == found.ended_well == given.streams and kb <= given.most_kb
    print("good" if good else f"NOT good: all must be open at once and end well, at most {given.most_kb:g} KB each")
    return 0 if good else 1


async def _measure(provider: Server, server: Server, count: int, hold_s: float) -> Found:
    """Open so many, hold them, let them end."""
    control = await Client.connect("127.0.0.1", provider.port)
    await control.ask("/reset", {})
    started = time.monotonic()
    gate = asyncio.Semaphore(OPENING)
    async with asyncio.timeout(BOUND_S):
        streams = await asyncio.gather(*(_open(server, number, gate) for number in range(count)))
    opening_s = time.monotonic() - started
    await asyncio.sleep(hold_s)
    in_flight = orjson.loads((await control.get("/stats")).body)["in_flight"]
    still_open = sum(stream.is_open and not stream.completed for stream in streams)
    rss = server.rss_bytes()
    started = time.monotonic()
    await control.ask("/release", {})
    async with asyncio.timeout(BOUND_S):
        await asyncio.gather(*(stream.reply() for stream in streams))
    ending_s = time.monotonic() - started
    for client in (control, *streams):
        client.leave()
    well = sum(stream.ended_well for stream in streams)
    return Found(min(in_flight, still_open), rss, well, opening_s, ending_s)


async def _open(server: Server, number: int, gate: asyncio.Semaphore) -> Stream:
    """A stream that has said its first words, or failed."""
    message = f"stream {number}"
    async with gate:
        stream = await Stream.connect("127.0.0.1", server.port)
        stream.mark = hashlib.sha1(message.encode()).hexdigest().encode()  # noqa: S324
        stream.send(RESPONSES, ask(RESPONSES, message, stream=True, store=False))
        begun, reply = asyncio.create_task(stream.begun.wait()), asyncio.create_task(stream.reply())
        await asyncio.wait((begun, reply), return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        reply.cancel()
    return stream


if __name__ == "__main__":
    sys.exit(run_async(main()))
