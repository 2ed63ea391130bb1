"""Tasks that wait for something to change, or for a moment to come."""

import asyncio
from collections import deque

from banana_batch.ports import Clock


class Waiters:
    """A line of waiting tasks. Cancel-safe: one that was cancelled is passed over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._line: deque[asyncio.Future[None]] = deque()

    async def wait(self, until_s: float | None = None) -> None:
        """Wait to be woken, or until a moment of the monotonic clock."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._line.append(future)
        timer = None
        if until_s is not None:
            timer = loop.call_later(max(0.0, until_s - self._clock.monotonic_s()), _resolve, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()

    def wake_one(self) -> None:
        """Wake the task that waits longest."""
        while self._line:
            if _resolve(self._line.popleft()):
                return

    def wake_all(self) -> None:
        """Wake every task."""
        while self._line:
            _resolve(self._line.popleft())


def _resolve(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False
    future.set_result(None)
    return True
