"""What an agent may want to know of the calls made for it: set ``CALLS`` in a task, and its calls are noted there."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class CallLog:
    """Sums over calls: seconds in the queue, attempts beyond the first, and the first call's time to its first byte."""

    queued_s: float = 0.0
    retries: int = 0
    ttft_s: float | None = None


CALLS: ContextVar[CallLog | None] = ContextVar("calls", default=None)
