"""What an agent may want to know of the calls made for it: they are noted in the ``CallLog`` of its task."""

from __future__ import annotations

from contextvars import ContextVar, Token
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
    asked: dict[bytes, int] = field(default_factory=dict)


CALLS: ContextVar[CallLog | None] = ContextVar("calls", default=None)


class Noted:
    """Note in ``log`` the calls that are made in this block."""

    __slots__ = ("_log", "_token")

    def __init__(self, log: CallLog) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._token: Token[CallLog | None] = CALLS.set(self._log)

    def __exit__(self, *_exc: object) -> None:
        CALLS.reset(self._token)
