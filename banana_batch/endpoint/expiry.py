"""When calls have taken too long: one timer for all that are under way.

A timer each costs a microsecond and a kilobyte a call, of which thousands are under way for minutes.
"""

import asyncio
from collections.abc import Callable

from banana_batch.loop_time import time_of

Late = Callable[[], None]


class Expiry:
    """Calls back what is not over in time. Make it where the loop runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now_s = time_of(self._loop)
        # By how long they may take: those of one line end in the order in which they began.
        self._lines: dict[float, dict[Late, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, late: Late, within_s: float) -> None:
        """Call `late` back in so many seconds, unless it is over by then."""
        line = self._lines.setdefault(within_s, {})
        first = not line
        line[late] = self._now_s() + within_s
        if first:
            self._set_timer()

    def over(self, late: Late, within_s: float) -> None:
        """Forget one that began."""
        self._lines.get(within_s, {}).pop(late, None)

    def close(self) -> None:
        """Call nothing back any more."""
        self._lines.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dues_s = [next(iter(line.values())) for line in self._lines.values() if line]
        if dues_s:
            self._timer = self._loop.call_later(max(0.0, min(dues_s) - self._now_s()), self._look)

    def _look(self) -> None:
        now_s = self._now_s()
        for line in self._lines.values():
            for late in [late for late, due_s in line.items() if due_s <= now_s]:
                del line[late]
                late()
        self._set_timer()
