"""`--rpm` as a promise about every minute."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banana_batch.pacing.learned import AcceptedCalls
from banana_batch.pacing.rate import StartsPerMinute
from tests.unit.pacing.simulated import KIND, Server, make_pacer, run_for, simulate


def _most_in_a_minute(starts: list[float]) -> int:
    return max(sum(1 for other_s in starts if start_s <= other_s < start_s + 60) for start_s in starts)


@settings(deadline=None)
@given(
    per_minute=st.integers(1, 120), asks=st.lists(st.floats(0, 40, allow_nan=False, allow_infinity=False), max_size=300)
)
def test_no_minute_ever_sees_more_starts(per_minute: int, asks: list[float]) -> None:
    """However the demand comes and goes, any 60 seconds hold at most N starts."""
    rate = StartsPerMinute(per_minute)
    now_s, starts = 0.0, [0.0]
    rate.started(0.0)
    for pause_s in asks:
        now_s = max(now_s + pause_s / 40, rate.ready_s(now_s + pause_s / 40))
        rate.started(now_s)
        starts.append(now_s)
    assert _most_in_a_minute(starts) <= per_minute


@pytest.mark.parametrize("rpm", [1, 20, 300])
def test_the_rate_is_kept_on_the_wire_and_used(rpm: int) -> None:
    """Ten minutes at --rpm N: no minute with more than N arrivals, and 95 % of 10 × N in all."""
    server = Server()
    pacer = make_pacer(concurrency=100, rpm=rpm)
    simulate(lambda: run_for(600, pacer, server.call, 100))
    assert _most_in_a_minute(server.sent) <= rpm
    assert len(server.sent) >= int(0.95 * 10 * rpm)


def test_a_turn_given_back_costs_no_start() -> None:
    """A turn that was not used leaves its start to the next."""

    async def scene() -> None:
        pacer = make_pacer(rpm=1)
        assert await pacer.admit(KIND)
        pacer.withdraw()
        assert await asyncio.wait_for(pacer.admit(KIND), 0.01)
        assert pacer.in_flight == 1

    simulate(scene)


def test_calls_side_by_side_are_counted_by_their_certain_middle() -> None:
    """Calls that only touch at their edges were not served together."""
    calls = AcceptedCalls()
    for start in range(10):
        calls.add(start, start + 1.05)
    assert calls.side_by_side() == 1
    calls.add(3.0, 6.0)
    assert calls.side_by_side() == 2


def test_more_calls_than_are_kept_still_tell_the_rate() -> None:
    """Above a thousand a minute the rate is worked out from what is kept."""
    calls = AcceptedCalls()
    for number in range(5000):
        calls.add(number / 100, number / 100 + 1)
    assert calls.per_minute(50, 0) == pytest.approx(6000, rel=0.01)
