"""A client that leaves ends the provider's work; one that does not read stops it."""

import asyncio
import socket
import time

import pytest
from serve.faults import until

from scripts.hostile.client import Client
from scripts.hostile.outcome import CHAT, RESPONSES, ask

INSTANCE = "++policy_model.responses_api_models.inference_provider."
NOTICED_WITHIN_S = 1.0
"""The aim is 0.1 s; other work on the machine may delay it."""

SOCKETS_BYTES = 64 << 20
"""More than the system's buffers of the two connections, and what gymlet keeps of a stream, can hold."""

SCENES = {
    "before the headers": ("stall-before-headers", True),
    "before the body": ("stall-after-headers", True),
    "in the middle of a stream": ("stall-mid-stream", True),
    "while a stream flows": ("flood", True),
    "before the headers of a whole reply": ("stall-before-headers", False),
    "in the middle of a whole reply": ("stall-mid-stream", False),
}


async def connect(server):
    return await Client.connect("127.0.0.1", int(server.url.rpartition(":")[2]))


@pytest.mark.parametrize("door", [RESPONSES, CHAT], ids=["responses", "chat"])
@pytest.mark.parametrize(("behaviour", "streamed"), SCENES.values(), ids=SCENES)
async def test_a_client_that_leaves_ends_the_call(hostile, gymlet, behaviour, streamed, door):
    provider = await hostile()
    server = await gymlet(provider.url, behaviour)
    client = await connect(server)
    client.send(door, ask(door, "hi", stream=streamed))
    await until(lambda: provider.provider.in_flight == 1)
    await asyncio.sleep(0.1)
    left = time.time()
    client.leave()
    await until(lambda: provider.counts.closed_early == 1)
    assert provider.counts.departures[0]["at_unix_s"] - left < NOTICED_WITHIN_S
    assert (provider.provider.in_flight, provider.attempts("hi")) == (0, 1)


async def test_a_client_that_leaves_is_not_tried_for_again(hostile, gymlet):
    provider = await hostile()
    waits = ("max_retries=1000", "retry_base_s=0.05", "retry_max_s=0.05")
    client = await connect(await gymlet(provider.url, "throttle", *(INSTANCE + each for each in waits)))
    client.send(RESPONSES, ask(RESPONSES, "hi", stream=True))
    await until(lambda: provider.attempts("hi") >= 3)
    client.leave()
    await asyncio.sleep(NOTICED_WITHIN_S)
    attempts = provider.attempts("hi")
    await asyncio.sleep(0.5)
    assert provider.attempts("hi") == attempts


async def test_a_client_that_leaves_the_line_is_not_called_for(hostile, gymlet):
    provider = await hostile()
    server = await gymlet(provider.url, "stall-before-headers-once", f"{INSTANCE}num_concurrent_requests=1")
    first, second, third = [await connect(server) for _ in range(3)]
    first.send(CHAT, ask(CHAT, "first", stream=False))
    await until(lambda: provider.provider.in_flight == 1)
    second.send(CHAT, ask(CHAT, "second", stream=False))
    await asyncio.sleep(0.1)
    second.leave()
    await asyncio.sleep(0.1)
    first.leave()
    await until(lambda: provider.provider.in_flight == 0)
    third.send(CHAT, ask(CHAT, "first", stream=False))
    async with asyncio.timeout(10):
        assert (await third.reply()).status == 200
    assert provider.attempts("second") == 0


@pytest.mark.parametrize("door", [RESPONSES, CHAT], ids=["responses", "chat"])
async def test_a_client_that_does_not_read_stops_the_provider(hostile, gymlet, door):
    provider = await hostile()
    client = await connect(await gymlet(provider.url, "flood"))
    client.send(door, ask(door, "hi", stream=True))
    await until(lambda: provider.provider.sent_bytes > 0)
    client.transport.pause_reading()
    stopped_at = await standstill(provider)
    assert stopped_at < SOCKETS_BYTES
    client.transport.resume_reading()
    await until(lambda: provider.provider.sent_bytes > stopped_at)
    client.leave()
    await until(lambda: provider.counts.closed_early == 1)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has it")
async def test_a_client_that_takes_nothing_for_long_is_let_go(hostile, gymlet, monkeypatch):
    monkeypatch.setattr("gymlet.serve.door.TAKE_S", 0.3)
    provider = await hostile()
    client = await connect(await gymlet(provider.url, "flood"))
    client.transport.pause_reading()
    client.send(RESPONSES, ask(RESPONSES, "hi", stream=True))
    await until(lambda: provider.counts.closed_early == 1)
    client.leave()


async def standstill(provider):
    """The bytes sent, once they have not become more for a while."""
    async with asyncio.timeout(60):
        sent = -1
        while sent != (sent := provider.provider.sent_bytes):  # noqa: ASYNC110  it is the absence of change
            await asyncio.sleep(0.5)
    return sent
