"""The soak in its short form: the same checks as `make soak`, on fewer requests."""

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 110


async def test_every_request_ends_with_its_own_answer_or_an_error():
    command = (sys.executable, "scripts/soak.py", "--requests", "2000", "--concurrency", "256")
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        out, _ = await asyncio.wait_for(process.communicate(), BOUND_S)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, out.decode()
