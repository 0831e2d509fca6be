"""A call of a provider: a permit, an attempt, and another one while that may help.

Nothing is tried again once a byte of the answer has reached the client. Before it, what broke on the way is (no
connection, a reset), and what the provider says will pass (408, 409, 425, 429, 5xx); nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from gymlet.config.schema import ModelOptions
from gymlet.upstream.lane import Outcome
from gymlet.upstream.limiter import Limiter, Permit, TurnedAway
from gymlet.upstream.pool import Ask
from gymlet.upstream.provider import Provider
from gymlet.upstream.transport import Answer, Transport, timed_out
from gymlet.upstream.waits import backoff_s
from gymlet.upstream.watch import CALLS
from gymlet.wire.errors import ProviderError, StreamError

Json = dict[str, Any]
T = TypeVar("T")
Consume = Callable[[Answer], Awaitable[T]]
"""Reads an answer to its end. It raises ProviderError only while the client has seen nothing of it: then it may be
called again, with another answer."""

CHARS_PER_TOKEN = 4
"""A guess, until the provider has counted."""

FIRST_BYTE_PATIENCE_S = 15.0
"""A streamed answer is begun after so long without a byte; until then a failure can be told by a status."""


class Upstream:
    """Calls one provider. Owns its connections and the calls under way; permits come from ``limiter``."""

    def __init__(self, provider: Provider, options: ModelOptions, limiter: Limiter) -> None:
        self.provider = provider
        self.limiter = limiter
        self.retries = 0
        self._options = options
        self._transport = Transport(provider, options)
        self._attempts: set[_Attempt] = set()
        self._closing = asyncio.Event()
        self._closed_by: StreamError | None = None
        self._last_failure = ""

    async def close(self) -> None:
        """Give the connections back."""
        await self._transport.close()

    def interrupt(self, error: StreamError) -> None:
        """End every call with ``error``: those that wait, those under way, and those to come."""
        self._closed_by = error
        self._closing.set()
        self.limiter.close()
        for attempt in tuple(self._attempts):
            attempt.fail(copy(error))

    async def call(self, body: Json, consume: Consume[T], *, session: str | None = None) -> T:
        """Send one chat request, and have ``consume`` read the answer.

        ``session``: calls with the same one go to the same endpoint. Raises ProviderError when the last attempt failed.
        """
        call = _Call(orjson.dumps(body), None if session is None else _digest(session))
        while True:
            permit = await self._permit(call)
            try:
                return await self._attempt(permit, call.body, consume)
            except ProviderError as error:
                pause_s = self._pause_s(call, permit, error)
            await self._rest(pause_s)

    async def to_json(self) -> Json:
        """The state of the queue and the endpoints."""
        return {**await self.limiter.to_json(), "retries": self.retries}

    async def _permit(self, call: _Call) -> Permit:
        options, loop = self._options, asyncio.get_running_loop()
        asked_at = loop.time()
        left_s = call.left_s(options.max_retry_s, asked_at)
        try:
            permit = await self.limiter.acquire(
                Ask(
                    tokens=len(call.body) // CHARS_PER_TOKEN,
                    session=call.session,
                    place=call.place,
                    tried=frozenset(call.tried),
                    wait_s=options.queue_timeout_s if call.started is None else min(options.queue_timeout_s, left_s),
                    down_wait_s=left_s,
                )
            )
        except TurnedAway as answer:
            raise self._turned_away(call, answer) from answer
        now = loop.time()
        call.place = permit.place
        call.started = now if call.started is None else call.started
        log = CALLS.get()
        if log is not None:
            log.queued_s += now - asked_at
        return permit

    async def _attempt(self, permit: Permit, body: bytes, consume: Consume[T]) -> T:
        outcome: Outcome = "left"
        wait_s = 0.0
        attempt = _Attempt(self._options.total_timeout_s)
        self._attempts.add(attempt)
        try:
            answer = await attempt.open(self._transport.send(permit.lane, body))
            await answer.begin(FIRST_BYTE_PATIENCE_S)
            permit.answered()
            attempt.note_first_byte()
            result = await consume(answer)
            outcome = answer.outcome
        except ProviderError as error:
            error.hide(self.provider.redact)
            self._classify(error)
            outcome, wait_s = _outcome(error), error.wait_s or 0.0
            raise
        else:
            if outcome == "ok":
                await answer.drain()
            return result
        finally:
            self._attempts.discard(attempt)
            permit.end(outcome, wait_s=wait_s, tokens=attempt.close())

    def _classify(self, error: ProviderError) -> None:
        """A wait that is longer than anybody waits means that a quota is spent."""
        most_s = self._options.max_retry_after_s
        if error.wait_s is not None and error.wait_s > most_s:
            error.amend(f"; it asks to wait {error.wait_s:.0f} s, and the most is {most_s:g} s (max_retry_after_s)")
            error.transient, error.wait_s = False, None
            if error.status == 429:
                error.failure_class = "provider_quota_exhausted"
        if _outcome(error) in ("unreachable", "failed"):
            self._last_failure = error.message

    def _pause_s(self, call: _Call, permit: Permit, error: ProviderError) -> float:
        """Seconds until the next attempt. Raises the error where there is none."""
        options = self._options
        call.attempts += 1
        elsewhere = permit.lane not in call.tried and len(call.tried) + 1 < len(self.provider.endpoints)
        call.tried.add(permit.lane)
        pause_s = 0.0 if elsewhere else self._backoff_s(call.attempts)
        asked_s = 0.0 if elsewhere else error.wait_s or 0.0
        late = max(pause_s, asked_s) > call.left_s(options.max_retry_s, asyncio.get_running_loop().time())
        hopeless = not error.transient and not (elsewhere and error.failure_class == "provider_quota_exhausted")
        if hopeless or call.attempts > options.max_retries or late or self._closed_by:
            raise call.told(error)
        call.last_error = error
        self.retries += 1
        log = CALLS.get()
        if log is not None:
            log.retries += 1
        return pause_s

    def _backoff_s(self, attempts: int) -> float:
        options = self._options
        return backoff_s(attempts, base_s=options.retry_base_s, most_s=options.retry_max_s, chance=random.random)

    async def _rest(self, pause_s: float) -> None:
        if pause_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closing.wait()

    def _turned_away(self, call: _Call, answer: TurnedAway) -> ProviderError:
        options = self._options
        if self._closed_by is not None:
            return copy(self._closed_by)
        if call.last_error is not None:
            return call.told(call.last_error)
        match answer.refusal:
            case "queue_full":
                return ProviderError(
                    f"{options.max_queued_requests} requests wait already (max_queued_requests)",
                    status=429,
                    code="queue_full",
                    error_type="too_many_requests",
                    failure_class="provider_rate_limited",
                    retry_after="1",
                )
            case "queue_timeout":
                return ProviderError(
                    f"no slot to call the provider came free in {options.queue_timeout_s:g} s (queue_timeout_s)",
                    status=504,
                    code="queue_timeout",
                    failure_class="timeout",
                )
        return ProviderError(f"the provider has been out of reach for too long: {self._last_failure}", status=503)


CLIENT_GRACE_S = 10.0
"""What a client gets to take the end of a reply in."""


@dataclass(slots=True)
class _Call:
    """A call over all its attempts. ``started``: when the first of them began."""

    body: bytes
    session: str | None
    started: float | None = None
    place: int | None = None
    attempts: int = 0
    tried: set[int] = field(default_factory=set)
    last_error: ProviderError | None = None

    def left_s(self, most_s: float, now: float) -> float:
        """How much is left of so many seconds for all attempts."""
        return most_s if self.started is None else max(0.0, self.started + most_s - now)

    def told(self, error: ProviderError) -> ProviderError:
        """The error that ends it, with how often it was tried."""
        if self.attempts > 1:
            error.amend(f" (tried {self.attempts} times)")
        return error


class _Attempt:
    """One attempt under way. Owns its answer and its deadline, and can be ended from elsewhere at any time."""

    __slots__ = ("_answer", "_cancelling", "_error", "_started", "_task", "_timer")

    def __init__(self, total_timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._started = loop.time()
        task = asyncio.current_task(loop)
        assert task is not None, "calls are made in tasks"  # noqa: S101
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = loop.call_later(total_timeout_s, self._expire, total_timeout_s)
        self._answer: Answer | None = None
        self._error: StreamError | None = None

    async def open(self, sending: Awaitable[Answer]) -> Answer:
        """The answer, once its headers are there."""
        try:
            self._answer = await sending
        except BaseException as error:
            if self._error is None or (self._take_back() and isinstance(error, asyncio.CancelledError)):
                raise
            raise self._error from None
        return self._answer

    def fail(self, error: StreamError) -> None:
        """End it with ``error``; a client that does not take even that is let go of after a while."""
        known, self._error = self._error, error
        if self._answer is not None:
            self._answer.fail(error)
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(CLIENT_GRACE_S, self._task.cancel)
        elif known is None:
            self._task.cancel()

    def _take_back(self) -> bool:
        """Undo the cancellation of ``fail``; whether somebody else has cancelled the task, too."""
        return self._task.uncancel() > self._cancelling

    def _expire(self, total_timeout_s: float) -> None:
        self.fail(timed_out(f"the provider's reply took more than {total_timeout_s:g} s (total_timeout_s)"))

    def note_first_byte(self) -> None:
        """Tell whoever listens how long it took."""
        log = CALLS.get()
        if log is not None and log.ttft_s is None:
            log.ttft_s = asyncio.get_running_loop().time() - self._started

    def close(self) -> int | None:
        """Let go of the connection; the tokens that the provider counted."""
        self._timer.cancel()
        if self._answer is None:
            return None
        self._answer.close()
        return self._answer.tokens


def _digest(session: str) -> str:
    """As long for every session: a client chooses its name, and each ask in the queue has it."""
    return hashlib.blake2b(session.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _outcome(error: ProviderError) -> Outcome:
    if error.unreachable:
        return "unreachable"
    if error.status == 429:
        return "throttled"
    if error.status == 500 and not isinstance(error, StreamError):
        return "erred"
    return "rejected" if error.status < 500 and not error.transient else "failed"
