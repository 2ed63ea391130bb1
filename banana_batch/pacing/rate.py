"""`--rpm`: paid calls started per minute at most, as a promise about every minute, not about the average.

A token bucket spreads the starts; a window over the last N starts keeps the promise where the bucket's small
burst alone would break it.
"""

import math
from collections import deque

# A call starts on the wire a little after its turn (its row is made durable first). Without slack, a start that
# was late and one that was not would stand closer together than they were admitted.
WINDOW_S = 60.5
_BURST_SHARE = 20  # one in twenty starts of a minute may come at once, after a lull


class StartsPerMinute:
    """At most `per_minute` starts in any 60 seconds, spread evenly but for a small burst after a lull."""

    def __init__(self, per_minute: int) -> None:
        self._capacity = float(max(1, per_minute // _BURST_SHARE))
        self._per_s = per_minute / WINDOW_S
        self._tokens = self._capacity
        self._filled_s = -math.inf
        self._starts: deque[float] = deque(maxlen=per_minute)

    def ready_s(self, now_s: float) -> float:
        """Return when the next call may start, monotonic seconds; at most `now_s` if at once."""
        waits_s = (1.0 - self._level(now_s)) / self._per_s
        by_bucket = now_s + waits_s if waits_s > 1e-9 else now_s
        full = len(self._starts) == self._starts.maxlen
        return max(by_bucket, self._starts[0] + WINDOW_S) if full else by_bucket

    def started(self, now_s: float) -> None:
        """Take a start."""
        self._tokens = self._level(now_s) - 1.0
        self._filled_s = now_s
        self._starts.append(now_s)

    def refund(self) -> None:
        """Give back the last start: its call was never attempted."""
        if self._starts:
            self._starts.pop()
            self._tokens = min(self._capacity, self._tokens + 1.0)

    def _level(self, now_s: float) -> float:
        if self._filled_s == -math.inf:
            return self._capacity
        return min(self._capacity, self._tokens + (now_s - self._filled_s) * self._per_s)
