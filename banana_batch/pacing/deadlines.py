"""When the run has to be over: `--stop-by` by the wall clock, `--max-duration` by the monotonic one.

Rule 1: a time of day is turned into an instant once, at the start; what the local zone does then (daylight
        saving) is in that instant, and a changed zone later changes nothing.
Rule 2: no clock is read here.
"""

import math
from datetime import datetime, time, timedelta, tzinfo

from msgspec import Struct


def next_occurrence_us(at: time, wall_us: int, zone: tzinfo | None = None) -> int:
    """Return the next instant at which clocks show `at`, microseconds since the epoch, later than `wall_us`.

    An hour that daylight saving skips counts from before the change (02:30 is then 03:30); of an hour that comes
    twice, the next one is meant. `zone` None is the system's.
    """
    today = datetime.fromtimestamp(wall_us / 1e6, tz=zone).date()
    for days in (0, 1, 2):
        for fold in (0, 1):
            shown = datetime.combine(today + timedelta(days=days), at.replace(fold=fold), tzinfo=zone)
            # In an hour that does not exist, fold 1 is read an hour *earlier*: not another occurrence.
            instant_us = round(shown.timestamp() * 1e6)
            if instant_us > wall_us and (fold == 0 or _shows(instant_us, at, zone)):
                return instant_us
    raise AssertionError("a day has every time of day within 48 hours")


def _shows(instant_us: int, at: time, zone: tzinfo | None) -> bool:
    shown = datetime.fromtimestamp(instant_us / 1e6, tz=zone)
    return (shown.hour, shown.minute) == (at.hour, at.minute)


class Deadline(Struct, frozen=True):
    """When the last answer should be in; whichever comes first.

    Attributes:
        stop_by_us: Wall clock, microseconds since the epoch; None: no such limit. A machine that slept wakes up later.
        ends_s: Monotonic clock, seconds; None: no such limit.
    """

    stop_by_us: int | None = None
    ends_s: float | None = None

    def left_s(self, now_s: float, wall_us: int) -> float:
        """Return the seconds left; infinite without a limit, negative once it has passed."""
        by_wall = math.inf if self.stop_by_us is None else (self.stop_by_us - wall_us) / 1e6
        by_length = math.inf if self.ends_s is None else self.ends_s - now_s
        return min(by_wall, by_length)


def deadline(
    stop_by: time | None, max_duration_s: float | None, *, now_s: float, wall_us: int, zone: tzinfo | None = None
) -> Deadline | None:
    """Return the deadline of a run that starts now; None: it has none."""
    if stop_by is None and max_duration_s is None:
        return None
    stop_by_us = None if stop_by is None else next_occurrence_us(stop_by, wall_us, zone)
    return Deadline(stop_by_us, None if max_duration_s is None else now_s + max_duration_s)
