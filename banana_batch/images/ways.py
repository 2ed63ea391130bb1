"""How many images come at once: a line that moves on when one has come, or when its first has waited long enough."""

import asyncio
from collections import deque


class Ways:
    """So many ways for images to come. Make it where the loop runs.

    Its line has one timer, and a place in it is one future: a semaphore with a timeout for each that waits was a
    twentieth of what the process of the images takes.

    Args:
        count: Images that come at once.
        patience_s: How long one waits for those before it; then it comes all the same.

    Attributes:
        free: Ways that nobody holds.
    """

    def __init__(self, count: int, patience_s: float) -> None:
        self.free = count
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._line: deque[tuple[float, asyncio.Future[bool]]] = deque()
        self._timed = False

    async def take(self) -> bool:
        """Wait for a way, but not for long; tell whether one is held, which is to be given back."""
        if self.free:
            self.free -= 1
            return True
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._line.append((self._loop.time() + self._patience_s, waiter))
        if not self._timed:
            self._time_the_first()
        try:
            return await waiter
        except asyncio.CancelledError:
            # Cancelled in the very turn in which it was given one.
            if not waiter.cancelled() and waiter.result():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Hand a way on to whoever waits longest."""
        while self._line:
            _, waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return
        self.free += 1

    def _let_in(self, due_s: float) -> None:
        now_s = max(due_s, self._loop.time())  # a timer may end a rounding error before its time
        while self._line and (self._line[0][0] <= now_s or self._line[0][1].done()):
            _, waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_result(False)
        self._time_the_first()

    def _time_the_first(self) -> None:
        self._timed = bool(self._line)
        if self._line:
            due_s = self._line[0][0]
            self._loop.call_at(due_s, self._let_in, due_s)
