"""The clock of a run."""

import asyncio
import time

import uvloop

from banana_batch.pacing.clock import SystemClock


async def test_a_thread_without_a_loop_may_ask() -> None:
    """The progress bar draws on a thread of its own, by the same clock as the run."""
    clock = SystemClock()
    before_s = clock.monotonic_s()
    assert before_s <= await asyncio.to_thread(clock.monotonic_s) <= clock.monotonic_s()


def test_time_passes_during_a_turn_of_the_loop() -> None:
    """Planning a million rows is one turn: --max-duration and a machine's sleep are told by what came before it."""

    async def turn() -> float:
        clock = SystemClock()
        before_s = clock.monotonic_s()
        time.sleep(0.01)
        return clock.monotonic_s() - before_s

    assert uvloop.run(turn()) >= 0.01
