"""What the hub of permits and its borrowers say to each other, as lines of bytes: any way that carries them will do.

A line is a JSON list of all that one says in a turn of its event loop. A borrower opens the pools that it calls
through, then asks, each time with a number of its own; the hub answers with that number.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Protocol

import msgspec

from gymlet.upstream.lane import Outcome
from gymlet.upstream.limiters import PoolSpec
from gymlet.upstream.pool import Ask, Refusal

Json = dict[str, Any]
MAX_LINE_BYTES = 1 << 20


class OfAPool(msgspec.Struct, array_like=True):
    """To the hub, of one pool; ``id`` is the borrower's number of an ask."""

    pool: str
    id: int


class Answer(msgspec.Struct, array_like=True):
    """From the hub, to the ask of this number."""

    id: int


class Opened(msgspec.Struct, array_like=True, tag="open"):
    """To the hub: there is a pool like this."""

    spec: PoolSpec


class Asked(OfAPool, array_like=True, tag="ask"):
    """To the hub: an ask; an endless wait is null."""

    tokens: int
    session: str | None
    place: int | None
    tried: frozenset[int]
    wait_s: float | None
    down_wait_s: float | None

    @classmethod
    def of(cls, pool: str, number: int, ask: Ask) -> Asked:
        """As it is sent."""
        return cls(pool, number, *ask)

    @property
    def ask(self) -> Ask:
        """As the pool takes it."""
        waits = (math.inf if each is None else each for each in (self.wait_s, self.down_wait_s))
        return Ask(self.tokens, self.session, self.place, self.tried, *waits)


class Answered(OfAPool, array_like=True, tag="answered"):
    """To the hub: see Permit.answered."""


class Ended(OfAPool, array_like=True, tag="end"):
    """To the hub: see Permit.end."""

    outcome: Outcome
    wait_s: float
    tokens: int | None


class Withdrawn(OfAPool, array_like=True, tag="withdraw"):
    """To the hub: this is asked no more."""


class Show(OfAPool, array_like=True, tag="show"):
    """To the hub: tell the state of a pool."""


class Lent(Answer, array_like=True, tag="lent"):
    """From the hub: a permit."""

    lane: int
    place: int


class Refused(Answer, array_like=True, tag="refused"):
    """From the hub: there is none."""

    refusal: Refusal


class Shown(Answer, array_like=True, tag="shown"):
    """From the hub: the state of a pool."""

    state: Json


ToHub = Opened | Asked | Answered | Ended | Withdrawn | Show
FromHub = Lent | Refused | Shown

to_hub = msgspec.json.Decoder(list[ToHub])
from_hub = msgspec.json.Decoder(list[FromHub])
_encoder = msgspec.json.Encoder()


class Writer(Protocol):
    """Where lines go."""

    def write(self, data: bytes) -> None:
        """Send, now or soon."""
        ...

    def close(self) -> None:
        """Send nothing more."""
        ...


class Outbox:
    """What is said in a turn of the event loop. Owns it, and the writer that takes it at the end of the turn."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._waiting: list[ToHub | FromHub] = []

    def post(self, message: ToHub | FromHub) -> None:
        """Say something, at the end of this turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.send)
        self._waiting.append(message)

    def send(self) -> None:
        """Say now what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._write(waiting)

    def close(self) -> None:
        """Say nothing more."""
        self._waiting = []
        self._writer.close()

    def _write(self, messages: list[ToHub | FromHub]) -> None:
        line = _encoder.encode(messages) + b"\n"
        if len(line) > MAX_LINE_BYTES and len(messages) > 1:
            half = len(messages) // 2
            self._write(messages[:half])
            self._write(messages[half:])
        else:
            self._writer.write(line)
