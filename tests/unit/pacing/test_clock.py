"""The clock of a run."""

import asyncio

from banana_batch.pacing.clock import SystemClock


async def test_a_thread_without_a_loop_may_ask() -> None:
    """The progress bar draws on a thread of its own, by the same clock as the run."""
    clock = SystemClock()
    before_s = clock.monotonic_s()
    assert before_s <= await asyncio.to_thread(clock.monotonic_s) <= clock.monotonic_s()
