"""One rollout: a task goes to an agent, and what comes back is a row, a failure, or nothing to keep."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import orjson

from gymlet.rollout.keys import Key, key_of
from gymlet.rollout.manifest import now
from gymlet.rollout.metrics import ROLLOUT, TASK
from gymlet.wire.errors import AgentError, GymletError, VerifierError

Json = dict[str, Any]
RunAgent = Callable[[str, Json], Awaitable[Json]]
"""An agent's name and a row to its reply; raises GymletError, named by whose fault it was."""

SCHEMA_VERSION = 1
STAMPS = (TASK, ROLLOUT, "agent_ref", "_ng_attempt_index")
CANCEL_S = 1.0
"""What an agent gets to let go of what it holds, once it is cancelled; then nobody waits for it any more."""

MAX_MESSAGE_CHARS = 10_000
"""An exception may say anything, and is filed once an attempt."""

_ORJSON = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True)
class Success:
    """A verified rollout; the line to keep."""

    key: Key
    line: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """A rollout that ended without a score; the line for the failures file.

    ``terminal``: never to be tried again.
    """

    key: Key
    line: bytes
    failure_class: str
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class NotKept:
    """The agent asked to keep nothing (``_ng_no_persist``): as if it had not been tried, but not again in this run."""

    key: Key


Ended = Success | Failure | NotKept


async def run(task: Json, run_agent: RunAgent, *, timeout_s: float | None = None) -> Ended:
    """Run one task. Never raises but for cancellation: a bad rollout is data."""
    started = time.perf_counter()
    stamps = {key: task[key] for key in STAMPS if key in task}
    try:
        reply = await _reply(task, run_agent, timeout_s)
        return _ended(task, reply, stamps, total_s=time.perf_counter() - started)
    except GymletError as error:
        return failed(task | stamps, error)
    except asyncio.CancelledError:
        if _is_being_cancelled():
            raise
        return failed(task | stamps, AgentError("the agent cancelled itself"))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  whatever an agent does, the other rollouts go on
        return failed(task | stamps, AgentError(_words(error)))


async def _reply(task: Json, run_agent: RunAgent, timeout_s: float | None) -> Json:
    """The agent's reply. With a deadline it runs in a task of its own: it might not let itself be cancelled."""
    replying = run_agent(task["agent_ref"]["name"], task)
    if timeout_s is None:
        return await replying
    own = asyncio.ensure_future(replying)
    try:
        await asyncio.wait({own}, timeout=timeout_s)
        if own.done():
            return own.result()
        raise GymletError(f"not ended after {timeout_s:g} s", failure_class="timeout")
    finally:
        if not own.done():
            own.cancel()
            await asyncio.wait({own}, timeout=CANCEL_S)
            own.add_done_callback(lambda late: late.cancelled() or late.exception())


def _is_being_cancelled() -> bool:
    this = asyncio.current_task()
    return this is not None and this.cancelling() > 0


def _ended(task: Json, reply: Json, stamps: Json, *, total_s: float) -> Ended:
    """Raises VerifierError for a reply without a reward, TypeError for one that is no JSON."""
    if not isinstance(reply, dict):
        raise AgentError(f"the agent answered with {type(reply).__name__}, not with an object")
    if reply.get("_ng_no_persist"):
        return NotKept(key_of(stamps))
    failure_class = reply.get("_ng_failure_class")
    if failure_class:
        return _filed(task, reply, stamps, str(failure_class))
    if not _is_reward(reply.get("reward")):
        raise VerifierError(f"the verifier answered without a finite reward: {reply.get('reward')!r}")
    times = {**(reply.get("_ng_timings") or {}), "total_s": round(total_s, 6)}
    row = {**stamps, **task, **reply, **stamps, "_ng_schema_version": SCHEMA_VERSION, "_ng_timings": times}
    return Success(key_of(stamps), orjson.dumps(row, option=_ORJSON))


def _is_reward(value: object) -> TypeGuard[float]:
    if isinstance(value, float | int):
        return math.isfinite(value)
    return hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0 and math.isfinite(float(value))  # type: ignore[arg-type]  # a number of numpy


def _filed(task: Json, reply: Json, stamps: Json, failure_class: str) -> Failure:
    """The failure that an agent or a verifier answered with."""
    told = {"class": failure_class, "message": str(reply.get("_ng_failure_message") or "the reply says so")}
    row = {**stamps, **task, "error": _error(stamps, told), **reply, **stamps}
    terminal = reply.get("_ng_failure_terminal") is True
    return Failure(key_of(stamps), orjson.dumps(row, option=_ORJSON), failure_class, terminal)


def failed(task: Json, error: GymletError) -> Failure:
    """The failure that an error was."""
    told = {"class": error.failure_class, "message": error.message, "status": error.status, "code": error.code}
    for name in ("provider", "request_id"):
        if getattr(error, name, None) is not None:
            told[name] = getattr(error, name)
    told = {name: _plain(value) for name, value in told.items()}
    stamps = {name: task[name] for name in STAMPS if name in task}
    outcome = {"_ng_failure_class": error.failure_class, "error": _error(task, told)}
    try:
        line = orjson.dumps({**stamps, **task, **outcome}, option=_ORJSON | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # the agent left in the row what is no JSON
        line = orjson.dumps({**stamps, **outcome}, option=_ORJSON)
    return Failure(key_of(task), line, error.failure_class)


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  an exception's own code may break, too
        return type(error).__name__


def _plain(value: object) -> object:
    """The value, or its text where JSON has no such value; half a character becomes a question mark."""
    if isinstance(value, str) and len(value) > MAX_MESSAGE_CHARS:
        value = f"{value[:MAX_MESSAGE_CHARS]}… ({len(value)} characters)"
    try:
        orjson.dumps(value)
    except TypeError:
        return str(value).encode(errors="replace").decode()
    return value


def _error(stamps: Json, told: Json) -> Json:
    attempt = stamps.get("_ng_attempt_index", 0)
    return {"class": None, "message": None, "status": None, "provider": None, **told, "attempt": attempt, "when": now()}
