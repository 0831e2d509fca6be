"""What is seen of a run while it goes: a line that moves in a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console

from gymlet.rollout.collect import Run
from gymlet.rollout.pace import Pace

FRAME_S = 0.25
LINE_S = 10.0

LIMITS = ("limit", "in_flight", "queued", "retries", "throttled", "cached")
"""What is asked of the models."""

Limits = Callable[[], Awaitable[Counter[str]]]


class Progress:
    """Reads a run's counts now and then; a rollout itself costs nothing here."""

    def __init__(self, run: Run, limits: Limits) -> None:
        self._run = run
        self._limits = limits
        self._pace = Pace(time.monotonic())

    async def line(self) -> str:
        """How far the run is: ``154/359 rollouts, 2 failed, 12.3/s, 0:16 left, connections 64 of 64 …``."""
        counts = self._run.counts
        self._pace.add(time.monotonic(), self._run.ended)
        left_s = self._pace.left_s(counts.expected - counts.ok - counts.failed)
        words = [
            f"{counts.ok}/{counts.expected} rollouts",
            f"{counts.failed} failed" if counts.failed else "",
            f"{self._pace.per_s:.1f}/s",
            f"{_clock(left_s)} left" if left_s is not None else "",
            _connections(await self._limits()),
        ]
        return ", ".join(word for word in words if word)


def _connections(limits: Counter[str]) -> str:
    if not limits["limit"]:
        return ""
    words = [f"connections {limits['in_flight']} of {limits['limit']}"]
    words += [f"{limits[name]} {name}" for name in ("queued", "retries", "throttled", "cached") if limits[name]]
    return ", ".join(words)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@asynccontextmanager
async def shown(run: Run, limits: Limits) -> AsyncIterator[None]:
    """Show the run's progress on stderr while the body runs."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    draw = _draw_bar if console.is_terminal else _draw_lines
    drawing = asyncio.create_task(draw(console, Progress(run, limits), run))
    try:
        yield
    finally:
        drawing.cancel()
        await asyncio.wait({drawing})


async def _draw_lines(console: Console, progress: Progress, _run: Run) -> None:
    while True:
        await asyncio.sleep(LINE_S)
        console.print(await progress.line(), markup=False)


async def _draw_bar(console: Console, progress: Progress, run: Run) -> None:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn  # noqa: PLC0415  only a terminal needs them
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns: list[Any] = [BarColumn(), TaskProgressColumn(), TextColumn("{task.description}", markup=False)]
    with Bar(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=run.expected, completed=run.counts.ok)
        try:
            while True:
                bar.update(task, completed=run.counts.ok, description=await progress.line(), refresh=True)
                await asyncio.sleep(FRAME_S)
        finally:
            bar.update(task, completed=run.counts.ok, refresh=True)
