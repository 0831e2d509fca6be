"""The benchmark's peer for rollouts: an aiohttp loop that makes the same calls, reads the answers, and keeps nothing.

python scripts/bare_loop.py rows.jsonl http://127.0.0.1:9000/v1 64 [uvloop|asyncio]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import orjson
import uvloop


async def main(path: Path, url: str, parallel: int) -> None:
    """One call a row."""
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        with path.open("rb") as rows:

            async def work() -> None:
                for row in rows:
                    messages = orjson.loads(row)["responses_create_params"]["input"]
                    body = orjson.dumps({"model": "lean", "messages": messages})
                    async with session.post(f"{url}/chat/completions", data=body) as response:
                        orjson.loads(await response.read())

            async with asyncio.TaskGroup() as group:
                for _ in range(parallel):
                    group.create_task(work())


EVENT_LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}

if __name__ == "__main__":
    with asyncio.Runner(loop_factory=EVENT_LOOPS[(*sys.argv, "uvloop")[4]]) as runner:
        runner.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
