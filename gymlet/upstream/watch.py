"""What an agent may want to know of the calls made for it: they are noted in the ``CallLog`` of its task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class CallLog:
    """Sums over calls: seconds in the queue, attempts beyond the first, and the first call's time to its first byte.

    ``repeat`` says which of several equal rollouts the calls are for, ``asked`` how often each call was made for it,
    and ``cached`` how many were answered without the provider.
    """

    repeat: int | str | None = None
    queued_s: float = 0.0
    retries: int = 0
    ttft_s: float | None = None
    cached: int = 0
    asked: Counter[bytes] = field(default_factory=Counter)


CALLS: ContextVar[CallLog | None] = ContextVar("calls", default=None)


@contextmanager
def noted(log: CallLog) -> Iterator[None]:
    """Note in ``log`` the calls that are made in this block."""
    token = CALLS.set(log)
    try:
        yield
    finally:
        CALLS.reset(token)
