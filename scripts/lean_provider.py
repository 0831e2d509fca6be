"""A provider that costs next to nothing, for measuring and killing what stands before it.

    python scripts/lean_provider.py --port 9000 [--delay-s 0.2] [--jitter-s 0.05]

It speaks just enough HTTP for a chat completion that is not streamed, and answers each request with a boxed letter that
the request's bytes choose: the same request, the same answer. ``GET /counts`` tells how often it was asked; ``GET
/new_counts`` also begins anew.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field

import orjson
import uvloop

LETTERS = "ABCD"
_END = b"\r\n\r\n"


@dataclass
class Counts:
    """What the provider was asked. ``by_request``: how often each request came, by its checksum."""

    by_request: Counter[int] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Numbers only; ``first_s`` is when the first request came, ``busy_s`` from there to the last answer.

        The clock is the machine's: that of ``time.perf_counter`` in all its processes.
        """
        times = Counter(self.by_request.values())
        return {
            "requests": self.by_request.total(),
            "distinct": len(self.by_request),
            "repeated": sum((count - 1) * rows for count, rows in times.items()),
            "most_in_flight": self.most_in_flight,
            "first_s": self.first_s,
            "busy_s": self.last_s - self.first_s,
        }

    def begin_anew(self) -> None:
        """Forget what was asked."""
        self.by_request.clear()
        self.most_in_flight, self.first_s, self.last_s = self.in_flight, 0.0, 0.0


class Connection(asyncio.Protocol):
    """One client; requests come one after the other. Owns what was read of the next one."""

    def __init__(self, counts: Counts, delay_s: float, jitter_s: float) -> None:
        self._counts = counts
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where answers go."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer when the request is whole."""
        self._read += data
        end = self._read.find(_END)
        if end < 0:
            return
        size = _content_length(self._read[:end])
        if len(self._read) < end + len(_END) + size:
            return
        head, body = self._read[:end], self._read[end + len(_END) :]
        self._read = b""
        if head.startswith(b"GET"):
            self._transport.write(_http(orjson.dumps(self._counts.to_json())))
            if head.startswith(b"GET /new_counts"):
                self._counts.begin_anew()
        else:
            self._answer_later(body)

    def _answer_later(self, body: bytes) -> None:
        counts, checksum = self._counts, zlib.crc32(body)
        counts.by_request[checksum] += 1
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        counts.first_s = counts.first_s or time.perf_counter()
        wait_s = self._delay_s + (random.random() * self._jitter_s if self._jitter_s else 0.0)  # noqa: S311  no secret
        if wait_s:
            asyncio.get_running_loop().call_later(wait_s, self._answer, checksum)
        else:
            self._answer(checksum)

    def _answer(self, checksum: int) -> None:
        self._counts.in_flight -= 1
        self._counts.last_s = time.perf_counter()
        if not self._transport.is_closing():  # the client may have been killed meanwhile
            self._transport.write(ANSWERS[checksum % len(LETTERS)])


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _completion(letter: str) -> bytes:
    message = {"role": "assistant", "content": rf"\boxed{{{letter}}}", "reasoning_content": "Hm."}
    usage = {"prompt_tokens": 200, "completion_tokens": 5, "total_tokens": 205}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chatcmpl-lean", "object": "chat.completion", "created": 1, "model": "lean"}
    return orjson.dumps({**head, "choices": [choice], "usage": usage})


ANSWERS = [_http(_completion(letter)) for letter in LETTERS]


async def serve(host: str, port: int, delay_s: float, jitter_s: float) -> None:
    """Serve until the process ends."""
    counts = Counts()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(counts, delay_s, jitter_s), host, port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--delay-s", type=float, default=0.0, help="how long each answer takes")
    parser.add_argument("--jitter-s", type=float, default=0.0, help="and at most so much longer, at random")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(given.host, given.port, given.delay_s, given.jitter_s))


if __name__ == "__main__":
    main()
