"""A provider with a limit that it tells nobody, and a client that always wants more: where gymlet's own limit settles.

    python scripts/hidden_limit.py [--limit 40] [--wanted 400] [--seconds 45]

Each second shows gymlet's limit (GET /policy_model/limits) beside what the provider counted. It is settled once it is
within --within of the provider's, and its mean over any later MEAN_S seconds stays there. The exit code is 1 if that
takes longer than --settle-s, or if more than --throttled of the attempts are refused afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gymlet.cli.console import run_async
from scripts.hostile.client import Client
from scripts.hostile.outcome import CHAT, ask, read_outcome
from scripts.hostile.processes import Server, end_on_sigterm, gymlet, hostile_provider, settings

LIMITS = "/policy_model/limits"
MEAN_S = 5
Json = dict[str, Any]


class Second(NamedTuple):
    """What was seen at the end of one second; attempts and throttled are the provider's, of that second."""

    limit: float
    attempts: int
    throttled: int


async def main() -> int:
    """Measure; 1 if the limit was not found."""
    given = _arguments()
    end_on_sigterm()
    print(f"command: python scripts/hidden_limit.py {' '.join(sys.argv[1:])}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ("--max-concurrent", str(given.limit), "--latency-s", str(given.latency_s))
        ends: Counter[str] = Counter()
        async with (
            hostile_provider(folder, *options) as provider,
            gymlet(folder, provider, "ok", *settings(num_concurrent_requests=1000)) as server,
        ):
            seconds = await _measure(given, provider, server, ends)
    print(f"what became of the requests: {dict(ends)}")
    return _verdict(given, seconds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=40, help="the provider's")
    parser.add_argument("--wanted", type=int, default=400, help="requests that clients always have under way")
    parser.add_argument("--latency-s", type=float, default=0.2, help="the provider's, give or take half")
    parser.add_argument("--seconds", type=int, default=45)
    parser.add_argument("--within", type=float, default=0.20)
    parser.add_argument("--settle-s", type=int, default=30)
    parser.add_argument("--throttled", type=float, default=0.03)
    return parser.parse_args()


async def _measure(given: argparse.Namespace, provider: Server, server: Server, ends: Counter[str]) -> list[Second]:
    clients = [asyncio.create_task(_want(server, number, ends)) for number in range(given.wanted)]
    try:
        return await _watch(given.seconds, provider, server)
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _watch(count: int, provider: Server, server: Server) -> list[Second]:
    gymlet_side, provider_side = [await Client.connect("127.0.0.1", each.port) for each in (server, provider)]
    print("second   limit  in flight  queued | provider: in flight  attempts  throttled")
    seconds: list[Second] = []
    before: Json = {"requests": 0, "throttled": 0}
    started = time.monotonic()
    for number in range(1, count + 1):
        await asyncio.sleep(started + number - time.monotonic())
        limits, stats = await _read(gymlet_side, LIMITS), await _read(provider_side, "/stats")
        attempts, throttled = (stats[name] - before[name] for name in ("requests", "throttled"))
        before = stats
        seconds.append(Second(limits["limit"], attempts, throttled))
        shown = f"{number:>6} {limits['limit']:>7.1f} {limits['in_flight']:>10} {limits['queued']:>7}"
        print(f"{shown} | {stats['in_flight']:>19} {attempts:>9} {throttled:>10}", flush=True)
    return seconds


async def _want(server: Server, number: int, ends: Counter[str]) -> None:
    """One client that asks again as soon as it has an answer."""
    client = await Client.connect("127.0.0.1", server.port)
    count = 0
    while True:
        count += 1
        reply = await client.ask(CHAT, ask(CHAT, f"client {number}, request {count}", stream=False))
        outcome = read_outcome(CHAT, reply.status, reply.body, stream=False)
        ends[outcome.end if outcome.end == "completed" else f"{outcome.status} {outcome.code}"] += 1
        if not client.is_open:
            client = await Client.connect("127.0.0.1", server.port)


async def _read(client: Client, path: str) -> Json:
    reply = await client.get(path)
    if reply.status != 200:
        raise SystemExit(f"GET {path} answers {reply.status}")
    found: Json = orjson.loads(reply.body)
    return found


def _verdict(given: argparse.Namespace, seconds: Sequence[Second]) -> int:
    limits = [second.limit for second in seconds]
    settled_s = settled(limits, given.limit, given.within)
    if settled_s is None:
        print(f"the limit never stayed within {given.within:.0%} of {given.limit}: NOT good")
        return 1
    after = seconds[settled_s:]
    mean = statistics.fmean(second.limit for second in after)
    share = sum(second.throttled for second in after) / max(1, sum(second.attempts for second in after))
    good = settled_s <= given.settle_s and share <= given.throttled
    print(f"settled after {settled_s} s; since then the limit's mean is {mean:.1f}, {share:.1%} of attempts throttled")
    print("good" if good else f"NOT good: at most {given.settle_s} s and {given.throttled:.0%} were asked for")
    return 0 if good else 1


def settled(limits: Sequence[float], true_limit: float, within: float) -> int | None:
    """After how many seconds the limit, and every later mean of MEAN_S seconds, is near the true one; None if never."""

    def near(limit: float) -> bool:
        return abs(limit - true_limit) <= within * true_limit

    means = [statistics.fmean(limits[at : at + MEAN_S]) for at in range(max(1, len(limits) - MEAN_S + 1))]
    last_far = max((at for at, mean in enumerate(means) if not near(mean)), default=-1)
    return next((at + 1 for at in range(last_far + 1, len(means)) if near(limits[at])), None)


if __name__ == "__main__":
    sys.exit(run_async(main()))
