"""How many images come at once."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from banana_batch.images.ways import Ways
from tests.unit.pacing.simulated import simulate

PATIENCE_S = 0.5


Scene = Callable[..., Coroutine[Any, Any, None]]


def on_virtual_time(scene: Scene) -> Callable[..., None]:
    """Time passes only where everybody waits for it."""

    @functools.wraps(scene)
    def run(**given: object) -> None:
        simulate(functools.partial(scene, **given))

    return run


async def _taken() -> Ways:
    """Return one way, which is taken."""
    ways = Ways(1, PATIENCE_S)
    assert await ways.take()
    return ways


async def _taking(ways: Ways, came: list[tuple[int, bool]], number: int) -> bool:
    held = await ways.take()
    came.append((number, held))
    return held


@on_virtual_time
async def test_whoever_waits_longest_gets_the_way_that_is_given_back() -> None:
    """And nobody before there is one."""
    ways, came = Ways(2, PATIENCE_S), list[tuple[int, bool]]()
    tasks = [asyncio.create_task(_taking(ways, came, number)) for number in range(4)]
    await asyncio.sleep(0.1)
    assert came == [(0, True), (1, True)]
    for expected in (2, 3):
        ways.give_back()
        await asyncio.sleep(0)
        assert came[-1] == (expected, True)
    await asyncio.gather(*tasks)
    ways.give_back()
    ways.give_back()
    assert ways.free == 2


@on_virtual_time
async def test_who_waited_long_enough_goes_without_a_way_each_after_its_own_time() -> None:
    """The first to wait was there 0.2 s before the second; none of them holds a way."""
    loop, ways, came = asyncio.get_running_loop(), await _taken(), list[tuple[int, bool]]()
    began_s = loop.time()
    first = asyncio.create_task(_taking(ways, came, 1))
    await asyncio.sleep(0.2)
    second = asyncio.create_task(_taking(ways, came, 2))
    assert not await first
    assert loop.time() - began_s == pytest.approx(PATIENCE_S)
    assert came == [(1, False)]
    assert not await second
    assert loop.time() - began_s == pytest.approx(PATIENCE_S + 0.2)
    ways.give_back()
    assert ways.free == 1


@on_virtual_time
async def test_after_a_rest_the_line_has_its_time_again() -> None:
    """A way that was given back in time leaves nothing behind that would let the next one in early."""
    loop, ways = asyncio.get_running_loop(), await _taken()
    served = asyncio.create_task(ways.take())
    await asyncio.sleep(0.4)
    ways.give_back()
    assert await served
    began_s = loop.time()
    assert not await ways.take()
    assert loop.time() - began_s == pytest.approx(PATIENCE_S)


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "in the turn in which it is given one"])
@on_virtual_time
async def test_no_way_is_lost_with_whoever_is_cancelled(late: bool) -> None:
    """The next in the line gets it."""
    ways, came = await _taken(), list[tuple[int, bool]]()
    first, second = (asyncio.create_task(_taking(ways, came, number)) for number in (1, 2))
    await asyncio.sleep(0)
    if late:
        ways.give_back()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    if not late:
        ways.give_back()
    assert await second
    assert came == [(2, True)]
    ways.give_back()
    assert ways.free == 1


@on_virtual_time
async def test_one_that_is_cancelled_when_it_was_let_in_without_a_way_gives_none_back() -> None:
    """Else there would be more than there are."""
    loop, ways = asyncio.get_running_loop(), await _taken()
    waiting = asyncio.create_task(ways.take())
    await asyncio.sleep(0)
    loop.call_later(PATIENCE_S, waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ways.free == 0


@on_virtual_time
async def test_one_that_left_the_line_does_not_end_the_patience_of_those_behind_it() -> None:
    """It is still in the line when its time is over; the next one goes when its own is."""
    loop, ways = asyncio.get_running_loop(), await _taken()
    began_s = loop.time()
    gone = asyncio.create_task(ways.take())
    await asyncio.sleep(0.2)
    waiting = asyncio.create_task(ways.take())
    await asyncio.sleep(0)
    gone.cancel()
    assert not await waiting
    assert loop.time() - began_s == pytest.approx(PATIENCE_S + 0.2)


@on_virtual_time
async def test_a_timer_that_ends_a_rounding_error_early_is_no_endless_one() -> None:
    """The waiter that it was set for is due, whatever the clock says."""
    loop, ways = asyncio.get_running_loop(), await _taken()
    for number in range(60):
        await asyncio.sleep(0.0137 * number)
        began_s = loop.time()
        assert not await ways.take()
        assert loop.time() - began_s == pytest.approx(PATIENCE_S)


@on_virtual_time
async def test_a_line_has_one_timer_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each that waits is what a semaphore with a timeout costs."""
    loop, ways, timed = asyncio.get_running_loop(), await _taken(), list[float]()
    call_at = loop.call_at

    def counted(when_s: float, *called: Any, **given: Any) -> asyncio.TimerHandle:
        timed.append(when_s)
        return call_at(when_s, *called, **given)

    monkeypatch.setattr(loop, "call_at", counted)
    assert not any(await asyncio.gather(*(ways.take() for _ in range(50))))
    assert len(timed) == 1
