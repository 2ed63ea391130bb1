"""Outages, counted by incident: a burst of doubts with no answer between them is one, however many calls it cost.

    well ──DOUBT, UNREACHED, 5 × OVERLOADED──► incident: pause, one call, longer pause, one call …
         ◄──GOOD, REFUSED, THROTTLED──────────

Rule 1: while an incident lasts, one call at a time: each may be one more doubt, and cost credits.
Rule 2: an answer that judges the request shows that the endpoint is well. A throttling one shows that it can be
        reached; but the trouble, and with it `--give-up-after`, goes on until something is let in.
Rule 3: calls that were out before the incident may be answered although no new one gets through. Such an answer
        ends the incident too (an isolated doubt must not slow a wide run down); but if failures come again before
        a newer call was answered, it was the same incident, and then only an answer to a newer call ends it.
Rule 4: no clock is read and nothing waits here; randomness is handed in.
"""

import math
import random
from collections.abc import Collection
from enum import StrEnum

from msgspec import Struct

from banana_batch.models import Signal

from .proxy import ProxyTimeout

OVERLOADED_IN_A_ROW = 5
PAUSE_BASE_S = 1.0
PAUSE_CAP_S = 60.0
PAUSE_LONGEST_S = 600.0
# Each probe of a long outage may be charged: after the first quarter of an hour pauses grow with its age, so that
# a night of dropped connections costs tens of doubts and not a thousand, and the way back is at most 1/15 longer.
PAUSE_SHARE = 1 / 15


class Trouble(StrEnum):
    """What kept good answers away."""

    DOUBT = "doubt"
    UNREACHED = "unreached"
    OVERLOADED = "overloaded"
    THROTTLED = "throttled"


_AT_ONCE = {Signal.DOUBT: Trouble.DOUBT, Signal.UNREACHED: Trouble.UNREACHED}


class Change(StrEnum):
    """What a signal did to the incident."""

    STARTED = "started"
    RESUMED = "resumed"  # rule 3
    ENDED = "ended"


class Incident(Struct):
    """One outage, as the account of the night tells it.

    Attributes:
        cause: What began it.
        started_us: Wall clock, microseconds since the epoch.
        ended_us: The same; None: it goes on, or the run ended first.
        doubts: Calls that were left in doubt, probes among them.
        probes: Calls that were sent one at a time to see whether it is over.
    """

    cause: Trouble
    started_us: int
    ended_us: int | None = None
    doubts: int = 0
    probes: int = 0


class Incidents:
    """The incident at hand, and those of this run.

    Attributes:
        current: None: the endpoint is well, or only throttles.
        all: In order, the current one last.
        trouble: What keeps good answers away now; None: nothing does.
    """

    def __init__(self, give_up_after_s: float, rng: random.Random, own_timeouts_s: Collection[float] = ()) -> None:
        self._give_up_after_s = give_up_after_s
        self._rng = rng
        self._proxy = ProxyTimeout(own_timeouts_s)
        self.current: Incident | None = None
        self.all: list[Incident] = []
        self.trouble: Trouble | None = None
        self._trouble_s = 0.0
        self._overloaded = 0
        self._unproven: Incident | None = None
        self._resumed = False
        self._began_s = 0.0
        self._stragglers = 0
        self._probe_s: float | None = None
        self._pauses = 0
        self._next_probe_s = 0.0

    @property
    def quiet(self) -> bool:
        """Whether a good answer has nothing to end."""
        return self.trouble is None and self._overloaded == 0 and self._unproven is None

    @property
    def gives_up_s(self) -> float:
        """When to give up if no good answer comes, monotonic seconds; infinite without trouble."""
        return math.inf if self.trouble is None else self._trouble_s + self._give_up_after_s

    def trouble_for_s(self, now_s: float) -> float:
        """Return how long no good answer came since the trouble began, seconds."""
        return 0.0 if self.trouble is None else now_s - self._trouble_s

    @property
    def likely_proxy_timeout_s(self) -> float | None:
        """After how long a proxy on the way seems to cut calls, seconds; None: no sign of one."""
        return self._proxy.likely_s

    def ready_s(self, now_s: float) -> float:
        """Return when the next call may start, monotonic seconds: at most `now_s` if at once, inf after an end."""
        if self.trouble is None:
            return now_s
        if now_s >= self.gives_up_s:
            return math.inf
        if self.current is None:
            return now_s
        return math.inf if self._probe_s is not None else self._next_probe_s

    def started(self, now_s: float) -> None:
        """Note a start: during an incident it is a probe."""
        if self.current is not None:
            self.current.probes += 1
            self._probe_s = now_s

    def withdrawn(self) -> None:
        """Take back the last start: nothing was attempted."""
        if self.current is not None and self._probe_s is not None:
            self.current.probes -= 1
            self._probe_s = None

    def ended(
        self, signal: Signal, latency_s: float | None, *, now_s: float, wall_us: int, in_flight: int
    ) -> Change | None:
        """Take in how a call ended; `in_flight` no longer counts it."""
        if signal is Signal.DOUBT and latency_s is not None:
            self._proxy.doubt(now_s, latency_s)
        if signal is not Signal.NEUTRAL:
            self._overloaded = self._overloaded + 1 if signal is Signal.OVERLOADED else 0
        if signal in (Signal.GOOD, Signal.REFUSED, Signal.THROTTLED):
            return self._reached(signal, latency_s or 0.0, now_s, wall_us)
        change = self._failed(signal, now_s, wall_us, in_flight)
        if self.current is not None and signal is Signal.DOUBT:
            self.current.doubts += 1
        if self.current is not None and change is None:
            self._probed(latency_s, now_s)
        return change

    def _reached(self, signal: Signal, latency_s: float, now_s: float, wall_us: int) -> Change | None:
        newer = now_s - latency_s >= self._began_s
        if newer:
            self._unproven = None
        elif self.current is not None and self._resumed:
            self._probed(latency_s, now_s)
            return None
        if signal is not Signal.THROTTLED:
            self.trouble = None
        else:
            self._in_trouble(Trouble.THROTTLED, now_s)
        if self.current is None:
            return None
        self._unproven = None if newer else self.current
        self.current.ended_us = wall_us
        self.current = None
        self._probe_s = None
        return Change.ENDED

    def _in_trouble(self, trouble: Trouble, now_s: float) -> None:
        if self.trouble is None:
            self._trouble_s = now_s
        self.trouble = trouble

    def _failed(self, signal: Signal, now_s: float, wall_us: int, in_flight: int) -> Change | None:
        cause = _AT_ONCE.get(signal)
        if cause is None and self._overloaded >= OVERLOADED_IN_A_ROW:
            cause = Trouble.OVERLOADED
        if cause is None:
            return None
        self._in_trouble(cause, now_s)
        if self.current is not None:
            return None
        self._stragglers = in_flight
        self._resumed = self._unproven is not None
        if self._unproven is not None:
            self.current, self._unproven = self._unproven, None
            self.current.ended_us = None
        else:
            self.current = Incident(cause, wall_us)
            self.all.append(self.current)
            self._began_s = now_s
            self._pauses = 0
        self._pause(now_s)
        return Change.RESUMED if self._resumed else Change.STARTED

    def _probed(self, latency_s: float | None, now_s: float) -> None:
        """Tell a probe's end from that of a call that was out when the incident began."""
        of_probe = self._probe_s is not None and (
            self._stragglers == 0 or (latency_s is not None and now_s - latency_s >= self._probe_s)
        )
        if of_probe:
            self._probe_s = None
            self._pause(now_s)
        elif self._stragglers:
            self._stragglers -= 1

    def _pause(self, now_s: float) -> None:
        cap_s = min(PAUSE_LONGEST_S, max(PAUSE_CAP_S, (now_s - self._began_s) * PAUSE_SHARE))
        longest_s = min(cap_s, PAUSE_BASE_S * 2.0 ** min(self._pauses, 16))
        self._pauses += 1
        self._next_probe_s = now_s + self._rng.uniform(0.0, longest_s)
