"""Points in time as text: UTC for machines, local time for people."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from banana_batch.text import duration_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(us: int) -> datetime:
    """Return microseconds since the epoch as an aware time, exactly."""
    return _EPOCH + timedelta(microseconds=us)


def rfc3339(us: int) -> str:
    """Return microseconds since the epoch as `2026-11-22T05:04:03.000002Z`."""
    second, part = divmod(us, 1_000_000)
    return f"{_second(second)}.{part:06d}Z"


@lru_cache(maxsize=256)
def _second(second: int) -> str:
    # Records come in order, thousands to a second.
    return f"{_EPOCH + timedelta(seconds=second):%Y-%m-%dT%H:%M:%S}"


def local_text(us: int) -> str:
    """Return `2026-11-22 06:04`, as the clock on the user's wall shows it."""
    return utc(us).astimezone().strftime("%Y-%m-%d %H:%M")


def span_text(start_us: int, end_us: int) -> str:
    """Return `2026-11-22 22:00 – 06:30`, with the second date only where it is another one and a day or more on."""
    start, end = utc(start_us).astimezone(), utc(end_us).astimezone()
    later = "%H:%M" if end - start < timedelta(hours=20) else "%Y-%m-%d %H:%M"
    return f"{start:%Y-%m-%d %H:%M} – {end.strftime(later)}"


def seconds_text(seconds: float | None) -> str:
    """Return a latency for a table: `0.8 s`, `12 s`, `2 min 30 s`; `-` for None."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration_text(seconds)
