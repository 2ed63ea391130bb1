"""`--stop-by` and `--max-duration`."""

import asyncio
import time as system_time
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest

from banana_batch.models import Signal
from banana_batch.pacing.deadlines import Deadline, deadline, next_occurrence_us
from banana_batch.pacing.pacer import Stop, StopCause
from tests.contract.fakes import VirtualClock
from tests.unit.pacing.simulated import KIND, Server, make_pacer, run_for, simulate

BERLIN = ZoneInfo("Europe/Berlin")


def _us(*parts: int) -> int:
    return round(datetime(*parts, tzinfo=UTC).timestamp() * 1e6)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("now", "at", "expected"),
    [
        pytest.param(_us(2025, 7, 1, 20, 0), time(6, 30), _us(2025, 7, 2, 4, 30), id="tomorrow morning"),
        pytest.param(_us(2025, 7, 1, 3, 0), time(6, 30), _us(2025, 7, 1, 4, 30), id="later today"),
        pytest.param(_us(2025, 7, 1, 4, 30), time(6, 30), _us(2025, 7, 2, 4, 30), id="just now is tomorrow"),
        pytest.param(_us(2025, 3, 29, 21, 0), time(6, 30), _us(2025, 3, 30, 4, 30), id="the night that loses an hour"),
        pytest.param(_us(2025, 10, 25, 20, 0), time(6, 30), _us(2025, 10, 26, 5, 30), id="the night that gains one"),
        pytest.param(_us(2025, 3, 29, 21, 0), time(2, 30), _us(2025, 3, 30, 1, 30), id="an hour that is skipped"),
        pytest.param(_us(2025, 3, 30, 1, 45), time(2, 30), _us(2025, 3, 31, 0, 30), id="after the skipped hour"),
        pytest.param(_us(2025, 10, 25, 20, 0), time(2, 30), _us(2025, 10, 26, 0, 30), id="an hour that comes twice"),
        pytest.param(_us(2025, 10, 26, 0, 45), time(2, 30), _us(2025, 10, 26, 1, 30), id="its second coming"),
    ],
)
def test_a_time_of_day_is_its_next_occurrence(now: int, at: time, expected: int) -> None:
    """06:30 is when clocks show it next, whatever daylight saving does in between."""
    assert next_occurrence_us(at, now, BERLIN) == expected


def test_the_systems_own_zone_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a zone the machine's local time counts, its daylight saving too."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    system_time.tzset()
    try:
        assert next_occurrence_us(time(6, 30), _us(2025, 3, 29, 21, 0)) == _us(2025, 3, 30, 4, 30)
        assert next_occurrence_us(time(2, 30), _us(2025, 10, 26, 0, 45)) == _us(2025, 10, 26, 1, 30)
    finally:
        monkeypatch.undo()
        system_time.tzset()


def test_the_earlier_of_both_limits_counts() -> None:
    """`--stop-by` and `--max-duration` together: whichever comes first; neither is no deadline."""
    now_us = _us(2025, 7, 1, 4, 0)
    both = deadline(time(6, 30), 600, now_s=100, wall_us=now_us, zone=BERLIN)
    assert both is not None
    assert both.left_s(100, now_us) == 600
    by_wall = deadline(time(6, 30), None, now_s=100, wall_us=now_us, zone=BERLIN)
    assert by_wall is not None
    assert by_wall.left_s(100, now_us) == 1800
    assert deadline(None, None, now_s=100, wall_us=now_us) is None


def test_no_call_starts_that_is_likely_to_end_later() -> None:
    """By the p95 of its kind: of an hour's calls, hardly one ends after it, and the wire is busy until shortly before."""
    server = Server()
    pacer = make_pacer(deadline=Deadline(ends_s=3600), concurrency=16)
    simulate(lambda: run_for(7200, pacer, server.call, 16))
    assert pacer.stopped_because == StopCause(Stop.DEADLINE)
    p95 = pacer.latency(KIND)
    assert p95 is not None
    assert 3600 - 2 * p95[1] < max(server.sent) < 3600 - 0.8 * p95[1]


def test_without_a_latency_seen_calls_start_until_the_deadline_itself() -> None:
    """As long as none was seen: start; once the deadline has passed, never."""

    async def scene() -> None:
        pacer = make_pacer(deadline=Deadline(ends_s=10))
        await asyncio.sleep(9.9)
        assert await pacer.admit(KIND)
        await asyncio.sleep(0.2)
        assert not await pacer.admit(KIND)

    simulate(scene)


def test_earlier_runs_latencies_count() -> None:
    """Seeded with 90 s calls, nothing starts 60 s before the end."""

    async def scene() -> None:
        pacer = make_pacer(deadline=Deadline(ends_s=60))
        pacer.latencies.seed(KIND, [90.0] * 20)
        assert not await pacer.admit(KIND)

    simulate(scene)


def test_who_waits_is_told_at_the_deadline() -> None:
    """A worker in line behind a call that hangs hears of the deadline when it comes, and not when the call ends."""

    async def scene() -> float:
        pacer = make_pacer(deadline=Deadline(ends_s=100), concurrency=1)
        assert await pacer.admit(KIND)
        assert not await pacer.admit(KIND)
        return asyncio.get_running_loop().time()

    assert simulate(scene) == pytest.approx(100, abs=0.01)


def test_a_machine_that_slept_past_the_hour_stops() -> None:
    """`--stop-by` is the wall clock's: a lid closed over it ends the run within half a minute of waking."""
    clock = VirtualClock()

    async def scene() -> float:
        stop_by_us = clock.wall_us() + 3_600_000_000
        pacer = make_pacer(clock, deadline=Deadline(stop_by_us=stop_by_us), concurrency=1)
        assert await pacer.admit(KIND)
        waits = asyncio.ensure_future(pacer.admit(KIND))
        await asyncio.sleep(100)
        clock.wall_offset_s += 8 * 3600
        assert not await waits
        pacer.ended(KIND, Signal.GOOD, 100, None)
        return asyncio.get_running_loop().time()

    assert simulate(scene) <= 130
