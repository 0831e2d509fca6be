"""Which calls share a limiter: those to the same endpoints with the same keys under the same limits."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import orjson

from gymlet.config.schema import ModelOptions
from gymlet.upstream.lane import Lane, LaneLimits
from gymlet.upstream.limiter import Limiter, LocalLimiter
from gymlet.upstream.pool import Pool
from gymlet.upstream.provider import Provider

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a pool is made of, as it may go over a socket: ``name`` is a digest, no key is in it."""

    name: str
    lanes: tuple[tuple[str, float], ...]
    limits: LaneLimits
    max_queued: int

    @classmethod
    def of(cls, provider: Provider, options: ModelOptions) -> PoolSpec:
        """The pool for calls to ``provider``."""
        limits = LaneLimits(
            provider.num_concurrent_requests,
            options.adaptive_concurrency,
            options.requests_per_minute,
            options.tokens_per_minute,
        )
        secret = [(each.base_url, each.api_key, each.weight) for each in provider.endpoints]
        shared = orjson.dumps([secret, asdict(limits), options.max_queued_requests])
        return cls(
            hashlib.blake2b(shared, digest_size=16).hexdigest(),
            tuple((each.place, each.weight) for each in provider.endpoints),
            limits,
            options.max_queued_requests,
        )

    def build(self) -> Pool:
        """The pool, with nothing in it."""
        lanes = [Lane(at, name, self.limits, weight=weight) for at, (name, weight) in enumerate(self.lanes)]
        return Pool(lanes, max_queued=self.max_queued)


class Limiters(Protocol):
    """Finds or makes the limiter of a provider."""

    def of(self, provider: Provider, options: ModelOptions) -> Limiter:
        """The limiter for calls to ``provider``."""
        ...


class LocalLimiters:
    """Limiters of this process alone. Owns them."""

    def __init__(self) -> None:
        self._limiters: dict[str, LocalLimiter] = {}

    def of(self, provider: Provider, options: ModelOptions) -> Limiter:
        """The limiter for calls to ``provider``."""
        spec = PoolSpec.of(provider, options)
        limiter = self._limiters.get(spec.name)
        if limiter is None:
            limiter = self._limiters[spec.name] = LocalLimiter(spec.build())
        return limiter
