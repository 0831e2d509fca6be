"""Every fault of a provider, at both doors, streamed and whole: the exact outcome, within a bounded time."""

import asyncio

import pytest
from serve.faults import IMPATIENT, RETRIES, TABLE, TIMEOUTS

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
