"""T-week: seven nights from one manifest, 22:00 to 06:30 by the clock on the wall, with all that a week brings.

    python -m tests.torture.week [ROWS]     plays the week and prints it night by night

Throttling, both kinds of outage, an account that is empty on one night and filled on the next, a power cut, a machine
that sleeps, and the night on which the clocks go forward. Held at every commit: budget, sums and never twice.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import async_solipsism

from banana_batch import money
from banana_batch.errors import Exit
from banana_batch.sandbox.faults import CallInfo, Canned, Fault
from banana_batch.sandbox.server import Sandbox
from banana_batch.settings import Settings
from tests.contract.fakes import VirtualClock
from tests.torture.sim import states_of
from tests.torture.suite import Figures, Suite
from tests.torture.verdict import Story, charges_agree, images_are_whole
from tests.torture.weather import KINDS, Death, Night, Spell, Storm
from tests.torture.world import World

ZONE = ZoneInfo("Europe/Berlin")
# The fourth night is the one on which 02:00 becomes 03:00.
MONDAY = datetime(2026, 3, 25, 22, 0, tzinfo=ZONE)
NIGHTS = 7
ROWS = {"a": 4_000, "b": 20_000}
SMALL_ROWS = 1_400
ENDS = "06:30"
HOUR_S = 3600.0
SLEEPS_S = 2 * HOUR_S
_EMPTY_NIGHT, _CUT_NIGHT, _SLEEP_NIGHT = 4, 5, 6


@dataclass
class Line:
    """One night of the table."""

    night: int
    started: str
    ended: str
    exit: str
    what: str
    calls: int
    states: Counter[str] = field(default_factory=Counter)


class WeekClock(VirtualClock):
    """The wall clock of the week: a machine that sleeps misses nothing of it but its own time."""

    slept_s = 0.0

    def wall_us(self) -> int:
        return round((MONDAY.timestamp() + self.monotonic_s() + self.slept_s) * 1e6)


class Week(World):
    """The endpoint, the account and the machine over seven nights."""

    def __init__(self, rows: int, folder: Path) -> None:
        self.week_clock = WeekClock()
        self.charged = 0
        self.account: int | None = None
        self.late: list[str] = []
        self.ends_us = 0
        super().__init__(_night(rows), folder)

    def clock(self) -> VirtualClock:
        return self.week_clock

    def settings(self, *, stop_by: bool) -> Settings:
        return (
            super()
            .settings(stop_by=False)
            .model_copy(
                update={"stop_by": datetime.strptime(ENDS, "%H:%M").time() if stop_by else None}  # noqa: DTZ007
            )
        )

    def meet(self, sandbox: Sandbox, call: CallInfo) -> Fault | Canned | None:
        """Refuse what the account does not hold; note calls that start too late."""
        if self.week_clock.wall_us() > self.ends_us:
            self.late.append(f"{call.order.prompt!r} was sent after {ENDS}")
        met = super().meet(sandbox, call)
        if met is not None:
            return met
        price = self.config.prices[next(kind for kind in KINDS if kind.model == call.order.model)]
        if self.account is not None and price > self.account:
            return Canned(
                402, {"Content-Type": "application/json"}, b'{"status":"FAILED","message":"balance","data":null}'
            )
        if self.account is not None:
            self.account -= price
        self.charged += price
        return None


def _night(rows: int) -> Night:
    # About 34 hours of work, whatever the number of rows; no call comes near its timeout.
    pace_s = 34 * HOUR_S / rows
    concurrency = max(1, round(52 / pace_s))
    return Night(
        seed=7,
        jobs=rows,
        concurrency=concurrency,
        median_s=pace_s * concurrency / 1.15,
        rate_limit=None,
        # One fewer than -c asks for: the governor has to find it.
        queue_limit=concurrency - 1 if concurrency > 3 else None,
        shares=(),
        spells=(),
        cuts_s=(),
        prices=(),
        balance=None,
        budget=rows * 9 * money.MICRO,
        raises=False,
        deaths=(),
        drains_s=(),
        stop_by_s=0.0,
        in_doubt="keep",
        download_wait_s=900.0,
    )


def _what(night: int, start_s: float) -> tuple[str, list[Spell], Death | None]:
    """Return what a night brings."""
    match night:
        case 1:
            return "throttled for two hours", [Spell(start_s + HOUR_S, 2 * HOUR_S, Storm.THROTTLED)], None
        case 2:
            return "an hour of refused connections", [Spell(start_s + 3 * HOUR_S, HOUR_S, Storm.REFUSED)], None
        case 3:
            return "an hour of dropped connections", [Spell(start_s + 3 * HOUR_S, HOUR_S, Storm.DROPPED)], None
        case 4:
            return "clocks go forward; the account runs dry", [], None
        case 5:
            return "filled up; a power cut at 02:00", [], Death(at_s=start_s + 4 * HOUR_S)
        case 6:
            return "the machine sleeps for two hours", [], None
    return "calm", [], None


async def _play(week: Week, story: Story) -> list[Line]:
    lines = []
    async with week.sandbox() as sandbox:
        sandbox.follow(partial(week.meet, sandbox))
        for night in range(1, NIGHTS + 1):
            lines.append(await _one_night(week, story, sandbox, night))
        story.broken += _end(week, sandbox)
    return lines


async def _one_night(week: Week, story: Story, sandbox: Sandbox, night: int) -> Line:
    loop, clock = asyncio.get_running_loop(), week.week_clock
    starts = (MONDAY.replace(tzinfo=None) + timedelta(days=night - 1)).replace(tzinfo=ZONE)
    ends = starts.replace(hour=6, minute=30, tzinfo=None) + timedelta(days=1)
    await asyncio.sleep(max(0.0, starts.timestamp() - clock.wall_us() / 1e6))
    week.ends_us = round(ends.replace(tzinfo=ZONE).timestamp() * 1e6)
    week.account = {_EMPTY_NIGHT: week.night.jobs * money.MICRO // 4}.get(night)
    what, spells, death = _what(night, loop.time())
    tasks = [asyncio.ensure_future(week.rage(sandbox, _from_now(spell, loop.time()))) for spell in spells]
    if night == _SLEEP_NIGHT:
        tasks.append(asyncio.ensure_future(_sleep(week, sandbox)))
    calls = sum(week.calls.values())
    code = await week.one_run(death, stop_by=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    story.broken += _allowed(night, code, states_of(week))
    return Line(
        night, f"{starts:%a %H:%M}", f"{datetime.fromtimestamp(clock.wall_us() / 1e6, ZONE):%H:%M}",
        "power cut" if code is None else str(int(code)), what, sum(week.calls.values()) - calls, states_of(week),
    )  # fmt: skip


def _from_now(spell: Spell, now_s: float) -> Spell:
    return Spell(spell.starts_s - now_s, spell.lasts_s, spell.storm)


async def _sleep(week: Week, sandbox: Sandbox) -> None:
    """Close the lid at one in the morning: the wall clock goes on, the connections are dead at waking."""
    await asyncio.sleep(3 * HOUR_S)
    week.week_clock.slept_s += SLEEPS_S
    sandbox.cut()


def _allowed(night: int, code: Exit | None, states: Counter[str]) -> list[str]:
    """Tell which way a night must not end."""
    expected: set[Exit | None] = {Exit.STOPPED}
    if night == _EMPTY_NIGHT:
        expected = {Exit.OUT_OF_CREDITS}
    elif night == _CUT_NIGHT:
        expected = {None}
    if not states["pending"]:
        expected |= {Exit.DONE, Exit.IN_DOUBT}
    return [] if code in expected else [f"night {night} ended with {code!r}"]


def _end(week: Week, sandbox: Sandbox) -> list[str]:
    """Hold the end of the week to its promises: everything done, or in doubt and said so."""
    import sqlite3

    states = states_of(week)
    broken = [*week.broken, *week.late[:5]]
    left = {state: count for state, count in states.items() if state not in ("done", "in_doubt") and count}
    if left:
        broken.append(f"left undone at the end of the week: {left}")
    # A cut each of: dropped connections, the power cut, the sleep; and the probes of an hour, a minute apart at most.
    if states["in_doubt"] > 3 * week.night.concurrency + 120:
        broken.append(f"{states['in_doubt']} jobs in doubt")
    with sqlite3.connect(week.out / "state.sqlite3") as db:
        broken += charges_agree(db, sandbox)
        broken += images_are_whole(db, week.out)
    db.close()
    return broken


@contextmanager
def _in_zone() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = ZONE.key
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def play(rows: int) -> tuple[Story, list[Line]]:
    """Play a week."""
    story = Story(seed=7)
    with tempfile.TemporaryDirectory(prefix="week-") as folder, _in_zone():
        week = Week(rows, Path(folder))
        loop = async_solipsism.EventLoop()
        loop.set_exception_handler(week.unhandled)
        try:
            with week.inside():
                lines = loop.run_until_complete(_play(week, story))
        finally:
            loop.close()
        story.broken += week.witness.broken
        story.counts["commits"] = week.witness.commits
    return story, lines


def table(lines: list[Line]) -> str:
    """Return the week, night by night."""
    head = f"{'night':<6}{'from':<11}{'to':<7}{'exit':<10}{'calls':>7}{'done':>8}{'doubt':>7}{'pending':>9}  what came"
    rows = [
        f"{line.night:<6}{line.started:<11}{line.ended:<7}{line.exit:<10}{line.calls:>7,}{line.states['done']:>8,}"
        f"{line.states['in_doubt']:>7,}{line.states['pending']:>9,}  {line.what}"
        for line in lines
    ]
    return "\n".join([head, *rows])


def run(tier: str) -> Figures:
    """Play the week of a tier."""
    began_s = time.monotonic()
    rows = ROWS[tier]
    story, lines = play(rows)
    print(table(lines))
    figures = Figures(violations=[f"{broken}  [python -m tests.torture.week {rows}]" for broken in story.broken])
    last = lines[-1].states
    figures.counts = {"rows": rows, "nights": len(lines), "done": last["done"], "in doubt": last["in_doubt"],
                      "commits": story.counts["commits"], "seconds": round(time.monotonic() - began_s, 1)}  # fmt: skip
    return figures


SUITE = Suite("T-week", run)


if __name__ == "__main__":
    told, nights = play(int(sys.argv[1]) if len(sys.argv) > 1 else SMALL_ROWS)
    print(table(nights))
    print("\n".join(told.broken) or "every promise was kept")
    sys.exit(bool(told.broken))
