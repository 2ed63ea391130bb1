"""How wide and how fast the endpoint may be called: what its refusals taught.

    refusal ──► whose fault?  more calls in flight than ever went well ──► Width: halve
                              fewer than once went well side by side   ──► LearnedRate: pace evenly
            ──► one cool-down for all workers, then calls open up one by one

Rule 1: a round of calls teaches once. Of 64 calls in flight that are all refused, the first one narrows the
        width; only a call that started after that can narrow it again.
Rule 2: no clock is read and nothing waits here; randomness is handed in.
"""

import math
import random

from .learned import MINUTE_S, SHARE, AcceptedCalls, LearnedRate
from .width import Width

AT_ONCE = 8  # calls of the first wave that start at once; the rest follow within FIRST_WAVE_S, ever more slowly
FIRST_WAVE_S = 0.25
COOL_BASE_S = 2.0
COOL_CAP_S = 60.0
LONGEST_RETRY_AFTER_S = 300.0
_WIDE = 16  # below this a first wave needs no spreading
_SLOWING = 0.75  # 1 would be evenly; with 0.5 waves of 256 calls closed up, where the machine had a slow minute
_TICK_S = 0.004  # openings closer together than this share a timer
_REOPEN_STEP_S = 0.25
_REOPEN_S = 5.0
_CLEARLY = 0.75  # of the calls that were served side by side: a refusal below this is not about the width
_SHUT_AFTER = 6  # refusals in a row: not a rate, a shut door


class Governor:
    """The shared limit, cool-down and learned rate of all workers."""

    def __init__(self, widest: int, rng: random.Random) -> None:
        self._rng = rng
        self._width = Width(widest)
        self._rate = LearnedRate()
        self._calls = AcceptedCalls()
        self._cool_until_s = -math.inf
        self._round_s: float | None = -math.inf
        self._in_a_row = 0
        self._proven = 0
        self._opens_s = -math.inf
        self._opens_from = 0
        self._opens_for_s = 0.0

    @property
    def limit(self) -> int:
        """Calls in flight at most, once everything has opened."""
        return self._width.limit

    @property
    def per_minute(self) -> float | None:
        """The learned rate, starts per minute; None: none."""
        return self._rate.per_minute

    @property
    def throttled(self) -> bool:
        """Whether the endpoint's refusals still hold the run back."""
        return self._in_a_row > 0 or self._width.limit < self._width.widest or self._rate.per_minute is not None

    def steady(self, now_s: float) -> bool:
        """Tell whether the limit alone decides."""
        return (
            now_s >= self._cool_until_s
            and now_s >= self._opens_s + self._opens_for_s
            and self._round_s is not None
            and self._rate.per_minute is None
        )

    def cooldown_s(self, now_s: float) -> float:
        """Return the seconds for which no call may start."""
        return max(0.0, self._cool_until_s - now_s)

    def open_wide(self, now_s: float) -> None:
        """Spread the next wave of a wide run over a quarter of a second: so many sockets opened at once stall it."""
        if self._width.limit > _WIDE and now_s >= self._opens_s + self._opens_for_s:
            self._opens_s, self._opens_from, self._opens_for_s = now_s, AT_ONCE, FIRST_WAVE_S

    def ready_s(self, now_s: float, in_flight: int) -> float:
        """Return when the next call may start, monotonic seconds: at most `now_s` if at once, inf after an end."""
        if now_s < self._cool_until_s:
            return self._cool_until_s
        if in_flight >= self._width.limit:
            return math.inf
        if now_s < self._opens_s + self._opens_for_s:
            opens_s = self._opening_s(in_flight)
            if opens_s > now_s:
                return max(opens_s, now_s + _TICK_S)
        return self._rate.ready_s(now_s)

    def _opening_s(self, in_flight: int) -> float:
        """Return when one call more than `in_flight` may be out, while the width opens up.

        After a cool-down evenly. The first wave a little faster than that, then slower: what starts sooner ends sooner,
        but answers come back as dense as their calls left, and a wave whose start is too dense to be served in step
        closes up, until all of each wave waits for all of it.
        """
        steps = max(1, self._width.limit - self._opens_from)
        share = min(1.0, max(0.0, (in_flight + 1 - self._opens_from) / steps))
        if self._opens_from == AT_ONCE:
            share = 1.0 - (1.0 - share) ** _SLOWING
        return self._opens_s + share * self._opens_for_s

    def started(self, now_s: float) -> None:
        """Note a start."""
        if self._round_s is None:
            self._round_s = now_s
        self._rate.started(now_s)

    def accepted(self, now_s: float, in_flight: int, latency_s: float) -> None:
        """Take in a good answer; `in_flight` counts its own call."""
        self._in_a_row = 0
        self._calls.add(now_s - latency_s, now_s)
        self._width.accepted(now_s, in_flight)
        if self._rate.due(now_s):
            self._rate.raise_from(now_s, self._calls.per_minute(now_s, in_flight - 1))

    def judged(self, now_s: float, latency_s: float) -> None:
        """Take in a refusal of the request itself: its call was let in."""
        self._in_a_row = 0
        self._calls.add(now_s - latency_s, now_s)

    def refused(self, now_s: float, in_flight: int, latency_s: float, retry_after_s: float | None) -> bool:
        """Take in a THROTTLED answer; `in_flight` counts its own call. True: it taught something (rule 1)."""
        sent_s = now_s - latency_s
        asked_s = min(retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
        if self._round_s is None or sent_s < self._round_s:
            self._cool_until_s = max(self._cool_until_s, now_s + asked_s)
            self._reopen(self._cool_until_s)
            return False
        self._learn(now_s, in_flight, in_flight + self._calls.ended_since(sent_s), asked_s)
        self._round_s = None
        self._in_a_row += 1
        self._reopen(self._cool_until_s)
        return True

    def _learn(self, now_s: float, in_flight: int, width: int, asked_s: float) -> None:
        again = self._in_a_row > 0
        accepted = self._calls.per_minute(now_s, in_flight - 1)
        if self._in_a_row >= _SHUT_AFTER:
            self._rate.forget()
        if self._rate.per_minute is None or not again:  # else nothing was accepted since: only the wait grows
            if accepted >= 1 and self._is_rate(width):
                self._rate.refused(now_s, accepted)
                self._width.restore(self._proven)
                until_room_s = self._calls.room_s(now_s) - now_s
                self._cool(now_s, max(asked_s, until_room_s), MINUTE_S / SHARE / accepted)
                return
            self._width.refused(now_s, width, again=again)
        longest_s = min(COOL_CAP_S, COOL_BASE_S * 2.0 ** min(self._in_a_row, 16))
        # On top of what the endpoint asked for, a tenth of it: else all clients of one account come back together.
        self._cool(now_s, asked_s, asked_s / 10 if asked_s else longest_s)

    def _is_rate(self, width: int) -> bool:
        if self._rate.per_minute is not None:
            return width <= self._proven
        self._proven = max(1, self._calls.side_by_side())
        return width == 1 or width <= _CLEARLY * self._proven

    def _cool(self, now_s: float, at_least_s: float, jitter_s: float) -> None:
        self._cool_until_s = max(self._cool_until_s, now_s + at_least_s + self._rng.uniform(0.0, jitter_s))

    def _reopen(self, when_s: float) -> None:
        """After a cool-down, open up one call at a time: a door still shut then costs one refusal, not `limit`."""
        self._opens_s, self._opens_from = when_s, 1
        self._opens_for_s = min(_REOPEN_S, _REOPEN_STEP_S * self._width.limit)
