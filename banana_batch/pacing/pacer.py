"""When the next paid call may start: width, rate, incidents and deadlines behind one door.

    admit ──free?──► True, without awaiting
          └─waits in line (first come, first served) ──► True    a call ended, or a timer says that time has come
                                                     └─► False   drained, deadline, gave up: for good

Rule 1: decided synchronously. What may start is a function of values (governor, rate, incidents, deadlines); this
        module only keeps the line and one timer.
Rule 2: the first False is the last word: after it nothing starts in this run.
Rule 3: no tasks and no threads, so it runs on a loop with virtual time.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Collection
from enum import StrEnum

from msgspec import Struct

from banana_batch.models import Kind, Signal
from banana_batch.ports import Clock, Events

from .account import Account
from .deadlines import Deadline
from .governor import Governor
from .incidents import Change, Incident, Incidents, Trouble
from .latency import Latencies
from .rate import StartsPerMinute

_LONGEST_TIMER_S = 30.0  # a machine may sleep and wake past `--stop-by`: look at the wall clock now and then
_SHORTEST_TIMER_S = 0.001


class Stop(StrEnum):
    """Why no further call may start in this run."""

    DRAIN = "drain"
    DEADLINE = "deadline"
    GAVE_UP = "gave_up"


class StopCause(Struct, frozen=True):
    """Why no further call may start; `trouble` only with GAVE_UP: what kept good answers away."""

    stop: Stop
    trouble: Trouble | None = None


class Pacer:
    """Implements ports.Pacer.

    Attributes:
        in_flight: Turns that were given and did not come back.
        stopped_because: None: calls may start, now or later.
        latencies: Per kind; seed it with earlier runs' before the first turn.
    """

    def __init__(
        self,
        clock: Clock,
        events: Events,
        rng: random.Random,
        *,
        concurrency: int,
        give_up_after_s: float,
        rpm: int | None = None,
        deadline: Deadline | None = None,
        own_timeouts_s: Collection[float] = (),
    ) -> None:
        self._clock = clock
        self._account = Account(events)
        self._governor = Governor(concurrency, rng)
        self._incidents = Incidents(give_up_after_s, rng, own_timeouts_s)
        self._rpm = None if rpm is None else StartsPerMinute(rpm)
        self._deadline = deadline
        self._holds: set[str] = set()
        self._line: deque[tuple[asyncio.Future[bool], Kind]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._begun = False
        # The limit alone decides: then a turn costs a comparison.
        self._calm = False
        self.in_flight = 0
        self.stopped_because: StopCause | None = None
        self.latencies = Latencies()

    @property
    def limit(self) -> int:
        """Calls in flight at most, now: 1 during an incident."""
        return self._governor.limit if self._incidents.current is None else 1

    @property
    def in_incident(self) -> bool:
        """The endpoint fails for everyone just now: a refusal says nothing about its job."""
        return self._incidents.current is not None

    @property
    def per_minute(self) -> float | None:
        """The rate that the endpoint's refusals taught, starts per minute; None: none."""
        return self._governor.per_minute

    @property
    def incidents(self) -> list[Incident]:
        """The outages of this run, in order."""
        return self._incidents.all

    @property
    def likely_proxy_timeout_s(self) -> float | None:
        """After how long a proxy on the way seems to cut calls, seconds; None: no sign of one."""
        return self._incidents.likely_proxy_timeout_s

    @property
    def throttled_s(self) -> float:
        """Seconds of this run under a reduced limit, a learned rate or a cool-down."""
        return self._account.throttled_s(self._clock.monotonic_s())

    def latency(self, kind: Kind) -> tuple[float, float] | None:
        """Return median and 95th percentile, seconds; None: no answer of this kind was seen."""
        return self.latencies.both(kind)

    async def admit(self, kind: Kind) -> bool:
        """Wait for a turn. False: no further call may start in this run."""
        if self.admit_now():
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._line.append((turn, kind))
        self._calm = False
        self._serve()
        if turn.done():
            return turn.result()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.withdraw()
            raise

    def admit_now(self) -> bool:
        """Take a turn if one is free and nothing but the width decides; False says nothing of `admit`."""
        if self._calm and self.in_flight < self._governor.limit:
            self.in_flight += 1
            return True
        return False

    def ended(self, kind: Kind, signal: Signal, latency_s: float | None, retry_after_s: float | None) -> None:
        """Give the turn back, with what the call taught. Called exactly once for each admitted call."""
        now_s, wall_us = self._clock.monotonic_s(), self._clock.wall_us()
        self._account.watch_sleep(now_s, wall_us)
        lasted_s = latency_s or 0.0
        if signal is Signal.GOOD:
            self._governor.accepted(now_s, self.in_flight, lasted_s)
            if latency_s is not None:
                self.latencies.add(kind, latency_s)
        elif signal is Signal.REFUSED:
            self._governor.judged(now_s, lasted_s)
        elif signal is Signal.THROTTLED and self._governor.refused(now_s, self.in_flight, lasted_s, retry_after_s):
            self._account.throttled(self._governor, now_s)
        self.in_flight -= 1
        if signal is not Signal.GOOD or not self._incidents.quiet:
            self._calm = False
            self._note_incident(signal, latency_s, now_s, wall_us)
        self._account.look(self._governor, now_s)
        if self._line:
            self._serve()

    def withdraw(self) -> None:
        """Give a turn back unused: nothing was attempted."""
        self.in_flight -= 1
        if self._rpm is not None:
            self._rpm.refund()
        self._incidents.withdrawn()
        self._serve()

    def hold(self, reason: str) -> None:
        """Let no call start until `release(reason)`; calls in flight go on."""
        self._holds.add(reason)
        self._calm = False

    def release(self, reason: str) -> None:
        """Take a hold away; without such a hold, nothing happens."""
        self._holds.discard(reason)
        self._serve()

    def drain(self) -> None:
        """Let no call start any more; all who wait are told at once."""
        self._stop(StopCause(Stop.DRAIN))

    def _serve(self) -> None:
        """Give turns to the head of the line while nothing forbids it, then set the timer for the next one."""
        now_s = self._clock.monotonic_s()
        while self._line:
            turn, kind = self._line[0]
            if turn.done():  # cancelled while it waited
                self._line.popleft()
                continue
            ready_s = self._ready_s(kind, now_s)
            if self.stopped_because is not None:
                self._dismiss()
                return
            if ready_s > now_s:
                self._wake_at(ready_s, now_s)
                return
            self._line.popleft()
            self._start(now_s)
            turn.set_result(True)
        self._wake_at(math.inf, now_s)
        self._calm = (
            self.stopped_because is None
            and not self._holds
            and self._rpm is None
            and self._deadline is None
            and self._incidents.quiet
            and self._governor.steady(now_s)
        )

    def _ready_s(self, kind: Kind, now_s: float) -> float:
        """Return when the head of the line may start; may find that nothing may start any more."""
        if self.stopped_because is not None:
            return math.inf
        if not self._begun:
            self._begun = True
            # So that a machine that sleeps during the first call of all is noticed too.
            self._account.watch_sleep(now_s, self._clock.wall_us())
            self._governor.open_wide(now_s)
        if self._deadline is not None and self._too_late(kind, now_s):
            self._stop(StopCause(Stop.DEADLINE))
            return math.inf
        if now_s >= self._incidents.gives_up_s and self.in_flight == 0:
            self._give_up(now_s)
            return math.inf
        if self._holds:
            return math.inf
        ready_s = max(self._incidents.ready_s(now_s), self._governor.ready_s(now_s, self.in_flight))
        return ready_s if self._rpm is None else max(ready_s, self._rpm.ready_s(now_s))

    def _too_late(self, kind: Kind, now_s: float) -> bool:
        """Tell whether a call that starts now is likely to end past the deadline."""
        assert self._deadline is not None
        left_s = self._deadline.left_s(now_s, self._clock.wall_us())
        return left_s <= 0 or (self.latencies.p95(kind) or 0.0) > left_s

    def _start(self, now_s: float) -> None:
        self.in_flight += 1
        self._governor.started(now_s)
        self._incidents.started(now_s)
        if self._rpm is not None:
            self._rpm.started(now_s)

    def _wake_at(self, ready_s: float, now_s: float) -> None:
        """Keep one timer, for the first instant at which the head of the line may learn something new."""
        if not self._line:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if now_s < self._incidents.gives_up_s:
            ready_s = min(ready_s, self._incidents.gives_up_s)
        if self._deadline is not None:
            left_s = self._deadline.left_s(now_s, self._clock.wall_us())
            ready_s = min(ready_s, now_s + left_s, now_s + _LONGEST_TIMER_S)
        if self._timer is not None:
            if self._timer_s <= ready_s:  # it looks again then, and sets the next one
                return
            self._timer.cancel()
            self._timer = None
        if ready_s < math.inf:
            wait_s = max(_SHORTEST_TIMER_S, ready_s - now_s)
            self._timer_s = ready_s
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._account.watch_sleep(self._clock.monotonic_s(), self._clock.wall_us())
        self._serve()

    def _stop(self, cause: StopCause) -> None:
        if self.stopped_because is None:
            self.stopped_because = cause
        self._calm = False
        self._dismiss()

    def _dismiss(self) -> None:
        while self._line:
            turn, _ = self._line.popleft()
            if not turn.done():
                turn.set_result(False)
        self._wake_at(math.inf, self._clock.monotonic_s())

    def _give_up(self, now_s: float) -> None:
        trouble = self._incidents.trouble
        self._account.gave_up(trouble, self._incidents.trouble_for_s(now_s), self.likely_proxy_timeout_s)
        self._stop(StopCause(Stop.GAVE_UP, trouble))

    def _note_incident(self, signal: Signal, latency_s: float | None, now_s: float, wall_us: int) -> None:
        before = self._incidents.current
        change = self._incidents.ended(signal, latency_s, now_s=now_s, wall_us=wall_us, in_flight=self.in_flight)
        if change is Change.ENDED and before is not None:
            if signal is not Signal.THROTTLED:
                self._governor.open_wide(now_s)
            self._account.incident_ended(before, signal, self.likely_proxy_timeout_s)
        elif change is not None and self._incidents.current is not None:
            self._account.incident_started(self._incidents.current, change, self.in_flight)
