"""The clock of the run's event loop, so that a simulated night runs on the loop's virtual time."""

import asyncio
import time
from collections.abc import Callable

from banana_batch.loop_time import time_of


class SystemClock:
    """Implements ports.Clock. One for each run: it keeps to the loop in which it was first asked."""

    def __init__(self) -> None:
        self._read: Callable[[], float] | None = None

    def monotonic_s(self) -> float:
        """Return the loop's time, seconds: it never jumps. Any thread may ask, once the loop's own has.

        The progress bar draws on a thread without a loop (tests/acceptance/test_terminal.py).
        """
        if self._read is None:
            self._read = time_of(asyncio.get_running_loop())
        return self._read()

    def wall_us(self) -> int:
        """Return microseconds since the epoch, UTC."""
        return time.time_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        """Wait on the loop's time."""
        await asyncio.sleep(seconds)
