"""How long calls of a kind take, over its recent answers.

Rule 1: only bought images count. A refusal comes back at once and says nothing about how long an image takes.
Rule 2: a ring beside a sorted list: one binary search an answer, and each percentile is a look-up.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

from banana_batch.models import Kind

RECENT = 500  # answers of a kind that count: enough for a p95, and an hour ago is forgotten


class _Recent:
    """The last RECENT latencies of one kind, by age and by size."""

    __slots__ = ("by_age", "by_size")

    def __init__(self) -> None:
        self.by_age: deque[float] = deque()
        self.by_size: list[float] = []

    def add(self, latency_s: float) -> None:
        if len(self.by_age) == RECENT:
            del self.by_size[bisect_left(self.by_size, self.by_age.popleft())]
        self.by_age.append(latency_s)
        insort(self.by_size, latency_s)

    def percentile(self, percent: int) -> float:
        # Nearest rank: with few answers p95 is the slowest one seen, which errs on the side of stopping in time.
        return self.by_size[(len(self.by_size) * percent + 99) // 100 - 1]


class Latencies:
    """Percentiles of the latency per kind, seconds."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, _Recent] = {}

    def add(self, kind: Kind, latency_s: float) -> None:
        """Take in one answer."""
        recent = self._kinds.get(kind)
        if recent is None:
            recent = self._kinds[kind] = _Recent()
        recent.add(latency_s)

    def seed(self, kind: Kind, latencies_s: Iterable[float]) -> None:
        """Take in the answers of earlier runs, oldest first; this run's own push them out."""
        for latency_s in latencies_s:
            self.add(kind, latency_s)

    def p95(self, kind: Kind) -> float | None:
        """Return the 95th percentile; None: no answer of this kind was seen."""
        recent = self._kinds.get(kind)
        return None if recent is None else recent.percentile(95)

    def both(self, kind: Kind) -> tuple[float, float] | None:
        """Return the median and the 95th percentile; None: no answer of this kind was seen."""
        recent = self._kinds.get(kind)
        return None if recent is None else (recent.percentile(50), recent.percentile(95))
