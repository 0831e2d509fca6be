"""The soak in its short form: the same checks as `make soak`, on fewer requests; and when a limit is settled."""

import asyncio
import sys
from pathlib import Path

import pytest

from scripts.hidden_limit import settled

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


SETTLED = {
    "at once": ([40] * 10, 1),
    "after a climb": ([1, 2, 4, 8, 16, 32, *[40] * 10], 6),
    "a dip counts by its mean": ([*[40] * 6, 20, *[40] * 6], 1),
    "too high for long": ([*[80] * 5, *[40] * 10], 6),
    "lost again": ([*[40] * 10, *[80] * 5], None),
    "never": ([10] * 10, None),
}


@pytest.mark.parametrize(("limits", "second"), SETTLED.values(), ids=SETTLED)
def test_when_a_limit_is_settled(limits, second):
    assert settled(limits, 40, 0.2) == second
