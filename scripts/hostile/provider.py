"""The provider that misbehaves: its limits, what it counts, and the server itself."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

import orjson

from scripts.hostile import answers
from scripts.hostile.call import Call, Json
from scripts.hostile.connection import Connection, Request
from scripts.hostile.faults import FAULTS, MIXED, find

BACKLOG = 16_384
KEPT_DEPARTURES, SHOWN_CHARS = 1000, 100
MAX_MESSAGES = 1_000_000
"""Of how many messages the attempts are counted; the oldest are forgotten."""

RATE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What holds for every request.

    ``faults``: the share of attempts that go wrong, for the model ``mix``; ``seed`` says which. ``max_concurrent``:
    more in flight get 429, with ``retry_after_s`` if that is set. ``latency_s``: before every answer, give or take
    half. ``rpm``: more requests in 60 s get 429.
    """

    faults: float = 0.3
    seed: int = 0
    max_concurrent: int | None = None
    retry_after_s: float | None = None
    latency_s: float = 0.0
    rpm: int | None = None


@dataclass(slots=True)
class Counts:
    """What happened since the start, or since POST /reset."""

    requests: int = 0
    completed: int = 0
    throttled: int = 0
    most_in_flight: int = 0
    dropped_unread: int = 0
    closed_early: int = 0
    sent_bytes: int = 0
    by_fault: Counter[str] = field(default_factory=Counter)
    by_key: Counter[str] = field(default_factory=Counter)
    departures: deque[Json] = field(default_factory=lambda: deque(maxlen=KEPT_DEPARTURES))


class HostileProvider:
    """Answers requests for completions as their model says. Owns the counts and the connections."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.counts = Counts()
        self.in_flight = 0
        self.connections: set[Connection] = set()
        self._attempts: dict[str, int] = {}
        self._recent: deque[float] = deque()
        self._released = asyncio.Event()
        self._chance = random.Random(self.options.seed)  # noqa: S311  latencies, not secrets
        self._pages: dict[tuple[str, str], Callable[[], Json]] = {
            ("GET", "/stats"): self.stats,
            ("POST", "/reset"): self.reset,
            ("POST", "/release"): self.release,
        }

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Listen, and close every connection at the end; yields the base URL without /v1."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self), host, port, backlog=BACKLOG)
        try:
            yield f"http://{host}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in list(self.connections):
                connection.reset()
            await asyncio.sleep(0)  # the transports say goodbye in the loop's next turn

    def stats(self) -> Json:
        """What GET /stats shows; keys by their last four characters."""
        counts = self.counts
        return {
            "requests": counts.requests,
            "completed": counts.completed,
            "throttled": counts.throttled,
            "in_flight": self.in_flight,
            "most_in_flight": counts.most_in_flight,
            "open_connections": len(self.connections),
            "dropped_unread": counts.dropped_unread,
            "sent_bytes": self.sent_bytes,
            "by_fault": dict(counts.by_fault),
            "by_key": dict(counts.by_key),
            "closed_early": {"count": counts.closed_early, "last": list(counts.departures)},
        }

    @property
    def sent_bytes(self) -> int:
        """What the system has taken so far, over all connections."""
        return self.counts.sent_bytes + sum(connection.taken_bytes for connection in self.connections)

    def reset(self) -> Json:
        """Forget what was counted, attempts included."""
        self.counts = Counts()
        self._attempts.clear()
        self._recent.clear()
        self._released.clear()
        return {}

    def release(self) -> Json:
        """Let every ``hold`` come to its end."""
        self._released.set()
        return {"released": self.in_flight}

    def attempts(self, message: str) -> int:
        """How often this message was sent."""
        return self._attempts.get(message, 0)

    def opened(self, connection: Connection) -> None:
        """Keep it."""
        self.connections.add(connection)

    def dropped(self, _connection: Connection) -> None:
        """Count it."""
        self.counts.dropped_unread += 1

    def closed(self, connection: Connection) -> None:
        """Forget it, but not what it took."""
        self.connections.discard(connection)
        self.counts.sent_bytes += connection.taken_bytes

    async def answer(self, connection: Connection, request: Request) -> None:
        """A completion, or one of the pages about them."""
        method, path, _ = request.head.words
        page = self._pages.get((method, path.partition("?")[0]))
        if page is not None:
            await _say(connection, 200, page())
        elif method == "POST" and path.partition("?")[0].endswith("/chat/completions"):
            await self._complete(connection, request)
        else:
            await _say(connection, 404, {"error": {"message": f"there is no {method} {path}", "code": "not_found"}})

    async def _complete(self, connection: Connection, request: Request) -> None:
        try:
            body = orjson.loads(request.body)
            message = last_user_message(body["messages"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            await _say(connection, 400, {"error": {"message": f"no chat request: {error!r}", "code": "bad_request"}})
            return
        authorization = request.head.headers.get("authorization", "")
        call = Call(
            connection, message, body.get("stream") is True, self._attempt(message), authorization, self._released
        )
        self.counts.requests += 1
        self.counts.by_key[f"…{authorization[-4:]}"] += 1
        await self._admit(call, str(body.get("behaviour") or body.get("model")))

    def _attempt(self, message: str) -> int:
        attempt = self._attempts.pop(message, 0) + 1
        self._attempts[message] = attempt
        if len(self._attempts) > MAX_MESSAGES:
            del self._attempts[next(iter(self._attempts))]
        return attempt

    async def _admit(self, call: Call, model: str) -> None:
        """Answer, unless the limits of the whole server are reached."""
        refusal = self._over_limit()
        if refusal:
            self._count(refusal)
            wait = self.options.retry_after_s
            await call.refuse(429, refusal, headers=None if wait is None else {"Retry-After": f"{wait:g}"})
            return
        self.in_flight += 1
        self.counts.most_in_flight = max(self.counts.most_in_flight, self.in_flight)
        try:
            await self._behave(call, model)
        finally:
            self.in_flight -= 1

    def _over_limit(self) -> str:
        limit, rpm = self.options.max_concurrent, self.options.rpm
        if limit is not None and self.in_flight >= limit:
            return "too many requests in flight"
        if rpm is None:
            return ""
        now = time.monotonic()
        while self._recent and self._recent[0] < now - RATE_WINDOW_S:
            self._recent.popleft()
        if len(self._recent) >= rpm:
            return "too many requests in this minute"
        self._recent.append(now)
        return ""

    async def _behave(self, call: Call, model: str) -> None:
        model = self._draw(call) if model == "mix" else model
        try:
            fault, argument, once = find(model)
        except KeyError:
            await call.refuse(404, _unknown(model))
            return
        if once and call.attempt > 1:
            fault, argument, model = FAULTS["ok"], FAULTS["ok"].default, "ok"
        self._count(model)
        started = time.time()
        try:
            if self.options.latency_s:
                await asyncio.sleep(self.options.latency_s * self._chance.uniform(0.5, 1.5))
            await fault.run(call, argument)
        except asyncio.CancelledError:
            if not (call.completed or call.connection.ended_here):
                self._left(call, model, started)
            raise
        finally:
            self.counts.completed += call.completed

    def _draw(self, call: Call) -> str:
        """What ``mix`` means for this attempt: the same for the same seed, message and attempt."""
        digest = hashlib.sha256(f"{self.options.seed}/{call.message}/{call.attempt}".encode()).digest()
        if int.from_bytes(digest[:4]) >= self.options.faults * 2**32:
            return "ok"
        return MIXED[int.from_bytes(digest[4:8]) % len(MIXED)]

    def _count(self, model: str) -> None:
        self.counts.by_fault[model] += 1
        self.counts.throttled += model.startswith(("throttle", "quota", "too many", "status:429"))

    def _left(self, call: Call, model: str, started: float) -> None:
        now = time.time()
        self.counts.closed_early += 1
        message = call.message[:SHOWN_CHARS]
        self.counts.departures.append(
            {"message": message, "model": model, "at_unix_s": now, "after_s": now - started},
        )


def last_user_message(messages: list[Json]) -> str:
    """The text of the last message that a user wrote; "" if there is none. It is what attempts are counted by."""
    content = next((each.get("content") for each in reversed(messages) if each.get("role") == "user"), "")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


async def _say(connection: Connection, status: int, payload: Json) -> None:
    body = orjson.dumps(payload)
    await connection.send(answers.head(status, "application/json", len(body)) + body)


def _unknown(model: str) -> str:
    near = get_close_matches(model.partition(":")[0], FAULTS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(FAULTS)}"
    return f"there is no behaviour '{model}'; {hint}"
