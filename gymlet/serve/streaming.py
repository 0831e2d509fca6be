"""Moves bytes between provider, Reply and client, and knows nothing of what they mean.

Awaiting the write is the back-pressure: while the client does not take what there is, the provider is not read.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from gymlet.serve.upstream import Answer
from gymlet.wire.deltas import Json
from gymlet.wire.errors import ProviderError, StreamError
from gymlet.wire.provider_errors import MAX_PAGE_CHARS, error_message
from gymlet.wire.reply import Reply

KEEP_ALIVE_S = 15.0
"""Some clients give up on a stream that is silent for longer."""

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


async def relay(request: web.Request, answer: Answer, reply: Reply) -> web.StreamResponse:
    """Stream one reply to the client, each of the provider's pieces as it comes, in one write."""
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    first = answer.read_now() if answer.streams else b""
    await response.write(reply.open() + reply.feed(first))
    last = await (_pump(answer, reply, response) if answer.streams else _whole(answer, reply))
    await response.write_eof(last)
    return response


async def collect(answer: Answer, reply: Reply) -> Json:
    """One reply as a whole. Raises the ProviderError that ended it, if one did."""
    if answer.streams:
        while not reply.ended and (chunk := await answer.read_some()):
            reply.feed(chunk)
        reply.close()
    else:
        await _whole(answer, reply)
    if reply.error is not None:
        raise reply.error
    return reply.response


async def _pump(answer: Answer, reply: Reply, response: web.StreamResponse) -> bytes:
    """Everything but the last events, which are returned."""
    while not reply.ended:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                chunk = await answer.read_some()
        except TimeoutError:
            await response.write(reply.keep_alive())
            continue
        except StreamError as error:
            return reply.fail(error)
        events = reply.feed(chunk) if chunk else reply.close()
        if reply.ended:
            return events
        if events:
            await response.write(events)
    return b""


async def _whole(answer: Answer, reply: Reply) -> bytes:
    """A body that is no stream: JSON, whatever it calls itself, or an error that says what came instead."""
    try:
        body = await answer.read()
    except ProviderError as error:
        return reply.fail(error)
    start = body.lstrip()[:1]
    if start == b"{":
        return reply.feed_body(body)
    if start in (b"d", b":", b"e"):
        return reply.feed(body) + reply.close()
    words = error_message(body[:MAX_PAGE_CHARS].decode("utf-8", "replace"))[:200]
    return reply.fail(ProviderError(f"the provider sent {answer.content_type} instead of a reply: {words!r}"))
