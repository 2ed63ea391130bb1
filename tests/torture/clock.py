"""T-clock: a wall clock that jumps by days, an hour, a second. Waits, timeouts, order and money do not notice.

Each case is a whole run whose wall clock jumps at one moment: while images are bought, while a Retry-After is waited
for, while a call hangs, while an outage lasts. It is held against the same run without a jump. Where libfaketime is
found, the installed command itself runs under it, monotonic clock left alone.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

from banana_batch.batch import Machinery
from banana_batch.errors import Exit
from banana_batch.pacing.clock import SystemClock
from tests.integration.answers_peer import answer, failed
from tests.integration.whole_runs import Arrived, Eager, Ended, Gateway, gateway, run_batch, scratch

from .suite import Figures, Suite

DAY_S, HOUR_S = 86_400.0, 3_600.0
JUMPS = {
    "2 days ahead": 2 * DAY_S,
    "2 days back": -2 * DAY_S,
    "summer time": HOUR_S,
    "winter time": -HOUR_S,
    "leap second": 1.0,
    "leap second back": -1.0,
}
MOMENTS = ("buying", "waiting", "hanging", "outage", "deadline")
JOBS = [f"job {number}" for number in range(1, 11)]
RETRY_AFTER_S, TIMEOUT_S, SHORT_S = 1.0, 0.6, 3.0
SLACK_S = 5.0  # a busy machine is slow; a jump would be an hour
EARLY_S = 1.0  # no call starts that is likely to end past the deadline
SLEPT_S = 30.0
LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)


class Jumping(SystemClock):
    """The real clocks; the wall clock jumps when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_s = 0.0

    def wall_us(self) -> int:
        """Return the wall clock's microseconds."""
        return super().wall_us() + round(self.ahead_s * 1e6)


@dataclass(frozen=True)
class Seen:
    """What a run came to."""

    ended: Ended
    posts: tuple[str, ...]
    waited_s: float
    elapsed_s: float


async def one(out: Path, jump_s: float, moment: str) -> Seen:
    """Run ten jobs, one at a time, past a Retry-After, a timeout and a cut; let the clock jump once."""
    clock, at = Jumping(), {}

    def jump(now: str) -> None:
        if now == moment:
            clock.ahead_s = jump_s

    async def said(peer: Gateway, arrived: Arrived) -> bytes | None:
        at[arrived.nth] = time.monotonic()
        if moment == "deadline":
            await asyncio.sleep(0.1)
            jump("deadline")
            return peer.sold()
        if arrived.nth == 1:
            jump("waiting")
            now_s = time.time()
            dates = f"Date: {formatdate(now_s, usegmt=True)}", f"Retry-After: {formatdate(now_s + 1, usegmt=True)}"
            return answer(429, failed("slow down"), *dates)
        if arrived.nth == 3:
            jump("buying")
        elif arrived.nth == 5:
            asyncio.get_running_loop().call_later(TIMEOUT_S / 2, jump, "hanging")
            await peer.hold.wait()
        elif arrived.nth in (7, 8):
            jump("outage")
            return None
        return peer.sold()

    options: dict[str, Any] = {"max_duration": SHORT_S} if moment == "deadline" else {}
    async with gateway(said) as peer:
        began_s = time.monotonic()
        ended = await run_batch(
            out,
            peer.url,
            JOBS,
            machinery=Machinery(clock=clock, rng=Eager()),
            timeout=TIMEOUT_S,
            budget="100",
            rows=[{"prompt": f"job {number}"} for number in range(50)] if moment == "deadline" else (),
            **options,
        )
        elapsed_s = time.monotonic() - began_s
    return Seen(ended, tuple(peer.posts), at.get(2, 0.0) - at.get(1, 0.0), elapsed_s)


def judge(moment: str, jump_s: float, seen: Seen, calm: Seen) -> list[str]:
    """Return where a run with a jump differs from one without."""
    found = []
    slept = seen.ended.told("slept")
    if bool(slept) != (jump_s > SLEPT_S) or len(slept) > 1:
        found.append(f"slept was said {len(slept)} times")
    if moment == "deadline":
        if seen.ended.exit is not Exit.STOPPED or not SHORT_S <= seen.elapsed_s + EARLY_S < SHORT_S + SLACK_S:
            found.append(f"exit {int(seen.ended.exit)} after {seen.elapsed_s:.1f} s of {SHORT_S} s")
        return found
    if (seen.ended.exit, seen.ended.jobs) != (calm.ended.exit, calm.ended.jobs):
        found.append(f"exit {int(seen.ended.exit)} with {dict(seen.ended.jobs)}")
    if seen.posts != calm.posts:
        found.append(f"another order: {seen.posts}")
    if seen.ended.credits != calm.ended.credits:
        found.append(f"another ledger: {seen.ended.credits}")
    if not RETRY_AFTER_S <= seen.waited_s < RETRY_AFTER_S + SLACK_S:
        found.append(f"a Retry-After of {RETRY_AFTER_S} s took {seen.waited_s:.2f} s")
    if seen.elapsed_s > calm.elapsed_s + SLACK_S:
        found.append(f"{seen.elapsed_s:.1f} s instead of {calm.elapsed_s:.1f} s")
    return found


async def run_jumps(jumps: dict[str, float]) -> Figures:
    """Let the clock of whole runs jump, all of them side by side."""
    figures = Figures()
    with scratch() as folder:
        calm = await one(folder / "calm", 0.0, "never")
        if (calm.ended.exit, dict(calm.ended.jobs)) != (Exit.IN_DOUBT, {"done": 7, "in_doubt": 3}):
            figures.violations.append(f"without a jump: exit {int(calm.ended.exit)}, {dict(calm.ended.jobs)}")

        async def run(number: int, name: str, moment: str) -> None:
            seen = await one(folder / str(number), jumps[name], moment)
            found = judge(moment, jumps[name], seen, calm)
            replay = "python -m tests.torture a clock"
            figures.violations.extend(f"{name}, {moment}: {what} ({replay})" for what in found)

        cases = [(name, moment) for name in jumps for moment in MOMENTS]
        await asyncio.gather(*(run(number, *case) for number, case in enumerate(cases)))
        figures.counts["jumps"] = len(cases)
    return figures


def run_faketime(figures: Figures) -> None:
    """Run the command under libfaketime: a batch begun today goes on two days earlier, then two days later."""
    places = (os.environ.get("FAKETIME_LIBRARY", ""), *LIBRARIES)
    library = next((place for place in places if Path(place).is_file()), None)
    if library is None:
        figures.counts["without libfaketime"] = 1
        return
    with scratch() as folder:
        (folder / "jobs.txt").write_text("".join(f"{job}\n" for job in JOBS), encoding="utf-8")
        for ahead, done in (("+0d", 4), ("-2d", 8), ("+2d", 10)):
            environ = os.environ | {
                "LD_PRELOAD": library, "FAKETIME": ahead, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1",
            }  # fmt: skip
            command = [
                sys.executable,
                "-m",
                "banana_batch",
                "run",
                str(folder / "jobs.txt"),
                "--sandbox",
                "--limit",
                "4",
            ]
            ended = subprocess.run(
                [*command, "-o", str(folder / "out"), "--json"],
                env=environ,
                capture_output=True,
                timeout=60,
                check=False,
            )
            told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1]) if ended.stdout else {}
            if ended.returncode != 0 or told["jobs"]["done"] != done:
                figures.violations.append(f"faketime {ahead}: {told} {ended.stderr.decode()[-300:]}")
            figures.counts["runs under libfaketime"] = int(figures.counts.get("runs under libfaketime", 0)) + 1


def run_tier(_tier: str) -> Figures:
    """Run every jump at every moment."""
    figures = asyncio.run(run_jumps(JUMPS))
    run_faketime(figures)
    return figures


SUITE = Suite("T-clock", run_tier)
