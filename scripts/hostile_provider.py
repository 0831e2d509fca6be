"""A provider that throttles, stalls, resets and lies, on a real socket: to see what a client makes of it.

    python scripts/hostile_provider.py --port 9001 [--max-concurrent 40] [--latency-s 0.2]
    python scripts/hostile_provider.py --list

It speaks OpenAI's chat completions. The request's ``model`` chooses how it goes wrong (docs/hostile_provider.md); a
field ``behaviour`` in the request goes before it. Good answers repeat the hash of the last user message, so that a
client can tell its own. GET /stats shows what happened, POST /reset forgets it, POST /release ends what is held.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gymlet.cli.console import run_async
from scripts.hostile.faults import FAULTS, MIXED
from scripts.hostile.provider import HostileProvider, Options


def main() -> None:
    """Serve until a signal."""
    given = _arguments()
    if given.list:
        _show_faults()
        return
    options = Options(
        faults=given.faults,
        seed=given.seed,
        max_concurrent=given.max_concurrent,
        retry_after_s=given.retry_after,
        latency_s=given.latency_s,
        rpm=given.rpm,
    )
    run_async(_serve(options, given.host, given.port))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--list", action="store_true", help="show every behaviour and end")
    parser.add_argument("--faults", type=float, default=0.3, help="the share of attempts that go wrong with model mix")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--max-concurrent", type=int, help="answer 429 when more are in flight")
    parser.add_argument("--retry-after", type=float, help="seconds, told with the 429 of a limit")
    parser.add_argument("--latency-s", type=float, default=0.0, help="before each answer, give or take half")
    parser.add_argument("--rpm", type=int, help="answer 429 to more requests in 60 s")
    return parser.parse_args()


def _show_faults() -> None:
    for name, fault in FAULTS.items():
        shown = f"{name}:{fault.default}" if fault.default else name
        print(f"{shown:<28} {fault.line}{', then good' if fault.once else ''}")
    print(f"{'<name>-once[:…]':<28} goes wrong at the first attempt of a message, then good")
    print(f"{'mix':<28} draws for each attempt, with the share --faults, from these:")
    print(
        textwrap.fill(" ".join(MIXED), 110, initial_indent=" " * 29, subsequent_indent=" " * 29, break_on_hyphens=False)
    )


async def _serve(options: Options, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with HostileProvider(options).serving(host, port) as url:
        print(f"hostile provider: policy_base_url={url}/v1", flush=True)
        await stop.wait()


if __name__ == "__main__":
    main()
