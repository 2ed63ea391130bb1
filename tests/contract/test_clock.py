"""What every clock promises: the run's own, the virtual one of simulated nights, the one that tests turn."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from banana_batch.pacing.clock import SystemClock
from banana_batch.ports import Clock
from tests.contract.fakes import ManualClock, VirtualClock
from tests.unit.pacing.simulated import simulate

Scene = Callable[[Clock], Awaitable[None]]
TICK_S = 0.001


def on_the_machine(scene: Scene) -> None:
    async def run() -> None:
        await scene(SystemClock())

    asyncio.run(run())


def on_virtual_time(scene: Scene) -> None:
    simulate(lambda: scene(VirtualClock()))


def turned_by_hand(scene: Scene) -> None:
    async def run() -> None:
        clock = ManualClock()
        playing = asyncio.ensure_future(scene(clock))
        while not playing.done():
            clock.now_s += TICK_S
            await asyncio.sleep(0)
        playing.result()

    asyncio.run(run())


every_clock = pytest.mark.parametrize("play", [on_the_machine, on_virtual_time, turned_by_hand])


@every_clock
def test_a_wait_lasts_as_long_as_was_said(play: Callable[[Scene], None]) -> None:
    """By the clock's own time; a float's last digit aside."""

    async def scene(clock: Clock) -> None:
        for seconds in (0.02, 0.0, 0.005):
            before_s = clock.monotonic_s()
            await clock.sleep(seconds)
            assert clock.monotonic_s() - before_s >= seconds - 1e-6

    play(scene)


@every_clock
def test_the_monotonic_clock_never_goes_back(play: Callable[[Scene], None]) -> None:
    """However often it is asked, and across waits."""

    async def scene(clock: Clock) -> None:
        seen = []
        for _ in range(50):
            seen += [clock.monotonic_s(), clock.monotonic_s()]
            await clock.sleep(0)
        assert seen == sorted(seen)

    play(scene)


@every_clock
def test_the_wall_clock_counts_microseconds_since_1970(play: Callable[[Scene], None]) -> None:
    """Whole ones, between the years 2020 and 2100."""

    async def scene(clock: Clock) -> None:
        now_us = clock.wall_us()
        assert type(now_us) is int
        assert 1_577_836_800 < now_us / 1e6 < 4_102_444_800

    play(scene)


@every_clock
def test_the_shorter_wait_ends_first(play: Callable[[Scene], None]) -> None:
    """Whoever began to wait first, and nobody holds up the others."""

    async def scene(clock: Clock) -> None:
        ended: list[float] = []

        async def wait(seconds: float) -> None:
            await clock.sleep(seconds)
            ended.append(seconds)

        await asyncio.gather(*map(wait, (0.04, 0.02, 0.0)))
        assert ended == [0.0, 0.02, 0.04]

    play(scene)


@every_clock
def test_a_wait_can_be_cancelled(play: Callable[[Scene], None]) -> None:
    """At once, not at its end."""

    async def scene(clock: Clock) -> None:
        waiting = asyncio.ensure_future(clock.sleep(3600))
        await clock.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    play(scene)
