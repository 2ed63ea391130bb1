"""Simulated servers on virtual time: what the pacing makes of what they allow."""

import asyncio

import pytest

from banana_batch.models import Signal
from banana_batch.pacing.pacer import Pacer
from tests.contract.fakes import Told
from tests.unit.pacing.simulated import (
    KIND,
    Bucket,
    FixedWindow,
    InFlight,
    Server,
    SlidingWindow,
    make_pacer,
    run_for,
    simulate,
)

TWO_HOURS_S = 7200.0


@pytest.mark.parametrize("concurrency", [8, 64])
@pytest.mark.parametrize("kind", [SlidingWindow, FixedWindow, Bucket])
def test_a_server_of_20_a_minute_is_used_to_nine_tenths(
    kind: type[SlidingWindow] | type[FixedWindow] | type[Bucket], concurrency: int
) -> None:
    """Over two hours at least 90 % of what it allows is used and under 2 % of calls are refused."""
    server = kind(20)
    pacer = make_pacer(concurrency=concurrency)
    simulate(lambda: run_for(TWO_HOURS_S, pacer, server.call, concurrency))
    assert server.used(20 * 120) >= 0.90
    assert server.refused_share() < 0.02
    assert pacer.per_minute == pytest.approx(19.5, abs=1.5)


def test_calls_of_a_throttled_night_come_evenly() -> None:
    """Once the rate is known, no second sees more than two starts: workers don't come back together."""
    server = SlidingWindow(20)
    pacer = make_pacer(concurrency=64)
    simulate(lambda: run_for(TWO_HOURS_S, pacer, server.call, 64))
    later = [when_s for when_s in server.sent if when_s > 120]
    assert len(later) > 2000
    assert all(third_s - first_s > 1.0 for first_s, third_s in zip(later, later[2:], strict=False))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_server_of_6_in_flight_is_met_at_5_to_6(seed: int) -> None:
    """With -c 64 the limit settles at 5 to 6 within ten minutes, stays, and the server has hardly a pause."""
    server = InFlight(6, seed)
    pacer = make_pacer(concurrency=64, seed=seed)
    seen: set[int] = set()

    async def scene() -> None:
        watch = asyncio.ensure_future(_watch(pacer, 600.0, seen))
        await run_for(TWO_HOURS_S, pacer, server.call, 64)
        watch.cancel()

    simulate(scene)
    assert seen <= {5, 6, 7}  # 7: one try now and then, a second long
    assert pacer.limit in {5, 6}
    assert pacer.per_minute is None
    assert len(server.good) >= 0.9 * 6 * TWO_HOURS_S / 11.7
    assert server.refused_share() < 0.01


async def _watch(pacer: Pacer, from_s: float, seen: set[int]) -> None:
    await asyncio.sleep(from_s)
    while True:
        seen.add(pacer.limit)
        await asyncio.sleep(1)


def test_a_server_that_grows_is_found_out() -> None:
    """A width that failed once is tried again: after the server takes 16, the limit follows."""
    server = InFlight(6)
    pacer = make_pacer(concurrency=16)

    async def scene() -> float:
        asyncio.get_running_loop().call_later(900, setattr, server, "most", 16)
        await run_for(TWO_HOURS_S, pacer, server.call, 16)
        return pacer.throttled_s

    throttled_s = simulate(scene)
    assert pacer.limit == 16
    assert 0 < throttled_s < TWO_HOURS_S


def test_a_rate_that_is_lifted_is_found_out() -> None:
    """A learned rate is raised step by step when nothing is refused, until it is none."""
    server = Bucket(20)
    pacer = make_pacer(concurrency=8)

    async def scene() -> None:
        asyncio.get_running_loop().call_later(900, setattr, server, "per_minute", 10_000)
        await run_for(TWO_HOURS_S, pacer, server.call, 8)

    simulate(scene)
    assert pacer.per_minute is None
    assert pacer.limit == 8


def test_a_burst_of_64_refusals_halves_once() -> None:
    """One round of calls teaches once: 64 refusals at the same time leave half the width, not 1."""

    async def scene() -> None:
        pacer = make_pacer(concurrency=64)
        for _ in range(64):
            assert await pacer.admit(KIND)
        for _ in range(64):
            pacer.ended(KIND, Signal.THROTTLED, 0.3, None)
        assert pacer.limit == 32

    simulate(scene)


def test_retry_after_is_honoured_by_all() -> None:
    """After a refusal with Retry-After 42, nobody sends for 42 seconds."""
    server = Server()
    times: list[float] = []

    async def call() -> tuple[Signal, float | None, float | None]:
        now_s = asyncio.get_running_loop().time()
        times.append(now_s)
        await asyncio.sleep(0.05)
        return (Signal.GOOD, 0.05, None) if now_s >= 42 else (Signal.THROTTLED, 0.05, 42.0)

    simulate(lambda: run_for(120, make_pacer(concurrency=4), call, 4))
    assert len([when_s for when_s in times if when_s < 42]) == 4
    assert min(when_s for when_s in times if when_s > 1) >= 42
    assert not server.sent


def test_the_first_wave_is_spread_over_a_quarter_of_a_second() -> None:
    """With -c 256 the sockets of the first wave open over 0.25 s, ever more slowly; with -c 8 at once."""

    async def scene(concurrency: int) -> list[float]:
        pacer = make_pacer(concurrency=concurrency)
        server = Server()
        await run_for(5, pacer, server.call, concurrency)
        return server.sent

    wide = simulate(lambda: scene(256))
    assert 0.2 < max(wide[:256]) < 0.3
    # Arrivals, a hundredth of a second after the sends.
    for share_of_time in (0.2, 0.4, 0.6, 0.8):
        opened = sum(when_s < share_of_time * 0.25 + 0.01 for when_s in wide) / 256
        assert opened == pytest.approx(1 - (1 - share_of_time) ** (4 / 3), abs=0.03)
    assert max(simulate(lambda: scene(8))[:8]) < 0.03


def test_throttling_is_told_and_summed_up() -> None:
    """`throttled` when it begins, `unthrottled` when it is over, and the seconds between them."""
    told = Told()
    server = InFlight(6)
    pacer = make_pacer(told=told, concurrency=8)

    async def scene() -> float:
        asyncio.get_running_loop().call_later(60, setattr, server, "most", 8)
        await run_for(3600.0, pacer, server.call, 8)
        return pacer.throttled_s

    throttled_s = simulate(scene)
    assert told.names()[0] == "throttled"
    assert told.names()[-1] == "unthrottled"
    assert told.events[-1][1]["duration_s"] == pytest.approx(throttled_s, abs=0.01)
    assert set(told.events[0][1]) == {"limit", "cooldown_s", "per_minute"}
