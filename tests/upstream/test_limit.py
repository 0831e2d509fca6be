"""How many calls at once, and how many a minute: found out, and kept to."""

import statistics

import pytest
from upstream.simulated import simulate

from gymlet.upstream.limit import AdaptiveLimit, Window

HIDDEN = {
    "40": (40, 0.2, 60),
    "40, slow": (40, 2.0, 60),
    "5": (5, 0.2, 60),
    "500": (500, 1.0, 60),
    "17": (17, 5.0, 200),
}


@pytest.mark.parametrize(("hidden", "latency_s", "seconds"), HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_limit_that_is_not_told_is_found(hidden, latency_s, seconds, seed):
    demand = max(400, 3 * hidden)
    history = simulate(lambda _now: hidden, latency_s=latency_s, seconds=seconds, seed=seed, demand=demand)
    settled = history[seconds // 2 :]
    limits = [statistics.mean(second.limits) for second in settled if second.limits]
    assert all(abs(limit - hidden) <= 0.2 * hidden for limit in limits)
    assert sum(second.throttled for second in settled) < 0.03 * sum(second.sent for second in settled)


def test_a_limit_that_falls_and_rises_is_followed():
    history = simulate(lambda now: 40 if now < 20 or now >= 40 else 10)
    means = [statistics.mean(second.limits) for second in history]
    assert all(8 <= mean <= 12 for mean in means[23:40])
    assert all(32 <= mean <= 48 for mean in means[50:])


def test_without_a_refusal_the_ceiling_is_reached_and_kept():
    history = simulate(lambda _now: 10_000, ceiling=100, seconds=10)
    assert history[-1].limits[-1] == 100
    assert max(max(second.limits) for second in history) == 100


def test_the_limit_grows_only_while_all_of_it_is_used():
    limit = AdaptiveLimit(1000)
    for _ in range(100):
        limit.accepted(saturated=False, now=0.0)
    assert limit.now == 16


def test_a_burst_of_refusals_counts_once():
    limit = AdaptiveLimit(1000)
    for at in range(10):
        limit.throttled(sent_at=0.0, now=1.0 + at / 10)
    assert limit.now == 8
    limit.throttled(sent_at=2.0, now=3.0)
    assert limit.now == 7


def test_a_failure_of_the_provider_lets_nothing_grow_for_a_while():
    limit = AdaptiveLimit(1000)
    limit.faltered(now=10.0)
    limit.accepted(saturated=True, now=10.5)
    assert limit.now == 16
    limit.accepted(saturated=True, now=11.5)
    assert limit.now == 17


def test_after_an_outage_half_of_what_was_comes_back_by_doubling():
    limit = AdaptiveLimit(1000)
    while limit.now < 400:
        limit.accepted(saturated=True, now=0.0)
    for at in range(100):
        limit.unreachable(sent_at=at, now=at + 0.5)
    assert limit.now == 1
    answers = 0
    while limit.now < 180:
        limit.accepted(saturated=True, now=200.0)
        answers += 1
    assert answers < 200, "one call more for each answer"


def test_a_limit_that_is_not_adaptive_stays():
    limit = AdaptiveLimit(50, adaptive=False)
    limit.throttled(sent_at=1.0, now=1.0)
    limit.unreachable(sent_at=1.0, now=1.0)
    limit.accepted(saturated=True, now=1.0)
    assert limit.now == 50


def test_no_minute_holds_more_than_is_allowed():
    window, sent, now = Window(30), [], 0.0
    while now < 300:
        now = max(now, window.free_at(1, now))
        window.spend(1, now)
        sent.append(now)
        now += 0.5 if len(sent) % 7 else 11.0
    assert max(sum(1 for at in sent if start <= at < start + 60) for start in sent) == 30


def test_tokens_are_corrected_once_they_are_known():
    window = Window(1000)
    guess = window.spend(900, 0.0)
    assert window.free_at(200, 1.0) == 60.0
    window.correct(guess, 100, 2.0)
    assert window.free_at(200, 2.0) == 2.0
    window.spend(900, 3.0)
    assert window.free_at(5000, 4.0) == 63.0, "a call larger than the limit waits for an empty window"
