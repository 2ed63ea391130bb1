"""The clock of the running event loop, so that a simulated night runs on the loop's virtual time."""

import asyncio
import time


class SystemClock:
    """Implements ports.Clock."""

    def monotonic_s(self) -> float:
        """Return the running loop's time, seconds: it never jumps."""
        return asyncio.get_running_loop().time()

    def wall_us(self) -> int:
        """Return microseconds since the epoch, UTC."""
        return time.time_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        """Wait on the loop's time."""
        await asyncio.sleep(seconds)
