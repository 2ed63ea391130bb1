"""The door itself: the line before it, and how it shuts."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from banana_batch.models import Signal
from banana_batch.pacing.clock import SystemClock
from banana_batch.pacing.pacer import Pacer, Stop, StopCause
from banana_batch.ports import Clock
from banana_batch.ports import Pacer as PacerPort
from tests.contract.fakes import Told, VirtualClock
from tests.unit.pacing.simulated import KIND, Server, make_pacer, run_for, simulate


def test_it_is_what_the_engine_asks_for() -> None:
    """The pacer and the clock implement their ports (mypy holds the signatures)."""
    pacer: PacerPort = make_pacer()
    clock: Clock = SystemClock()
    assert pacer
    assert clock


def test_width_is_never_exceeded_and_the_line_is_served_in_order() -> None:
    """-c 3 with ten workers: three at most in flight, turns first come, first served."""

    async def scene() -> list[int]:
        pacer = make_pacer(concurrency=3)
        order: list[int] = []

        async def one(number: int) -> None:
            assert await pacer.admit(KIND)
            assert pacer.in_flight <= 3
            order.append(number)
            await asyncio.sleep(1)
            pacer.ended(KIND, Signal.GOOD, 1.0, None)

        await asyncio.gather(*(one(number) for number in range(10)))
        assert pacer.in_flight == 0
        return order

    assert simulate(scene) == list(range(10))


def test_drain_wakes_everyone_at_once() -> None:
    """Who waits is told False in the same instant, and so is who comes later; calls in flight are left alone."""

    async def scene() -> None:
        pacer = make_pacer(concurrency=1)
        assert await pacer.admit(KIND)
        waiting = [asyncio.ensure_future(pacer.admit(KIND)) for _ in range(5)]
        await asyncio.sleep(10)
        pacer.drain()
        assert await asyncio.gather(*waiting) == [False] * 5
        assert asyncio.get_running_loop().time() == pytest.approx(10)
        assert not await pacer.admit(KIND)
        assert pacer.in_flight == 1
        pacer.ended(KIND, Signal.GOOD, 10.0, None)
        assert not await pacer.admit(KIND)
        assert pacer.stopped_because == StopCause(Stop.DRAIN)

    simulate(scene)


def test_a_cancelled_wait_takes_no_turn() -> None:
    """Neither one cancelled in line, nor one cancelled in the instant in which its turn came."""

    async def scene() -> None:
        pacer = make_pacer(concurrency=1)
        assert await pacer.admit(KIND)
        first, second, third = (asyncio.ensure_future(pacer.admit(KIND)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        pacer.ended(KIND, Signal.GOOD, 1.0, None)  # the turn goes to the second …
        second.cancel()  # … which is cancelled before it sees it
        assert await third
        assert pacer.in_flight == 1
        assert first.cancelled()
        assert second.cancelled()

    simulate(scene)


def test_a_hold_pauses_until_the_last_reason_is_gone() -> None:
    """Two holds, one released: still nobody starts; both: the line moves at once. A drain needs no release."""

    async def scene() -> None:
        pacer = make_pacer()
        assert await pacer.admit(KIND)
        pacer.hold("backlog")
        pacer.hold("disk")
        waits = asyncio.ensure_future(pacer.admit(KIND))
        await asyncio.sleep(1000)
        pacer.release("disk")
        pacer.release("never held")
        await asyncio.sleep(1000)
        assert not waits.done()
        pacer.release("backlog")
        assert await waits
        pacer.hold("backlog")
        waits = asyncio.ensure_future(pacer.admit(KIND))
        await asyncio.sleep(1)
        pacer.drain()
        assert not await waits

    simulate(scene)


def test_a_machine_that_slept_is_noticed_and_a_clock_set_back_is_not() -> None:
    """The wall clock ran 8 hours ahead: said once. Set back by 2 days: nothing happens, waits are not touched."""
    clock, told = VirtualClock(), Told()

    async def scene() -> None:
        pacer = make_pacer(clock, told)
        for moved_s in (0.0, 8 * 3600.0, 0.0, -2 * 86400.0, 20.0):
            clock.wall_offset_s += moved_s
            assert await pacer.admit(KIND)
            await asyncio.sleep(5)
            pacer.ended(KIND, Signal.GOOD, 5.0, None)
        assert pacer.latency(KIND) == (5.0, 5.0)

    simulate(scene)
    assert [(name, round(facts["gap_s"])) for name, facts in told.events] == [("slept", 8 * 3600)]


def test_without_a_refusal_it_costs_nothing() -> None:
    """2,500 calls through 50 workers: no event, no throttled second, and no turn ever waits."""
    told, server = Told(), Server()
    pacer = make_pacer(told=told, concurrency=50)
    simulate(lambda: run_for(600, pacer, server.call, 50))
    assert not told.events
    assert not pacer.incidents
    assert simulate(_throttled(pacer)) == 0
    assert len(server.good) > 0.97 * 50 * 600 / 11.8


def _throttled(pacer: Pacer) -> Callable[[], Awaitable[float]]:
    async def scene() -> float:
        return pacer.throttled_s

    return scene


async def test_a_free_turn_is_given_without_awaiting() -> None:
    """On the real loop: with nothing in the way, a turn needs no trip through the loop, and microseconds."""
    pacer = make_pacer(SystemClock())
    assert await pacer.admit(KIND)
    started_s = time.perf_counter()
    for _ in range(1000):
        turn = pacer.admit(KIND)
        with pytest.raises(StopIteration) as ended:
            turn.send(None)
        assert ended.value.value is True
        pacer.ended(KIND, Signal.GOOD, 1.0, None)
    assert (time.perf_counter() - started_s) / 1000 < 0.001
    assert abs(SystemClock().wall_us() / 1e6 - time.time()) < 5
    await SystemClock().sleep(0)
