"""One way to a provider: an endpoint with a key, what it takes, and whether it works. Pure; the clock is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from gymlet.upstream.limit import AdaptiveLimit, Spent, Window

Json = dict[str, Any]

Outcome = Literal["ok", "rejected", "throttled", "unreachable", "failed", "erred", "left"]
"""How a call ended.

ok: answered · rejected: the request was at fault (4xx) · throttled: one too many (429) · unreachable: no connection ·
failed: another 5xx, a reset, a timeout · erred: 500, which some say of a request that is at fault · left: the client
went away, which says nothing of the provider.
"""

OUTCOMES: tuple[Outcome, ...] = ("ok", "rejected", "throttled", "unreachable", "failed", "erred", "left")

MAX_FAILURES = 8
"""Calls in a row without an answer, after which an endpoint rests. With 3 of 10 failing by chance: once in 15,000."""

SETTLED_S = 1.0
"""A provider that has kept a call for so long has taken it."""

FIRST_REST_S, MOST_REST_S = 1.0, 30.0


class Breaker:
    """Whether an endpoint is worth asking (Nygard 2007, "Release It!"). Owns the count of failures in a row.

    After MAX_FAILURES it rests; then one call goes out to see, and its end decides.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._rest_s = 0.0
        self._probing = False
        self.rests_until: float | None = None

    @property
    def closed(self) -> bool:
        """Whether calls go through as usual."""
        return self.rests_until is None

    def lets_through(self, now: float) -> bool:
        """Whether a call may go out now."""
        return self.rests_until is None or (now >= self.rests_until and not self._probing)

    def sent(self) -> bool:
        """A call goes out; whether it is the one that finds out."""
        self._probing = self.rests_until is not None
        return self._probing

    def answered(self) -> None:
        """An endpoint that answers works, whatever it says."""
        self._failures, self._rest_s, self._probing, self.rests_until = 0, 0.0, False, None

    def failed(self, *, probe: bool, now: float) -> None:
        """A call had no answer; while the endpoint rests, only the probe's end counts."""
        if self.rests_until is not None and not probe:
            return
        self._failures += 1
        self._probing = False
        if probe or self._failures >= MAX_FAILURES:
            self._rest_s = min(MOST_REST_S, self._rest_s * 2 or FIRST_REST_S)
            self.rests_until = now + self._rest_s

    def abandoned(self, *, probe: bool) -> None:
        """A call ended before it could tell."""
        if probe:
            self._probing = False


@dataclass(slots=True)
class Grant:
    """A call that may go out. ``lane`` is its place in the pool's list; the rest is the lane's own.

    ``answered``: a good answer began; ``settled``: the limit has been told of it.
    """

    lane: int
    at: float
    saturated: bool
    probe: bool
    tokens: int
    spent: Spent | None = None
    answered: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What one endpoint with its key takes; None: no limit of that kind."""

    num_concurrent_requests: int
    adaptive: bool = True
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Lane:
    """Owns the calls in flight to one endpoint, and what is known of it. ``name`` may be shown."""

    def __init__(self, index: int, name: str, limits: LaneLimits, *, weight: float = 1.0) -> None:
        self.index = index
        self.name = name
        self.weight = weight
        self.in_flight = 0
        self._limit = AdaptiveLimit(limits.num_concurrent_requests, adaptive=limits.adaptive)
        self._breaker = Breaker()
        self._requests = Window(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = Window(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._reply_tokens = 0.0
        self._paused_until = 0.0
        self._unsettled: deque[Grant] = deque()
        self._counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self._sent = 0

    @property
    def works(self) -> bool:
        """Whether calls go through as usual."""
        return self._breaker.closed

    def takes_calls(self, now: float) -> bool:
        """Whether calls may go there, be it one to find out."""
        return self._breaker.lets_through(now)

    @property
    def load(self) -> float:
        """How busy it would be with one more call."""
        return (self.in_flight + 1) / self.weight

    def has_room(self, tokens: int, now: float) -> bool:
        """Whether a call of so many tokens may go out now."""
        self._settle(now)
        return (
            self.in_flight < self._limit.now and self._breaker.lets_through(now) and self._opens_at(tokens, now) <= now
        )

    def free_at(self, tokens: int, now: float) -> float | None:
        """When time alone may make room; None where only the end of a call does."""
        if self.in_flight >= self._limit.now:
            return self._unsettled[0].at + SETTLED_S if self._unsettled else None
        if not self._breaker.lets_through(now) and now >= (self._breaker.rests_until or 0.0):
            return None
        return max(self._opens_at(tokens, now), self._breaker.rests_until or 0.0)

    def take(self, tokens: int, now: float) -> Grant:
        """Send a call of so many tokens (of the prompt, by estimate)."""
        self.in_flight += 1
        self._sent += 1
        if self._requests is not None:
            self._requests.spend(1, now)
        spent = None if self._tokens is None else self._tokens.spend(tokens + self._reply_tokens, now)
        saturated = self.in_flight >= self._limit.now
        grant = Grant(self.index, now, saturated, self._breaker.sent(), tokens, spent)
        self._unsettled.append(grant)
        return grant

    def answered(self, grant: Grant, now: float) -> None:
        """A good answer began."""
        grant.answered = True
        self._breaker.answered()
        self._accept(grant, now)

    def ended(
        self, grant: Grant, outcome: Outcome, now: float, *, wait_s: float = 0.0, tokens: int | None = None
    ) -> None:
        """The call is over. ``wait_s``: what the provider asks to wait; ``tokens``: what it counted, where it told."""
        self.in_flight -= 1
        grant.settled = True
        self._counts[outcome] += 1
        self._paused_until = max(self._paused_until, now + wait_s)
        self._settle_tokens(grant, outcome, tokens, now)
        if outcome in ("ok", "rejected", "throttled"):
            self._breaker.answered()
        elif outcome in ("left", "erred") or grant.answered:
            self._breaker.abandoned(probe=grant.probe)
        else:
            self._breaker.failed(probe=grant.probe, now=now)
        match outcome:
            case "throttled":
                self._limit.throttled(sent_at=grant.at, now=now)
            case "unreachable":
                self._limit.unreachable(sent_at=grant.at, now=now)
            case "failed" | "erred":
                self._limit.faltered(now=now)

    def to_json(self, now: float) -> Json:
        """What may be told of it; times in seconds from now."""
        rests = self._breaker.rests_until
        return {
            "endpoint": self.name,
            "limit": self._limit.now,
            "in_flight": self.in_flight,
            "sent": self._sent,
            **self._counts,
            "paused_s": round(max(0.0, self._paused_until - now), 3),
            "resting_s": None if rests is None else round(max(0.0, rests - now), 3),
        }

    def _opens_at(self, tokens: int, now: float) -> float:
        at = self._paused_until
        if self._requests is not None:
            at = max(at, self._requests.free_at(1, now))
        if self._tokens is not None:
            at = max(at, self._tokens.free_at(tokens + self._reply_tokens, now))
        return at

    def _settle(self, now: float) -> None:
        """A provider refuses at once: a call that it has kept for a while is taken, long before its answer begins."""
        unsettled = self._unsettled
        while unsettled and (unsettled[0].settled or unsettled[0].at + SETTLED_S <= now):
            self._accept(unsettled.popleft(), now)

    def _accept(self, grant: Grant, now: float) -> None:
        if not grant.settled:
            grant.settled = True
            self._limit.accepted(saturated=grant.saturated, now=now)

    def _settle_tokens(self, grant: Grant, outcome: Outcome, tokens: int | None, now: float) -> None:
        """Put what was counted in place of what was guessed; a reply is guessed to be like the ones before."""
        if self._tokens is None or grant.spent is None:
            return
        if tokens is not None:
            tokens = min(max(0, tokens), self._tokens.most)  # a provider may count wrong
            self._reply_tokens += 0.1 * (max(0.0, tokens - grant.tokens) - self._reply_tokens)
            self._tokens.correct(grant.spent, tokens, now)
        elif outcome in ("throttled", "unreachable", "rejected"):
            self._tokens.correct(grant.spent, 0.0, now)
