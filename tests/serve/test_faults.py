"""Every fault of a provider, at both doors, streamed and whole: the exact outcome, within a bounded time."""

import asyncio
import socket
import time

import orjson
import pytest
from serve.faults import IMPATIENT, RETRIES, TABLE, TIMEOUTS, until

from scripts.hostile.answers import answer_text
from scripts.hostile.outcome import CHAT, RESPONSES, ask, read_outcome

KEY = "sk-very-secret-0123456789"
INSTANCE = "++policy_model.responses_api_models.inference_provider."
DOORS = {"responses": RESPONSES, "chat": CHAT}
BOUND_S = 10.0
"""No case may take longer; most take a hundredth of it."""


def settings(**values):
    return [f"{INSTANCE}{key}={value}" for key, value in values.items()]


def rows(table):
    return [pytest.param(row, id=row.behaviour) for row in table]


async def check(hostile, gymlet, row, door, streamed, **options):
    provider = await hostile()
    server = await gymlet(provider.url, f"'{row.behaviour}'", *settings(**(RETRIES | options)))
    expected = row.streamed if streamed else row.whole
    message = f"{row.behaviour} through {door}"
    async with asyncio.timeout(BOUND_S):
        status, headers, body = await server.post(door, ask(door, message, stream=streamed))
    outcome = read_outcome(door, status, body, stream=streamed)
    assert (outcome.end, outcome.status) == (expected.end, expected.status), outcome
    assert expected.words in outcome.words
    assert headers.get("x-gymlet-failure-class") == expected.kind
    assert headers.get("Retry-After") == expected.retry_after
    assert provider.attempts(message) == expected.attempts
    assert KEY not in body.decode() + str(headers)
    check_text(outcome, message, row.behaviour)


def check_text(outcome, message, behaviour):
    """A right answer is whole; what a broken one had said is kept."""
    chunks = int(behaviour.removeprefix("ok:")) if behaviour.startswith("ok:") else 5
    whole = answer_text(message, chunks)
    assert outcome.text == whole if outcome.end == "completed" else whole.startswith(outcome.text)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("row", rows(TABLE))
async def test_a_fault_has_its_outcome(hostile, gymlet, row, door, streamed):
    await check(hostile, gymlet, row, door, streamed)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("row", rows(TIMEOUTS))
async def test_a_silent_provider_is_given_up(hostile, gymlet, row, door, streamed):
    await check(hostile, gymlet, row, door, streamed, **IMPATIENT)


AFTERMATH = {
    "close-kept-alive": 3,
    "close-kept-alive:rst": 3,
    "double-answer": 0,
    "double-answer:0.05": 0,
    "retry-after-200": 0,
}
"""Behaviour, and how many requests the provider did not read: the next one on a connection that it closes just then."""

MESSAGES = ("one", "two", "three", "four")


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("behaviour", "unread"), AFTERMATH.items(), ids=AFTERMATH)
async def test_the_next_request_gets_its_own_answer(hostile, gymlet, behaviour, unread, streamed):
    """On a connection that was left in whatever state."""
    provider = await hostile()
    server = await gymlet(provider.url, f"'{behaviour}'", *settings(**RETRIES))
    texts = []
    for message in MESSAGES:
        async with asyncio.timeout(BOUND_S):
            status, _, body = await server.post(CHAT, ask(CHAT, message, stream=streamed))
        texts.append(read_outcome(CHAT, status, body, stream=streamed).text)
        await asyncio.sleep(0.2)
    assert texts == [answer_text(message) for message in MESSAGES]
    assert provider.counts.dropped_unread == unread


WAITS_S = {"throttle-after:1": 1.0, "throttle-date:1": 1.0, "throttle-ms:300": 0.3, "throttle-reset:300ms": 0.3}


@pytest.mark.parametrize(("behaviour", "wait_s"), WAITS_S.items(), ids=WAITS_S)
async def test_the_provider_says_when_to_come_again(hostile, gymlet, behaviour, wait_s):
    provider = await hostile()
    server = await gymlet(provider.url, f"'{behaviour}'", *settings(**RETRIES))
    started = time.monotonic()
    async with asyncio.timeout(BOUND_S):
        status, _, _ = await server.post(CHAT, ask(CHAT, "hi", stream=False))
    assert (status, provider.attempts("hi")) == (200, 2)
    assert time.monotonic() - started >= wait_s


async def test_retries_can_be_turned_off(hostile, gymlet):
    provider = await hostile()
    server = await gymlet(provider.url, "status-once:503", *settings(max_retries=0))
    status, _, _ = await server.post(CHAT, ask(CHAT, "hi", stream=False))
    assert (status, provider.attempts("hi")) == (503, 1)


async def test_retries_end_when_their_time_is_over(hostile, gymlet):
    provider = await hostile()
    patience = settings(max_retries=1000, retry_base_s=0.05, retry_max_s=0.1, max_retry_s=0.5)
    server = await gymlet(provider.url, "throttle", *patience)
    async with asyncio.timeout(BOUND_S):
        status, headers, _ = await server.post(CHAT, ask(CHAT, "hi", stream=False))
    assert (status, headers["x-gymlet-failure-class"]) == (429, "provider_rate_limited")
    assert 1 < provider.attempts("hi") < 1000


async def test_a_wait_that_is_longer_than_the_retries_last_is_not_begun(hostile, gymlet):
    provider = await hostile()
    server = await gymlet(provider.url, "throttle-after:60", *settings(max_retry_s=2))
    async with asyncio.timeout(BOUND_S):
        status, headers, _ = await server.post(CHAT, ask(CHAT, "hi", stream=False))
    assert (status, headers["Retry-After"]) == (429, "60")
    assert provider.attempts("hi") == 1


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_nobody_listens(gymlet, free_port, streamed):
    server = await gymlet(f"http://127.0.0.1:{free_port}", "m", *settings(**RETRIES))
    async with asyncio.timeout(BOUND_S):
        status, headers, body = await server.post(RESPONSES, ask(RESPONSES, "hi", stream=streamed))
    assert (status, headers["x-gymlet-failure-class"]) == (502, "provider_unavailable")
    assert "cannot be reached" in orjson.loads(body)["error"]["message"]


@pytest.fixture
def full_backlog():
    """A port whose queue of connections is full: whoever connects waits."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        yield address[1]
        for each in waiting:
            each.close()


async def test_nobody_accepts(gymlet, full_backlog):
    server = await gymlet(f"http://127.0.0.1:{full_backlog}", "m", *settings(connect_timeout_s=0.3, **RETRIES))
    async with asyncio.timeout(BOUND_S):
        status, headers, body = await server.post(RESPONSES, ask(RESPONSES, "hi", stream=True))
    assert (status, headers["x-gymlet-failure-class"]) == (504, "timeout")
    message = orjson.loads(body)["error"]["message"]
    assert "connect" in message
    assert "0.3 s" in message


async def test_the_ceiling_holds_and_the_rest_waits_in_line(hostile, gymlet):
    provider = await hostile()
    server = await gymlet(provider.url, "'slow:0.02'", *settings(num_concurrent_requests=3, adaptive_concurrency=False))
    messages = [f"message {number}" for number in range(30)]
    async with asyncio.timeout(BOUND_S):
        replies = await asyncio.gather(*(server.post(CHAT, ask(CHAT, each, stream=True)) for each in messages))
    outcomes = [read_outcome(CHAT, status, body, stream=True) for status, _, body in replies]
    assert [outcome.text for outcome in outcomes] == [answer_text(message) for message in messages]
    assert provider.counts.most_in_flight == 3


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_a_line_without_end_is_not_kept(hostile, gymlet, streamed):
    provider = await hostile()
    server = await gymlet(provider.url, "long-line", *settings(**RETRIES))
    async with asyncio.timeout(60):
        status, _, body = await server.post(RESPONSES, ask(RESPONSES, "hi", stream=streamed))
    outcome = read_outcome(RESPONSES, status, body, stream=streamed)
    assert (outcome.end, outcome.status) == (("failed", 200) if streamed else ("refused", 502))
    assert "more than" in outcome.words
    await until(lambda: provider.counts.closed_early == 1)
    assert provider.attempts("hi") == 1
