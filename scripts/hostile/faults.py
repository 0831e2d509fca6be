"""Every way in which a provider goes wrong, by name.

A request's model is ``name`` or ``name:argument``. ``name-once`` goes wrong at the first attempt of a message, and is
good afterwards; those marked so in the table do that by themselves.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import orjson

from scripts.hostile import answers
from scripts.hostile.call import Call
from scripts.hostile.http1 import LAST_CHUNK, chunk

Run = Callable[[Call, str], Awaitable[None]]

PAGE = b"<!doctype html><html><head><title>Oops</title></head><body><h1>Bad gateway, says the page</h1></body></html>"
LONG_LINE_BYTES = 1 << 30
BLOCK = b"x" * (64 * 1024)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way: what it does, in words and in code, and whether it does so once for each message.

    ``default``: the argument when none is given.
    """

    line: str
    run: Run
    default: str = ""
    once: bool = False


async def ok(call: Call, chunks: str) -> None:
    """A good answer."""
    await call.good(int(chunks))


async def slow(call: Call, latency_s: str) -> None:
    """A good answer, late."""
    await asyncio.sleep(float(latency_s))
    await call.good()


async def paced(call: Call, interval_s: str) -> None:
    """A good answer, its pieces apart in time."""
    await call.begin()
    for piece in call.pieces():
        await call.connection.send(chunk(piece))
        await asyncio.sleep(float(interval_s))
    await call.finish()


async def hold(call: Call, interval_s: str) -> None:
    """A stream with something new now and then, until POST /release."""
    await call.begin()
    await call.connection.send(chunk(call.pieces()[0]))
    while not call.released.is_set():
        try:
            async with asyncio.timeout(float(interval_s)):
                await call.released.wait()
        except TimeoutError:
            await call.connection.send(chunk(answers.content_event(" …")))
    for piece in call.pieces()[-2:]:
        await call.connection.send(chunk(piece))
    await call.finish()


def throttled(**headers: str) -> Run:
    """429 with these headers; their values may hold the argument."""

    async def run(call: Call, argument: str) -> None:
        filled = {name.replace("_", "-"): value.format(argument) for name, value in headers.items()}
        await call.refuse(429, "Rate limit reached, slow down", headers=filled)

    return run


async def throttled_until(call: Call, seconds: str) -> None:
    """429 with a date; it has no fractions, so the moment named is never before the one meant."""
    at = datetime.now(UTC) + timedelta(seconds=float(seconds) + 1)
    await call.refuse(429, "Rate limit reached", headers={"Retry-After": format_datetime(at, usegmt=True)})


async def quota(call: Call, _: str) -> None:
    """429 for good."""
    await call.refuse(429, "You exceeded your current quota", code="insufficient_quota")


async def status(call: Call, number: str) -> None:
    """An error."""
    await call.refuse(int(number), f"the hostile provider refuses with {number}")


async def reset_before_headers(call: Call, _: str) -> None:
    """RST instead of an answer."""
    call.connection.reset()


async def reset_after_headers(call: Call, _: str) -> None:
    """RST instead of a body."""
    await call.begin()
    await call.settle()
    call.connection.reset()


async def reset_mid_stream(call: Call, _: str) -> None:
    """RST in the middle."""
    await call.half()
    call.connection.reset()


async def stall_before_headers(call: Call, _: str) -> None:
    """Nothing."""
    await call.stall()


async def stall_after_headers(call: Call, _: str) -> None:
    """A head and nothing."""
    await call.begin()
    await call.stall()


async def stall_mid_stream(call: Call, _: str) -> None:
    """Half an answer and nothing."""
    await call.half()
    await call.stall()


async def trickle(call: Call, interval_s: str) -> None:
    """A byte at a time, each in a chunk of its own."""
    await call.begin()
    for byte in b"".join(call.pieces()):
        await call.connection.send(chunk(bytes((byte,))))
        await asyncio.sleep(float(interval_s))
    await call.finish()


async def comments(call: Call, interval_s: str) -> None:
    """Signs of life and nothing else."""
    await call.begin()
    while True:
        await call.connection.send(chunk(b": processing\n\n" if call.stream else b" "))
        await asyncio.sleep(float(interval_s))


async def flood(call: Call, _: str) -> None:
    """Good chunks without end, as fast as they are taken."""
    await call.begin()
    block = chunk(answers.content_event("x" * 1000) * 16 if call.stream else b" " * 16_000)
    while True:
        await call.connection.send(block)
        await asyncio.sleep(0)


async def html(call: Call, number: str) -> None:
    """A page for people."""
    await call.page(int(number), PAGE, "text/html; charset=utf-8")


async def error_200(call: Call, number: str) -> None:
    """An error that says it is none."""
    error = {"message": f"the hostile provider says {number} with a good status", "code": int(number)}
    body = orjson.dumps({"error": error})
    await call.page(200, b"data: " + body + b"\n\n" if call.stream else body, call.content_type)


async def half_close(call: Call, _: str) -> None:
    """FIN in the middle of the body, and then it listens on."""
    await call.half()
    call.connection.half_close()
    await call.stall()


async def close_kept_alive(call: Call, how: str) -> None:
    """A good answer on a connection that is gone when it is used again."""
    connection = call.connection
    await call.good(headers={"Connection": "keep-alive", "Keep-Alive": "timeout=600"})
    connection.drops_next = connection.reset if how == "rst" else connection.close


async def long_line(call: Call, size_bytes: str) -> None:
    """One line, or one string of JSON, that is longer than anyone should keep."""
    await call.begin()
    await call.connection.send(chunk(b'data: {"choices": "' if call.stream else b'{"choices": "'))
    for _ in range(int(size_bytes) // len(BLOCK)):
        await call.connection.send(chunk(BLOCK))
        await asyncio.sleep(0)
    await call.connection.send(chunk(b'"}\n\n') + LAST_CHUNK)


async def long_headers(call: Call, size_bytes: str) -> None:
    """A header that is longer than anyone should keep."""
    await call.good(headers={"x-long": "x" * int(size_bytes)})


async def gzipped(call: Call, _: str) -> None:
    """A good answer, compressed though nobody asked for it."""
    body = gzip.compress(b"".join(call.pieces()))
    await call.begin(len(body), {"Content-Encoding": "gzip"})
    await call.connection.send(body)
    call.completed = True


async def bad_gzip(call: Call, _: str) -> None:
    """A body that is not compressed as it says."""
    body = b"".join(call.pieces())
    await call.begin(len(body), {"Content-Encoding": "gzip"})
    await call.connection.send(body)


async def cut_gzip(call: Call, _: str) -> None:
    """A compressed body that ends in the middle, its length as it says."""
    compressor = zlib.compressobj(wbits=31)
    body = compressor.compress(b"".join(call.pieces())) + compressor.flush(zlib.Z_SYNC_FLUSH)
    await call.begin(len(body) - 12, {"Content-Encoding": "gzip"})
    await call.connection.send(body[:-12])


async def redirect(call: Call, number: str) -> None:
    """Elsewhere."""
    await call.page(int(number), b"", "text/plain", {"Location": "http://127.0.0.1:9/elsewhere"})


async def garbage(call: Call, _: str) -> None:
    """No HTTP."""
    await call.connection.send(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n")
    call.connection.close()


async def wrong_length(call: Call, which: str) -> None:
    """A Content-Length that is not the body's."""
    body = b"".join(call.pieces())
    told = len(body) + 100 if which == "long" else len(body) // 2
    await call.begin(told)
    await call.connection.send(body[:told])
    await call.settle()
    await call.connection.send(body[told:])
    call.connection.close()


async def truncated_chunk(call: Call, _: str) -> None:
    """A chunk that is shorter than it says, and the end of the connection."""
    await call.half()
    await call.connection.send(b"400\r\n" + b"".join(call.pieces())[:50])
    call.connection.close()


async def no_last_chunk(call: Call, _: str) -> None:
    """Everything but the chunk that ends the body."""
    await call.begin()
    for piece in call.pieces():
        await call.connection.send(chunk(piece))
    await call.settle()
    call.connection.close()


async def double_answer(call: Call, delay_s: str) -> None:
    """A good answer, and unasked another one, which is nobody's."""
    await call.good()
    await asyncio.sleep(float(delay_s))
    body = answers.whole_body("an answer that nobody asked for")
    await call.page(200, body, "application/json")


async def leak(call: Call, number: str) -> None:
    """An error that repeats the key."""
    await call.refuse(int(number), f"Incorrect API key provided: {call.authorization}", code="invalid_api_key")


async def retry_after_200(call: Call, _: str) -> None:
    """A good answer with a header that means nothing on it."""
    await call.good(headers={"Retry-After": "99", "x-ratelimit-reset-requests": "99s"})


FAULTS: dict[str, Fault] = {
    "ok": Fault("a good answer in so many chunks", ok, str(answers.CHUNKS)),
    "slow": Fault("a good answer after so many seconds", slow, "0.2"),
    "paced": Fault("a good answer, so many seconds between its chunks", paced, "0.1"),
    "hold": Fault("a stream with a chunk every so many seconds, until POST /release", hold, "5"),
    "throttle": Fault("429 without Retry-After", throttled()),
    "throttle-after": Fault("429 with Retry-After in seconds", throttled(Retry_After="{}"), "1", once=True),
    "throttle-date": Fault("429 with Retry-After as a date, so many seconds from now", throttled_until, "1", once=True),
    "throttle-ms": Fault("429 with retry-after-ms", throttled(retry_after_ms="{}"), "200", once=True),
    "throttle-reset": Fault(
        "429 with x-ratelimit-remaining-requests: 0 and x-ratelimit-reset-requests",
        throttled(x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="{}"),
        "1s",
        once=True,
    ),
    "quota": Fault("429 with the code insufficient_quota", quota),
    "quota-day": Fault("429 with Retry-After of a day", throttled(Retry_After="{}"), "86400"),
    "status": Fault("this status, with an error in JSON", status, "503"),
    "reset-before-headers": Fault("RST instead of an answer", reset_before_headers),
    "reset-after-headers": Fault("a good head, then RST", reset_after_headers),
    "reset-mid-stream": Fault("half a good body, then RST", reset_mid_stream),
    "stall-before-headers": Fault("no answer, for ever", stall_before_headers),
    "stall-after-headers": Fault("a good head, then nothing, for ever", stall_after_headers),
    "stall-mid-stream": Fault("half a good body, then nothing, for ever", stall_mid_stream),
    "trickle": Fault("a good answer, a byte every so many seconds", trickle, "1"),
    "comments": Fault("comments (white space, if whole) every so many seconds, for ever", comments, "0.1"),
    "flood": Fault("good chunks without end, as fast as they are taken", flood),
    "html": Fault("a page with this status", html, "200"),
    "error-200": Fault("status 200, and in the body an error with this code", error_200, "500"),
    "half-close": Fault("half a good body, then FIN, and it listens on", half_close),
    "close-kept-alive": Fault("a good answer; the connection ends as the next request comes (rst: by RST)",
                              close_kept_alive),
    "long-line": Fault("one line of so many bytes", long_line, str(LONG_LINE_BYTES)),
    "long-headers": Fault("a good answer with a header of so many bytes", long_headers, "1000000"),
    "gzip": Fault("a good answer, compressed though not asked for", gzipped),
    "bad-gzip": Fault("a body that is not compressed as it says", bad_gzip),
    "cut-gzip": Fault("a compressed body that ends too early", cut_gzip),
    "redirect": Fault("a redirect to elsewhere, with this status", redirect, "307"),
    "garbage": Fault("bytes that are no HTTP", garbage),
    "wrong-length": Fault("a Content-Length that is too long, or too short", wrong_length, "long"),
    "truncated-chunk": Fault("half a good body, then a chunk shorter than it says, and FIN", truncated_chunk),
    "no-last-chunk": Fault("a good body without the chunk that ends it, and FIN", no_last_chunk),
    "double-answer": Fault("a good answer, and so many seconds later another one", double_answer, "0"),
    "leak": Fault("this status, and an error that repeats the Authorization header", leak, "401"),
    "retry-after-200": Fault("a good answer with a Retry-After", retry_after_200),
}  # fmt: skip

MIXED = (
    "throttle", "throttle-after:0.1", "throttle-ms:50", "throttle-reset:100ms", "status:500", "status:502",
    "status:503", "status:529", "status:408", "reset-before-headers", "reset-after-headers", "reset-mid-stream",
    "stall-before-headers", "stall-mid-stream", "half-close", "truncated-chunk", "wrong-length:long", "error-200:429",
    "error-200:500", "html:502", "html", "bad-gzip", "garbage", "close-kept-alive", "close-kept-alive:rst", "gzip",
    "slow:0.3", "status:400", "redirect", "leak",
)  # fmt: skip
"""What the model ``mix`` draws from. Not ``double-answer``: nobody can tell it on a connection that is in use again."""


def find(model: str) -> tuple[Fault, str, bool]:
    """The fault that a model names, its argument, and whether it is to happen once. Raises KeyError."""
    name, _, argument = model.partition(":")
    once = name.endswith("-once")
    fault = FAULTS[name.removesuffix("-once")]
    return fault, argument or fault.default, once or fault.once
