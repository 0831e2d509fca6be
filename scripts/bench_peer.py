"""The benchmark's peer: an aiohttp handler that copies the provider's bytes to the client unread."""

from __future__ import annotations

import sys

import aiohttp
import uvloop
from aiohttp import web

SESSION = web.AppKey("session", aiohttp.ClientSession)


def make_app(provider_url: str) -> web.Application:
    """The handler in front of ``provider_url``."""

    async def copy(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        url = f"{provider_url}/chat/completions"
        async with request.app[SESSION].post(url, data=body, headers={"Accept-Encoding": "identity"}) as upstream:
            if b'"stream":true' not in body:
                return web.Response(body=await upstream.read(), content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            while chunk := await upstream.content.readany():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def open_session(app: web.Application) -> None:
        app[SESSION] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), read_bufsize=256 * 1024)

    async def close_session(app: web.Application) -> None:
        await app[SESSION].close()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", copy)
    app.on_startup.append(open_session)
    app.on_cleanup.append(close_session)
    return app


if __name__ == "__main__":
    web.run_app(
        make_app(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        print=None,
        access_log=None,
        handler_cancellation=True,
        loop=uvloop.new_event_loop(),
    )
