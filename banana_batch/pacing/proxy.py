"""Whether doubts look like a proxy's timeout: cut after the same time, whenever they began.

A cut that ends many calls of one wave at the same instant gives equal times too, and is no timeout. So the equal
times have to come from at least two instants.
"""

from collections import deque
from collections.abc import Collection

TOLERANCE_S = 2.0
SHORTEST_S = 5.0
ENOUGH = 3
_KEPT = 64


class ProxyTimeout:
    """Finds a constant time after which calls are cut.

    Attributes:
        likely_s: The time, seconds; None: no sign of one.
    """

    def __init__(self, own_timeouts_s: Collection[float] = ()) -> None:
        self._own_s = tuple(own_timeouts_s)  # our own deadline ends calls after equal times, too
        self._doubts: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self.likely_s: float | None = None

    def doubt(self, now_s: float, latency_s: float) -> None:
        """Take in a doubt that came `latency_s` after its send."""
        if latency_s <= SHORTEST_S or any(abs(latency_s - own_s) <= TOLERANCE_S for own_s in self._own_s):
            return
        self._doubts.append((now_s, latency_s))
        alike = sorted(
            (lasted_s, when_s) for when_s, lasted_s in self._doubts if abs(lasted_s - latency_s) <= TOLERANCE_S
        )
        whens_s = [when_s for _, when_s in alike]
        if len(alike) >= ENOUGH and max(whens_s) - min(whens_s) > TOLERANCE_S:
            self.likely_s = alike[len(alike) // 2][0]
