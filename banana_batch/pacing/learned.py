"""The rate that an endpoint allows, learned from what it accepted and what it refused.

An endpoint that counts calls a minute refuses at any width: a lone call too. One that counts calls in flight
never refuses fewer calls than it has served side by side. So a refusal that came with clearly fewer calls in
flight than were once accepted together is about the rate, and what was accepted within the last minute is it.

Rule 1: no clock, no randomness: times are handed in.
"""

import math
from collections import deque

MINUTE_S = 60.0
SHARE = 0.95  # of the rate that was seen to be allowed: the rest is for the jitter between a turn and its first byte
FIRST_PATIENCE_S = 300.0
LONGEST_PATIENCE_S = 3600.0
_FIRST_STEP = 0.05
_KEPT = 1024
# An answer is on its way while the endpoint has long begun the next call: only the middle of a call is certain.
_CERTAIN = 0.1


class AcceptedCalls:
    """The last calls that were accepted, each from its send to its answer, monotonic seconds."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, float]] = deque(maxlen=_KEPT)

    def add(self, sent_s: float, ended_s: float) -> None:
        """Take in one accepted call, when it ended."""
        self._calls.append((sent_s, ended_s))

    def ended_since(self, when_s: float) -> int:
        """Return how many ended after `when_s`."""
        count = 0
        for _, ended_s in reversed(self._calls):
            if ended_s <= when_s:
                break
            count += 1
        return count

    def per_minute(self, now_s: float, in_flight: int) -> float:
        """Return how many were accepted within the last minute, those still in flight among them."""
        recent = [sent_s for sent_s, _ in self._calls if sent_s > now_s - MINUTE_S]
        if len(recent) == _KEPT:  # more than are kept: what is kept tells the rate
            return _KEPT / max(now_s - min(recent), 1e-3) * MINUTE_S + in_flight
        return len(recent) + in_flight

    def room_s(self, now_s: float) -> float:
        """Return when the oldest call of the last minute leaves it: a full minute has room again then."""
        return min((sent_s for sent_s, _ in self._calls if sent_s > now_s - MINUTE_S), default=now_s) + MINUTE_S

    def side_by_side(self) -> int:
        """Return how many were certainly served at the same time."""
        edges = []
        for sent_s, ended_s in self._calls:
            margin_s = (ended_s - sent_s) * _CERTAIN
            edges += [(sent_s + margin_s, 1), (ended_s - margin_s, -1)]
        most = now = 0
        for _, step in sorted(edges):
            now += step
            most = max(most, now)
        return most


class LearnedRate:
    """Starts spaced evenly at a rate just below the one that was refused.

    Attributes:
        per_minute: Starts per minute; None: no rate is known, and starts are free.
    """

    def __init__(self) -> None:
        self.per_minute: float | None = None
        self._changed_s = 0.0
        self._next_s = -math.inf
        self._patience_s = FIRST_PATIENCE_S
        self._step = 0.0

    def ready_s(self, now_s: float) -> float:
        """Return when the next call may start, monotonic seconds; at most `now_s` if at once."""
        return now_s if self.per_minute is None else self._next_s

    def started(self, now_s: float) -> None:
        """Take a start."""
        if self.per_minute is not None:
            self._next_s = now_s + MINUTE_S / self.per_minute

    def refused(self, now_s: float, accepted_per_minute: float) -> None:
        """Learn from a refusal that was about the rate."""
        probed = self.per_minute is not None and self._step > 0
        self._patience_s = min(2 * self._patience_s, LONGEST_PATIENCE_S) if probed else FIRST_PATIENCE_S
        self.per_minute = max(1.0, SHARE * accepted_per_minute)
        self._step = 0.0
        self._changed_s = now_s

    def due(self, now_s: float) -> bool:
        """Tell whether the rate went without a refusal for so long that a higher one may be tried."""
        waits_s = MINUTE_S if self._step else self._patience_s
        return self.per_minute is not None and now_s >= self._changed_s + waits_s

    def raise_from(self, now_s: float, accepted_per_minute: float) -> None:
        """Try a higher rate, in growing steps; forget it where something else is what limits."""
        if self.per_minute is None or self.per_minute > 2 * accepted_per_minute:
            self.forget()
            return
        self._step = min(1.0, 2 * self._step) or _FIRST_STEP
        self.per_minute *= 1.0 + self._step
        self._changed_s = now_s

    def forget(self) -> None:
        """Drop the rate."""
        self.per_minute = None
        self._patience_s = FIRST_PATIENCE_S
        self._step = 0.0
