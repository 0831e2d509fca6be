"""Clients of a server that is a process."""

import asyncio
import contextlib
import time

import orjson

ROW = {"responses_create_params": {"input": "?"}, "options": [{"A": "a"}], "expected_answer": "A"}
STREAM, WHOLE = {"input": "hi", "stream": True}, {"input": "hi"}


async def ask(client, url, body, path="/v1/responses", method="POST"):
    """Status, headers and body of one request."""
    async with client.request(method, url + path, data=orjson.dumps(body)) as response:
        return response.status, response.headers, await response.read()


def asking(client, url, body, path="/v1/responses", count=1):
    """The same request so many times, at once."""
    return [asyncio.create_task(ask(client, url, body, path)) for _ in range(count)]


async def closed(url):
    """Wait until nobody new is let in: connections are refused. One that waits to be accepted just then is reset."""
    host, _, port = url.removeprefix("http://").partition(":")
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                with contextlib.suppress(ConnectionResetError):
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                await asyncio.sleep(0.02)


async def ended(process, within_s=15):
    """Exit code, stdout and stderr of a process that ends in time."""
    started = time.monotonic()
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert time.monotonic() - started < within_s
    return process.returncode, out.decode(), err.decode()
