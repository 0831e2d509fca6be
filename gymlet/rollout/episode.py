"""One rollout: a task goes to an agent, and what comes back is a row, a failure, or nothing to keep."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gymlet.rollout.manifest import now
from gymlet.rollout.metrics import ROLLOUT, TASK
from gymlet.wire.errors import AgentError, GymletError, VerifierError

Json = dict[str, Any]
RunAgent = Callable[[str, Json], Awaitable[Json]]
"""An agent's name and a row to its reply; raises GymletError, named by whose fault it was."""

SCHEMA_VERSION = 1
STAMPS = (TASK, ROLLOUT, "agent_ref", "_ng_attempt_index")


@dataclass(frozen=True, slots=True)
class Success:
    """A verified rollout; the row to keep."""

    row: Json


@dataclass(frozen=True, slots=True)
class Failure:
    """A rollout that ended without a score; the row for the failures file."""

    row: Json


@dataclass(frozen=True, slots=True)
class NotKept:
    """The agent asked to keep nothing (``_ng_no_persist``): the run goes on as if it had not been tried."""


Ended = Success | Failure | NotKept


async def run(task: Json, run_agent: RunAgent, *, timeout_s: float | None = None) -> Ended:
    """Run one task. Never raises but for cancellation: a bad rollout is data."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            reply = await run_agent(task["agent_ref"]["name"], task)
        _check_reward(reply)
    except TimeoutError as error:
        return _failed(task, GymletError(_late(error, timeout_s), failure_class="timeout"))
    except GymletError as error:
        return _failed(task, error)
    except Exception as error:  # noqa: BLE001  whatever an agent does, the other rollouts go on
        return _failed(task, AgentError(f"{type(error).__name__}: {error}"))
    if reply.get("_ng_no_persist"):
        return NotKept()
    stamps = {key: task[key] for key in STAMPS if key in task}
    if reply.get("_ng_failure_class"):
        return Failure({**task, **reply, **stamps})
    total_s = time.perf_counter() - started
    times = {**(reply.get("_ng_timings") or {}), "total_s": round(total_s, 6)}
    return Success({**task, **reply, **stamps, "_ng_schema_version": SCHEMA_VERSION, "_ng_timings": times})


def _check_reward(reply: Json) -> None:
    if reply.get("_ng_failure_class") or reply.get("_ng_no_persist"):
        return
    reward = reply.get("reward")
    if not isinstance(reward, bool | int | float) or not math.isfinite(reward):
        raise VerifierError(f"the verifier answered without a finite reward: {reward!r}")


def _late(error: TimeoutError, timeout_s: float | None) -> str:
    return f"not ended after {timeout_s:g} s" if timeout_s else str(error) or "timed out"


def _failed(task: Json, error: GymletError) -> Failure:
    told = {
        "class": error.failure_class,
        "message": error.message,
        "status": error.status,
        "code": error.code,
        "attempt": task.get("_ng_attempt_index", 0),
        "when": now(),
    }
    return Failure({**task, "_ng_failure_class": error.failure_class, "error": told})
