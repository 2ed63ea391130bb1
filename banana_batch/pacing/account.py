"""What the pacing did, told as events and summed up for the account of the night.

Rule 1: this decides nothing; the pacer runs the same without it.
"""

from banana_batch.models import Signal
from banana_batch.ports import Events

from .governor import Governor
from .incidents import Change, Incident, Trouble

SLEPT_S = 30.0  # the wall clock ran ahead of the monotonic one by more: the machine slept


class Account:
    """Events of the pacing, and the time under a reduced limit, a learned rate or a cool-down."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._drift_s: float | None = None
        self._throttled_s = 0.0
        self._since_s: float | None = None

    def throttled_s(self, now_s: float) -> float:
        """Return the seconds so far."""
        return self._throttled_s + (0.0 if self._since_s is None else now_s - self._since_s)

    def throttled(self, governor: Governor, now_s: float) -> None:
        """A refusal taught something."""
        if self._since_s is None:
            self._since_s = now_s
        cooldown_s = round(governor.cooldown_s(now_s), 3)
        self._events.emit("throttled", limit=governor.limit, cooldown_s=cooldown_s, per_minute=governor.per_minute)

    def look(self, governor: Governor, now_s: float) -> None:
        """Notice that refusals hold the run back no longer."""
        if self._since_s is not None and not governor.throttled:
            lasted_s = now_s - self._since_s
            self._throttled_s += lasted_s
            self._since_s = None
            self._events.emit("unthrottled", duration_s=round(lasted_s, 3))

    def watch_sleep(self, now_s: float, wall_us: int) -> None:
        """Notice a machine that slept: connections may be dead, and doubts will say so themselves.

        A wall clock that was set back tells nothing.
        """
        drift_s = wall_us / 1e6 - now_s
        if self._drift_s is not None and drift_s - self._drift_s > SLEPT_S:
            self._events.emit("slept", gap_s=round(drift_s - self._drift_s, 3))
        self._drift_s = drift_s

    def incident_started(self, incident: Incident, change: Change, in_flight: int) -> None:
        """Calls pause; `in_flight` are still out."""
        resumed = change is Change.RESUMED
        self._events.emit("incident_started", cause=incident.cause, resumed=resumed, in_flight=in_flight)

    def incident_ended(self, incident: Incident, by: Signal, likely_proxy_timeout_s: float | None) -> None:
        """An answer came; `by` is what kind."""
        assert incident.ended_us is not None
        self._events.emit(
            "incident_ended",
            cause=incident.cause,
            by=by,
            duration_s=round((incident.ended_us - incident.started_us) / 1e6, 3),
            doubts=incident.doubts,
            probes=incident.probes,
            likely_proxy_timeout_s=likely_proxy_timeout_s,
        )

    def gave_up(self, trouble: Trouble | None, after_s: float, likely_proxy_timeout_s: float | None) -> None:
        """No good answer came for too long."""
        self._events.emit(
            "gave_up", cause=trouble, after_s=round(after_s, 3), likely_proxy_timeout_s=likely_proxy_timeout_s
        )
