"""A collector to be killed: rollouts of a random few milliseconds."""

import asyncio
import random
import sys
from pathlib import Path

from gymlet.rollout.collect import Job, Run
from gymlet.rollout.executor import LocalExecutor
from gymlet.rollout.files import RunFiles
from gymlet.rollout.sources import open_source
from gymlet.rollout.tasks import Expansion


async def run_agent(_agent, _row):
    await asyncio.sleep(random.uniform(0, 0.03))
    return {"reward": 1.0}


async def main(folder):
    job = Job(open_source(folder / "rows.jsonl"), RunFiles(folder / "run.jsonl"), Expansion(agent_name="a"))
    with Run(job) as run:
        await run.collect(LocalExecutor(run_agent, parallel=8), stop=asyncio.Event())


asyncio.run(main(Path(sys.argv[1])))
