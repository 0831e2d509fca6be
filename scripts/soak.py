"""Many requests through gymlet at a provider that misbehaves: every one ends, with its own answer or with an error.

    make soak        or: python scripts/soak.py [--requests 100000] [--concurrency 512] [--faults 0.3] [--seed 1]

The provider (scripts/hostile_provider.py, model ``mix``) and ``ng_run`` each run in a process of their own. The
requests are mixed: both doors, streamed and whole, some clients that leave early, some that read slowly. What is
checked is printed, each line with what was found; the exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gymlet.cli.console import run_async
from scripts.hostile.answers import answer_text
from scripts.hostile.client import Client, Reply
from scripts.hostile.outcome import CHAT, RESPONSES, Outcome, ask, read_outcome
from scripts.hostile.processes import Server, end_on_sigterm, gymlet, hostile_provider, settings

PATIENCE = {
    "max_retries": 6,
    "retry_base_s": 0.05,
    "retry_max_s": 1,
    "max_retry_s": 20,
    "first_byte_timeout_s": 2,
    "idle_timeout_s": 2,
    "total_timeout_s": 30,
}
"""Short enough for faults to end soon, long enough for a busy machine."""

LEAVE, READ_SLOWLY = 0.05, 0.05
"""The shares of the clients that leave early, and of those that do not read for a while."""

BOUND_S = 120.0
"""No request may take longer, whatever happens to it."""

SETTLE_S = 60.0
"""Kept connections are closed once they were idle for long enough; that is waited for."""

NOTICED_WITHIN_S = 1.0
"""Of the median delay between a client that leaves and the end of its call; a machine at its limit is late for all."""

SPARE_FILES = 16
FLAT_SHARE, FLAT_BYTES = 0.10, 16 << 20
SAMPLE_S = 1.0
WARM_UP = 200

EXPECTED_LINES = re.compile(
    r"composed of: |policy_model |policy_model: |OpenAI-compatible: |ready after |stopped$|\s*$"
)
"""What a server says that has nothing to complain of."""


@dataclass(slots=True)
class Tally:
    """What became of the requests, and the server's memory over time."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[tuple[float, int]] = field(default_factory=list)
    left_at: dict[str, float] = field(default_factory=dict)
    """When the client of a message left, by the clock on the wall."""

    slowest_s: float = 0.0

    @property
    def ended(self) -> int:
        """How many have ended, in whatever way."""
        return sum(self.outcomes.values())


class Plan(NamedTuple):
    """One request. ``leaves_after_s``: the client does not wait for longer; ``pauses_s``: it does not read at first."""

    message: str
    door: str
    stream: bool
    leaves_after_s: float | None
    pauses_s: float


class Check(NamedTuple):
    """Something that must hold, and what was found."""

    holds: bool
    words: str


async def main() -> int:
    """Run; 1 if a check fails."""
    given = _arguments()
    end_on_sigterm()
    print(f"command: python scripts/soak.py {' '.join(sys.argv[1:])}", flush=True)
    key = f"sk-soak-{secrets.token_hex(16)}"
    with tempfile.TemporaryDirectory() as name:
        folder = given.logs or Path(name)
        options = ("--faults", str(given.faults), "--seed", str(given.seed))
        async with hostile_provider(folder, *options) as provider:
            async with gymlet(folder, provider, "mix", *settings(**PATIENCE), key=key) as server:
                tally = Tally()
                checks = await _soak(given, provider, server, tally)
            checks += _check_logs(folder, key)
    _show(tally)
    for check in checks:
        print(f"{'ok  ' if check.holds else 'FAIL'} {check.words}")
    return 0 if all(check.holds for check in checks) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=512)
    parser.add_argument("--faults", type=float, default=0.3, help="the share of the provider's answers that go wrong")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="a folder to leave the logs in")
    return parser.parse_args()


async def _soak(given: argparse.Namespace, provider: Server, server: Server, tally: Tally) -> list[Check]:
    files = server.open_files()
    await _send(server, plans(WARM_UP, given.seed + 1), given.concurrency, Tally())
    started = time.monotonic()
    watch = asyncio.create_task(_watch(server, tally, given.requests))
    await _send(server, plans(given.requests, given.seed), given.concurrency, tally)
    watch.cancel()
    took_s = time.monotonic() - started
    print(f"{tally.ended} requests in {took_s:.0f} s, {tally.ended / took_s:.0f} a second; ", end="")
    print(f"the slowest took {tally.slowest_s:.1f} s")
    stats, left = await _wait_for_rest(provider, server, files + SPARE_FILES)
    print(
        f"the provider: {stats['requests']} attempts, {stats['completed']} good answers, "
        f"{stats['throttled']} throttled, {stats['closed_early']['count']} ended by gymlet, "
        f"at most {stats['most_in_flight']} in flight"
    )
    good = tally.outcomes["completed"]
    return [
        Check(tally.ended == given.requests, f"{given.requests} requests, {tally.ended} ends"),
        Check(not tally.wrong, f"{len(tally.wrong)} wrong answers{''.join(f'; {each}' for each in tally.wrong[:5])}"),
        Check(good > 0, f"{good} right answers"),
        Check(stats["in_flight"] == 0, f"{stats['in_flight']} calls of the provider still open"),
        Check(
            stats["open_connections"] <= 1, f"{stats['open_connections'] - 1} connections to the provider still open"
        ),
        Check(left <= files + SPARE_FILES, f"{left} open files, {files} at the start"),
        _check_leaving(tally.left_at, stats["closed_early"]["last"]),
        _check_memory(tally.samples),
    ]


def plans(requests: int, seed: int) -> Iterator[Plan]:
    """The same requests for the same seed."""
    chance = random.Random(seed)  # noqa: S311  a mixture, not a secret
    for number in range(requests):
        draw = chance.random()
        yield Plan(
            message=f"soak {seed}: request {number}",
            door=chance.choice((RESPONSES, CHAT)),
            stream=chance.random() < 0.6,
            leaves_after_s=chance.uniform(0, 0.2) if draw < LEAVE else None,
            pauses_s=chance.uniform(0, 1) if LEAVE <= draw < LEAVE + READ_SLOWLY else 0.0,
        )


async def _send(server: Server, todo: Iterator[Plan], concurrency: int, tally: Tally) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_work(server, todo, tally))


async def _work(server: Server, todo: Iterator[Plan], tally: Tally) -> None:
    """One client after another, on a connection that is kept while it can be."""
    client: Client | None = None
    for plan in todo:
        started = time.monotonic()
        if client is None or not client.is_open:
            client = await Client.connect("127.0.0.1", server.port)
        try:
            async with asyncio.timeout(BOUND_S):
                reply = await _carry_out(client, plan)
        except TimeoutError:
            client.leave()
            tally.wrong.append(f"{plan.message!r} did not end in {BOUND_S:g} s")
            continue
        if reply is None:
            tally.outcomes["the client left"] += 1
            tally.left_at[plan.message] = time.time()
        else:
            tally.slowest_s = max(tally.slowest_s, time.monotonic() - started)
            _judge(plan, reply, tally)
    if client is not None:
        client.leave()


async def _carry_out(client: Client, plan: Plan) -> Reply | None:
    """The reply; None if the client left before its end."""
    client.send(plan.door, ask(plan.door, plan.message, stream=plan.stream))
    if plan.pauses_s:
        client.transport.pause_reading()
        await asyncio.sleep(plan.pauses_s)
        client.transport.resume_reading()
    if plan.leaves_after_s is None:
        return await client.reply()
    try:
        async with asyncio.timeout(plan.leaves_after_s):
            return await client.reply()
    except TimeoutError:
        client.leave()
    return None


def _judge(plan: Plan, reply: Reply, tally: Tally) -> None:
    if not reply.complete:
        outcome = Outcome("broken", reply.status, words="the connection ended before the reply did")
    else:
        outcome = read_outcome(plan.door, reply.status, reply.body, stream=plan.stream)
    whole = answer_text(plan.message)
    is_own = outcome.text == whole if outcome.end == "completed" else whole.startswith(outcome.text)
    if outcome.end == "broken" or not is_own:
        tally.wrong.append(f"{plan.message!r} at {plan.door}, stream={plan.stream}: {outcome}")
    kind = reply.headers.get("x-gymlet-failure-class", "")
    name = {"refused": f"status {outcome.status}, {kind}", "failed": "failed in band, what was said kept"}
    tally.outcomes[name.get(outcome.end, outcome.end)] += 1


async def _watch(server: Server, tally: Tally, requests: int) -> None:
    """Sample the memory; say now and then how far it is."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(SAMPLE_S)
        now = time.monotonic() - started
        tally.samples.append((now, server.rss_bytes()))
        if len(tally.samples) % 15 == 0:
            print(f"  {now:4.0f} s: {tally.ended} of {requests}, {tally.samples[-1][1] / 2**20:.0f} MB", flush=True)


async def _wait_for_rest(provider: Server, server: Server, files: int) -> tuple[dict[str, Any], int]:
    """The provider's counts, and gymlet's open files, once nothing is open or SETTLE_S are over."""
    client = await Client.connect("127.0.0.1", provider.port)
    until = time.monotonic() + SETTLE_S
    while True:
        stats: dict[str, Any] = orjson.loads((await client.get("/stats")).body)
        left = server.open_files()
        at_rest = stats["in_flight"] == 0 and stats["open_connections"] <= 1
        if (at_rest and left <= files) or time.monotonic() > until:
            client.leave()
            return stats, left
        await asyncio.sleep(0.5)


def _check_leaving(left_at: dict[str, float], departures: list[dict[str, Any]]) -> Check:
    """How long after its client a call of the provider ended."""
    ends = [(each["at_unix_s"], left_at.get(each["message"], float("inf"))) for each in departures]
    delays_s = [max(0.0, end - left) for end, left in ends if left < float("inf")]
    if not delays_s:
        return Check(True, "no client left during a call of the provider")
    median_s, longest_s = statistics.median(delays_s), max(delays_s)
    words = f"{len(delays_s)} calls whose client left ended {median_s * 1000:.0f} ms later at the median"
    return Check(median_s < NOTICED_WITHIN_S, f"{words}, {longest_s * 1000:.0f} ms at the most")


def _check_memory(samples: list[tuple[float, int]]) -> Check:
    """Whether the second half's growth is small; a soak that is too short to tell is only bounded."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return Check(True, "memory: too short to tell")
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope
    grown = slope * (half[-1][0] - half[0][0])
    most = max(FLAT_BYTES, FLAT_SHARE * half[0][1])
    first, last = samples[0][1] / 2**20, samples[-1][1] / 2**20
    words = f"memory: {first:.0f} MB at first, {last:.0f} MB at last; the second half grew by {grown / 2**20:+.1f} MB"
    return Check(grown <= most, f"{words} ({slope * 60 / 2**20:+.2f} MB a minute; at most {most / 2**20:.0f} MB)")


def _check_logs(folder: Path, key: str) -> list[Check]:
    text = (folder / "gymlet.log").read_text()
    lines = [line for line in text.splitlines() if not EXPECTED_LINES.match(line)]
    shown = f": {lines[0][:200]!r}" if lines else ""
    return [
        Check(not lines, f"{len(lines)} unexpected lines in the server's log{shown}"),
        Check(key not in text, "the key is not in the server's log"),
    ]


def _show(tally: Tally) -> None:
    for name, count in tally.outcomes.most_common():
        print(f"{count:>8} {100 * count / tally.ended:5.1f} %  {name}")


if __name__ == "__main__":
    sys.exit(run_async(main()))
