"""How images are spread over the time until the next calls end.

Hundreds of calls that began together end together: a burst of answers, then a lull until the next one. Images that
follow the burst at once leave the lull idle, and a machine that was idle for most of a second wakes slowly: measured,
each wave's first call was followed by its next after 60 ms instead of 8, and the whole wave with it.

Rule 1: as many images a second as calls end on average: an image waits no longer than a call takes.
Rule 2: only where that is a moment. A lull of many seconds is not filled: each step finds the machine idle again, and
        costs more (measured with calls of 5 s: 8 % more CPU an image).
"""

import math

STEP_S = 0.125  # images of a step share their syncs
SHORTEST_S, LONGEST_S = 0.5, 2.0
_WEIGHT = 1 / 32  # of one answer in the usual latency


class Pace:
    """Says how many images may be started now.

    Args:
        calls: Paid calls in flight at most.
    """

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._usual_s: float | None = None
        self._left = 0
        self.next_s = -math.inf

    def answered(self, latency_s: float) -> None:
        """Learn how long a call took, seconds."""
        usual_s = self._usual_s
        self._usual_s = latency_s if usual_s is None else usual_s + (latency_s - usual_s) * _WEIGHT

    def left(self, now_s: float) -> int | None:
        """Return how many images may be started now, the next ones at `next_s`; None: as many as there are."""
        usual_s = self._usual_s
        if usual_s is None or not SHORTEST_S <= usual_s <= LONGEST_S:
            return None
        if now_s >= self.next_s:
            self.next_s = now_s + STEP_S
            self._left = math.ceil(self._calls * STEP_S / usual_s)
        return self._left

    def started(self) -> None:
        """One image was started."""
        self._left -= 1
