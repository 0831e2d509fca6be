"""Who may call next, and where: in virtual time."""

import random

from hypothesis import given
from hypothesis import strategies as st

from gymlet.upstream.lane import FIRST_REST_S, MAX_FAILURES, Lane, LaneLimits
from gymlet.upstream.pool import FEW, Ask, Pool


def pool(*limits, weights=None, max_queued=100, **options):
    options = {"adaptive": False, **options}
    lanes = [
        Lane(at, f"http://{at}", LaneLimits(limit, **options), weight=(weights or {}).get(at, 1.0))
        for at, limit in enumerate(limits)
    ]
    return Pool(lanes, max_queued=max_queued)


def go(pool, now=0.0):
    """The places of those that may go, and by which lane."""
    return [(each.place, each.grant.lane) if each.grant else (each.place, each.refusal) for each in pool.decide(now)]


def take(pool, now=0.0, **ask):
    """The grant of a call that may go at once."""
    waiting = pool.ask(Ask(**ask), now)
    pool.decide(now)
    return waiting.grant


def test_first_come_first_served_and_no_more_than_allowed():
    p = pool(2)
    waiting = [p.ask(Ask(), 0.0) for _ in range(4)]
    assert [each.grant and each.grant.lane for each in waiting] == [0, 0, None, None]
    assert (p.queued, go(p)) == (2, [])
    p.ended(waiting[1].grant, "ok", 1.0)
    assert go(p, 1.0) == [(2, 0)]
    p.withdraw(waiting[3])
    p.ended(waiting[0].grant, "ok", 1.0)
    assert (p.queued, go(p, 1.0)) == (0, [])


def test_who_waits_no_more_is_forgotten_behind_one_who_does():
    p = pool(1)
    take(p)
    p.ask(Ask(wait_s=3600), 0.0)
    for _ in range(5 * FEW):
        p.withdraw(p.ask(Ask(wait_s=3600), 0.0))
        assert go(p) == []
    assert len(p._deadlines) + len(p._anywhere) <= 2 * (FEW + 2)


def test_a_call_that_is_tried_again_keeps_its_place():
    p = pool(1)
    first = take(p)
    later = [p.ask(Ask(), 0.0) for _ in range(3)]
    p.ended(first, "failed", 1.0)
    p.ask(Ask(place=0), 1.0)
    assert go(p, 1.0) == [(0, 0)]
    assert [each.place for each in later] == [1, 2, 3]


def test_a_full_queue_turns_away_and_a_retry_is_never_turned_away_for_it():
    p = pool(1, max_queued=1)
    take(p)
    p.ask(Ask(), 0.0)
    assert p.ask(Ask(), 0.0).refusal == "queue_full"
    assert p.ask(Ask(place=0), 0.0).refusal is None


def test_no_queue_at_all_still_lets_calls_out_while_there_is_room():
    p = pool(1, max_queued=0)
    assert take(p) is not None
    assert p.ask(Ask(), 0.0).refusal == "queue_full"


def test_who_waits_too_long_is_told():
    p = pool(1)
    take(p)
    p.ask(Ask(wait_s=5.0), 0.0)
    assert (go(p, 4.9), p.next_at(4.9)) == ([], 5.0)
    assert (go(p, 5.0), p.queued) == ([(1, "queue_timeout")], 0)


def test_the_least_loaded_endpoint_takes_the_next_call():
    p = pool(10, 10, weights={1: 2.0})
    assert [take(p).lane for _ in range(6)] == [1, 0, 1, 1, 0, 1]


def test_an_endpoint_that_failed_a_call_is_not_asked_again_while_there_is_another():
    p = pool(10, 10)
    assert take(p, tried=frozenset({0})).lane == 1
    assert take(p, tried=frozenset({0, 1})).lane == 0


def test_a_session_stays_where_it_is_until_its_endpoint_rests():
    p = pool(100, 100, 100)
    homes = {name: take(p, session=name).lane for name in map(str, range(30))}
    assert {take(p, session=name).lane == home for name, home in homes.items()} == {True}
    assert set(homes.values()) == {0, 1, 2}
    for _ in range(MAX_FAILURES):
        p.ended(take(p, tried=frozenset({1, 2})), "failed", 0.0)
    moved = {name: take(p, session=name).lane for name in homes}
    assert all(moved[name] == home for name, home in homes.items() if home != 0)
    assert all(lane != 0 for lane in moved.values())


def test_a_session_that_waits_does_not_hold_up_the_others():
    p = pool(1, 1)
    home = take(p, session="a").lane
    p.ask(Ask(session="a"), 0.0)
    p.ask(Ask(), 0.0)
    assert go(p) == [(2, 1 - home)]


def test_a_session_that_waits_for_an_endpoint_that_fails_goes_elsewhere():
    p = pool(1, 1)
    grant = take(p, session="a")
    p.ask(Ask(session="a"), 0.0)
    for at in range(MAX_FAILURES):
        assert go(p, float(at)) == []
        p.ended(grant, "failed", float(at))
        if at < MAX_FAILURES - 1:
            grant = take(p, now=float(at), place=-1, session="a")
    assert go(p, 7.5) == [(1, 1 - grant.lane)]


def test_an_endpoint_without_answers_rests_then_one_call_finds_out():
    p = pool(100, max_queued=100)
    grants = [take(p) for _ in range(MAX_FAILURES + 1)]
    for grant in grants[:MAX_FAILURES]:
        p.ended(grant, "unreachable", 0.0)
    p.ended(grants[-1], "failed", 0.1)
    first, second = p.ask(Ask(), 0.1), p.ask(Ask(), 0.1)
    assert (go(p, 0.1), p.next_at(0.1)) == ([], FIRST_REST_S)
    assert go(p, FIRST_REST_S) == [(first.place, 0)]
    p.ended(first.grant, "failed", FIRST_REST_S)
    assert go(p, 2.9) == [], "it rests twice as long"
    assert go(p, 3.0) == [(second.place, 0)]
    p.answered(second.grant, 3.5)
    assert [take(p, now=3.5) is not None for _ in range(5)] == [True] * 5


def test_a_500_does_not_let_an_endpoint_rest():
    p = pool(100)
    for _ in range(2 * MAX_FAILURES):
        p.ended(take(p), "erred", 0.0)
    assert take(p) is not None


def test_a_probe_whose_client_left_says_nothing():
    p = pool(1)
    for _ in range(MAX_FAILURES):
        p.ended(take(p), "failed", 0.0)
    probe = take(p, now=1.0)
    p.ended(probe, "left", 1.1)
    assert take(p, now=1.2).probe


def test_while_nothing_works_calls_wait_so_long_and_no_longer():
    p = pool(1)
    grant = take(p)
    for _ in range(MAX_FAILURES):
        p.ended(grant, "unreachable", 0.0)
        grant = take(p)
    early, late = p.ask(Ask(down_wait_s=5.0), 0.0), p.ask(Ask(down_wait_s=50.0), 0.0)
    p.ask(Ask(place=-1), 0.0)
    refused = {}
    for now in range(20):
        for each in p.decide(float(now)):
            if each.refusal:
                refused[each.place] = (now, each.refusal)
            else:
                p.ended(each.grant, "unreachable", float(now))
                p.ask(Ask(place=-1), float(now))
    assert refused == {early.place: (5, "down")}
    assert not late.decided


def test_a_pause_that_is_asked_for_holds_all_calls():
    p = pool(10)
    p.ended(take(p), "throttled", 0.0, wait_s=7.0)
    p.ask(Ask(), 0.0)
    assert (go(p, 6.9), p.next_at(6.9)) == ([], 7.0)
    assert go(p, 7.0) == [(1, 0)]


def test_requests_a_minute_are_kept_to():
    p = pool(100, requests_per_minute=3)
    asked = [p.ask(Ask(), 0.0) for _ in range(5)]
    assert [each.decided for each in asked] == [True] * 3 + [False] * 2
    assert (go(p), p.next_at(0.0)) == ([], 60.0)
    assert len(go(p, 60.0)) == 2


def test_tokens_a_minute_are_kept_to_and_corrected():
    p = pool(100, tokens_per_minute=1000)
    first = take(p, tokens=400)
    p.ask(Ask(tokens=700), 0.0)
    assert (go(p), p.next_at(0.0)) == ([], 60.0)
    p.ended(first, "ok", 1.0, tokens=100)
    assert go(p, 1.0) == [(1, 0)]
    assert take(p, 2.0, tokens=10) is not None


def test_a_count_of_tokens_that_cannot_be_does_no_lasting_harm():
    p = pool(100, tokens_per_minute=1000)
    p.ended(take(p, tokens=10), "ok", 0.0, tokens=-(10**15))
    assert [bool(take(p, tokens=900)) for _ in range(2)] == [True, False], "one of them in a minute"
    p.ended(take(p, 61.0, tokens=10), "ok", 61.0, tokens=10**15)
    assert [bool(take(p, 122.0, tokens=10)) for _ in range(3)] == [True] * 3


steps = st.lists(
    st.sampled_from(["ask", "ask", "retry", "ok", "failed", "erred", "unreachable", "throttled", "left", "wait"])
)


@given(steps, st.integers(1, 3), st.integers(0, 2**32))
def test_whatever_happens_the_counts_add_up(steps, lanes, seed):
    chance = random.Random(seed)
    p = pool(*[chance.randint(1, 4) for _ in range(lanes)], adaptive=chance.random() < 0.5, max_queued=20)
    now, out, queue, asked, ended = 0.0, [], [], 0, 0
    for step in steps:
        now += chance.random()
        if step in ("ask", "retry"):
            waiting = p.ask(
                Ask(session=chance.choice([None, "a", "b"]), place=-1 - asked if step == "retry" else None), now
            )
            asked += waiting.refusal is None
            queue += [] if waiting.decided else [waiting]
            out += [waiting] if waiting.grant else []
        elif step == "wait":
            now += 40.0
        elif out:
            p.ended(out.pop(chance.randrange(len(out))).grant, step, now)
            ended += 1
        decided = p.decide(now)
        out += [each for each in decided if each.grant]
        queue = [each for each in queue if not each.decided]
        told = p.to_json(now)
        assert told["queued"] == len(queue) == p.queued
        assert told["in_flight"] == len(out) == sum(lane.in_flight for lane in p.lanes)
        assert told["sent"] == len(out) + ended
        assert all(lane["in_flight"] <= max(lane["limit"], 4) for lane in told["endpoints"])
        if queue:
            assert p.next_at(now) is not None or out, "somebody will wake those that wait"
