"""What a run has come to so far, counted from its events.

Rule 1: counts are for people who watch; the ledger in the state file is the truth about money.
Rule 2: a job's next state comes from lifecycle.py's table, not from here.
Rule 3: each event costs a few additions; it is read from another thread while it counts.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from banana_batch.lifecycle import Event, JobState, after
from banana_batch.models import Outcome
from banana_batch.ports import Clock

_AFTER_ANSWER = {outcome.value: after(JobState.SENDING, outcome.event).value for outcome in Outcome}
_AFTER_STORED = after(JobState.PAID, Event.STORED).value
_AFTER_LOSS = after(JobState.PAID, Event.IMAGE_LOST).value
_AFTER_SEND = after(JobState.PENDING, Event.SEND).value


class Outage(Struct, frozen=True):
    """A time in which the endpoint could not be used.

    Attributes:
        started_us: Wall clock, microseconds since the epoch.
        duration_s: None while it lasts.
        doubts: Requests that it left without an answer.
    """

    started_us: int
    cause: str
    duration_s: float | None = None
    doubts: int = 0


class Latencies:
    """Quantiles of latencies from a histogram whose classes are 5 % wide, from a millisecond to hours."""

    _STEP = math.log(1.05)
    _LEAST_S = 0.001
    _CLASSES = 360

    def __init__(self) -> None:
        self._counts = [0] * self._CLASSES
        self.count = 0

    def add(self, latency_s: float) -> None:
        """Count one latency, seconds."""
        place = int(math.log(max(latency_s, self._LEAST_S) / self._LEAST_S) / self._STEP)
        self._counts[min(place, self._CLASSES - 1)] += 1
        self.count += 1

    def quantile(self, share: float) -> float | None:
        """Return the latency that `share` (0 to 1) of all stay below, seconds, to 5 %; None: none was seen."""
        left = share * self.count
        for place, count in enumerate(self._counts):
            left -= count
            if count and left <= 0:
                return float(self._LEAST_S * math.exp((place + 0.5) * self._STEP))
        return None


class Tally:
    """Counts a run's events; implements `ports.Events`.

    Attributes:
        jobs: Jobs of the whole batch by state, as `status` would count them.
        done_before: Images that earlier runs finished.
        todo: Jobs that this run is to finish, those paid and not fetched yet included.
        settled: Jobs that this run has finished, well or not.
        in_flight: Paid requests on the wire.
        spent_micro: Spent by this run.
        latencies: Of this run's images, from the send to the whole answer.
        outages: Of this run, in order.
        listener: See ports.Events.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.jobs: dict[str, int] = {state.value: 0 for state in JobState}
        self.done_before = 0
        self.todo = 0
        self.settled = 0
        self.in_flight = 0
        self.spent_micro = 0
        self.latencies = Latencies()
        self.outages: list[Outage] = []
        self._started_s: float | None = None
        self._outage_since_s: float | None = None
        self._outage_s = 0.0
        self._throttled_since_s: float | None = None
        self._throttled_s = 0.0
        self._pause_ends_s = -math.inf
        self._counters: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "run_started": self._run_started,
            "sent": self._sent,
            "answered": self._answered,
            "stored": self._stored,
            "fetch_failed": self._fetch_failed,
            "incident_started": self._incident_started,
            "incident_ended": self._incident_ended,
            "throttled": self._throttled,
            "unthrottled": self._unthrottled,
        }
        self.listener = self._counters.get

    def emit(self, event: str, /, **facts: object) -> None:
        """Count one event; those that change no figure are ignored."""
        counter = self._counters.get(event)
        if counter is not None:
            counter(facts)

    @property
    def throttled_s(self) -> float:
        """How long the endpoint's refusals kept the run below its width, seconds."""
        return self._throttled_s + self._since(self._throttled_since_s)

    @property
    def pause_left_s(self) -> float:
        """How long no call starts as the endpoint wants fewer, seconds; 0: they may."""
        return max(0.0, self._pause_ends_s - self._clock.monotonic_s())

    @property
    def outage_s(self) -> float | None:
        """How long the endpoint can't be used already, seconds; None: it can."""
        return None if self._outage_since_s is None else self._since(self._outage_since_s)

    def eta_s(self) -> float | None:
        """Return how long the rest takes at this run's rate, outages left out; None: no rate yet."""
        working_s = self._since(self._started_s) - self._outage_s - self._since(self._outage_since_s)
        left = self.todo - self.settled
        if left <= 0 or self.settled == 0 or working_s <= 0:
            return None
        return left * working_s / self.settled

    def _since(self, start_s: float | None) -> float:
        return 0.0 if start_s is None else self._clock.monotonic_s() - start_s

    def _move(self, source: str, target: str) -> None:
        self.jobs[source] -= 1
        self.jobs[target] += 1

    def _run_started(self, facts: Mapping[str, Any]) -> None:
        self.jobs.update(facts["jobs"])
        self.done_before = self.jobs[JobState.DONE]
        self.todo = facts["todo"]
        self._started_s = self._clock.monotonic_s()

    def _sent(self, facts: Mapping[str, Any]) -> None:
        self.in_flight += 1
        # Jobs in doubt are sent again after all others, or are marked as resends.
        resent = facts.get("resend", not self.jobs[JobState.PENDING])
        self._move(JobState.IN_DOUBT if resent else JobState.PENDING, _AFTER_SEND)

    def _answered(self, facts: Mapping[str, Any]) -> None:
        self.in_flight -= 1
        state = _AFTER_ANSWER[facts["outcome"]]
        self._move(_AFTER_SEND, state)
        if state in (JobState.FAILED, JobState.IN_DOUBT):
            self.settled += 1
        if state == JobState.PAID:
            self.spent_micro += facts["credits_micro"] or 0
            if facts["latency_s"] is not None:
                self.latencies.add(facts["latency_s"])

    def _stored(self, facts: Mapping[str, Any]) -> None:  # noqa: ARG002  # one shape for all counters
        self.settled += 1
        self._move(JobState.PAID, _AFTER_STORED)

    def _fetch_failed(self, facts: Mapping[str, Any]) -> None:
        if facts["lost"]:
            self.settled += 1
            self._move(JobState.PAID, _AFTER_LOSS)

    def _incident_started(self, facts: Mapping[str, Any]) -> None:
        self._outage_since_s = self._clock.monotonic_s()
        self.outages.append(Outage(self._clock.wall_us(), str(facts["cause"])))

    def _incident_ended(self, facts: Mapping[str, Any]) -> None:
        self._outage_s += self._since(self._outage_since_s)
        self._outage_since_s = None
        if self.outages:
            begun = self.outages[-1]
            self.outages[-1] = Outage(begun.started_us, begun.cause, facts["duration_s"], facts["doubts"])

    def _throttled(self, facts: Mapping[str, Any]) -> None:
        now_s = self._clock.monotonic_s()
        self._pause_ends_s = now_s + facts["cooldown_s"]
        if self._throttled_since_s is None:
            self._throttled_since_s = now_s

    def _unthrottled(self, facts: Mapping[str, Any]) -> None:  # noqa: ARG002
        self._throttled_s += self._since(self._throttled_since_s)
        self._throttled_since_s = None
