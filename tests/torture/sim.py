"""T-sim: whole nights of the real program before the real sandbox, on a virtual clock, with faults drawn from a seed.

    python -m tests.torture.sim SEED [JOBS]     replays one night and tells its story

Held at every commit: the budget, the sums, the legal states, never twice (witness.py). Held at every call that
reaches the endpoint: its attempt is durable. Held at the end: what the endpoint charged is in the ledger, every
image is whole, and everything is done that the faults allowed.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import async_solipsism

from banana_batch.engine.stops import Stop
from banana_batch.errors import Exit
from banana_batch.sandbox.server import Sandbox
from tests.torture.suite import Figures, Suite
from tests.torture.virtual import EVENING
from tests.torture.weather import Night, draw
from tests.torture.world import World

JOBS = 500
NIGHTS = {"a": 300, "b": 5000}
MOST_RUNS = 30
LONGEST_S = 60  # of our own time, for one night
_LEDGER = """
SELECT job, run, outcome, reserved, credits, wasted, sent_us, class, status FROM attempts ORDER BY attempt
"""


@dataclass
class Story:
    """How a night went.

    Attributes:
        ledger: Hash of all attempts and states: the same seed gives the same.
        ended_s: When the last run ended, in seconds of the night.
    """

    seed: int
    broken: list[str] = field(default_factory=list)
    ledger: str = ""
    ended_s: float = 0.0
    runs: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def play(seed: int, jobs: int = JOBS) -> Story:
    """Play one night."""
    night = draw(seed, jobs)
    story = Story(seed)
    shared_memory = "/dev/shm"
    where = shared_memory if os.path.isdir(shared_memory) else None
    with tempfile.TemporaryDirectory(prefix="night-", dir=where) as folder, _bounded():
        world = World(night, Path(folder))
        loop = async_solipsism.EventLoop()
        loop.set_exception_handler(world.unhandled)
        try:
            with world.inside():
                loop.run_until_complete(_night(world, story))
        except Exception as failed:  # noqa: BLE001  # a night that breaks is a finding like any other
            story.broken.append(f"{type(failed).__name__}: {failed}")
        finally:
            loop.close()
        story.broken += world.broken + world.witness.broken
        story.counts["commits"] = world.witness.commits
    return story


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """End a night that goes round in circles while its clock stands still."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


async def _night(world: World, story: Story) -> None:
    night = world.night
    async with world.sandbox() as sandbox:
        sandbox.follow(partial(world.meet, sandbox))
        events = [world.rage(sandbox, spell) for spell in night.spells]
        events += [world.cut(sandbox, at_s) for at_s in night.cuts_s]
        events += [world.reprice(*change) for change in night.prices]
        events += [_say_stop(world, at_s) for at_s in night.drains_s]
        tasks = [asyncio.ensure_future(event) for event in events]
        try:
            await _live(world, story)
            story.ended_s = asyncio.get_running_loop().time()
            _judge(world, story, sandbox)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _say_stop(world: World, at_s: float) -> None:
    await asyncio.sleep(at_s)
    if world.life is not None and world.life.run is not None:
        world.life.run.drain(Stop(Exit.STOPPED, "the user said stop"))


async def _live(world: World, story: Story) -> None:
    """Start the program as its user would, until there is nothing left that starting again could do."""
    deaths, stop_by = list(world.night.deaths), world.night.stop_by_s is not None
    calls = 0
    for _ in range(MOST_RUNS):
        code = await world.one_run(deaths.pop(0) if deaths else None, stop_by=stop_by)
        story.runs.append(f"{asyncio.get_running_loop().time():.0f}s {'died' if code is None else code.name}")
        if code is Exit.STOPPED and stop_by:
            late_s = world.last_call_s - (world.night.stop_by_s or 0)
            if late_s > 0:
                story.broken.append(f"a call was sent {late_s:.0f} s after --stop-by")
            stop_by = False
        calls, made = sum(world.calls.values()), calls
        if not _goes_on(world, story, code, sent=calls > made):
            return
        await asyncio.sleep(120)
    story.broken.append(f"{MOST_RUNS} runs were not enough: {story.runs[-3:]}")


def _goes_on(world: World, story: Story, code: Exit | None, *, sent: bool) -> bool:
    """Do what a user does after this exit code; tell whether to run again."""
    states = _states(world)
    if code is Exit.NOT_FETCHED and world.night.download_wait_s > 600 and not world.night.unreachable:
        story.broken.append(f"{states['paid']} images are left although nothing kept them away for long")
    if code is None or states["paid"]:
        return True
    match code:
        case Exit.STOPPED:
            if not world.night.drains_s and world.night.stop_by_s is None:
                story.broken.append("stopped, and nobody said so")
            return True
        case Exit.BUDGET if world.night.raises and world.budget == world.night.budget:
            world.budget = (world.budget or 0) * 2 + 20_000_000
            return True
        case Exit.OUT_OF_CREDITS if world.balance is not None:
            world.balance += world.night.jobs * 20_000_000
            return True
        case Exit.IN_DOUBT:
            return world.night.in_doubt == "drop" or (world.night.in_doubt == "resend" and sent)
        case Exit.DONE | Exit.FAILED | Exit.BUDGET:
            return False
    story.broken.append(f"a night that could go on ended with {code.name}")
    return False


def _states(world: World) -> Counter[str]:
    with contextlib.closing(sqlite3.connect(world.out / "state.sqlite3")) as db:
        return Counter(dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state")))


def _judge(world: World, story: Story, sandbox: Sandbox) -> None:
    """Hold the end of the night to its promises."""
    with contextlib.closing(sqlite3.connect(world.out / "state.sqlite3")) as db:
        db.row_factory = sqlite3.Row
        rows = [tuple(row) for row in db.execute(_LEDGER)]
        states = [tuple(row) for row in db.execute("SELECT id, state, attempts, tries FROM jobs ORDER BY job")]
        story.ledger = hashlib.sha256(repr((rows, states)).encode()).hexdigest()
        story.counts.update(state for _, state, _, _ in states)
        story.counts["attempts"] = len(rows)
        story.broken += _unpaid(db, world.night, story)
        story.broken += _late(db, world, story)
        story.broken += _charges(db, sandbox)
        story.broken += _images(db, world.out)


def _unpaid(db: sqlite3.Connection, night: Night, story: Story) -> list[str]:
    """Tell what was left undone without a reason."""
    counts, broken = story.counts, []
    for state in ("sending", "paid", "lost"):
        if counts[state]:
            broken.append(f"{counts[state]} jobs are left {state}")
    if counts["pending"] and not story.runs[-1].endswith("BUDGET"):
        broken.append(f"{counts['pending']} jobs are left pending: {story.runs}")
    elif counts["pending"]:
        broken += _room_left(db, counts["pending"])
    weathers = [(spell.starts_s, spell.starts_s + spell.lasts_s) for spell in night.spells]
    for job in [row[0] for row in db.execute("SELECT job FROM jobs WHERE state = 'failed'")]:
        sent = db.execute("SELECT sent_us FROM attempts WHERE job = ? AND outcome = 'refused'", (job,)).fetchall()
        own = [row[0] for row in sent if not _within(row[0], weathers)]
        # A job that is alone can't be told from one that is refused for its own sake.
        others = db.execute(
            "SELECT count(*) FROM attempts WHERE job <> ? AND sent_us BETWEEN ? AND ?",
            (job, sent[-3:][0][0], sent[-1][0]),
        ).fetchone()[0]
        if not own and others:
            broken.append(f"job {job} failed by storms alone")
    return broken


def _late(db: sqlite3.Connection, world: World, story: Story) -> list[str]:
    """Tell whether the night took longer than its faults account for."""
    throttled = db.execute(
        "SELECT count(*) FROM attempts WHERE class IN ('rate_limited', 'queue_full', 'overloaded', 'server_failed')"
    ).fetchone()[0]
    night = world.night
    # Half as long again, an hour for the way back, two minutes a restart, and two for each refusal's cool-down.
    due_s = 1.5 * night.work_s + night.stormy_s * 16 / 15 + 3600 + 120 * (len(story.runs) + throttled)
    late_s = world.last_call_s - due_s
    return [f"the last call was sent {late_s:.0f} s later than the faults account for"] if late_s > 0 else []


def _within(sent_us: int, weathers: list[tuple[float, float]]) -> bool:
    at_s = sent_us / 1e6 - EVENING.timestamp()
    return any(starts_s - 1 <= at_s <= ends_s + 1 for starts_s, ends_s in weathers)


def _room_left(db: sqlite3.Connection, pending: int) -> list[str]:
    budget, committed = db.execute(
        "SELECT (SELECT budget FROM runs ORDER BY run DESC LIMIT 1), sum(spent + at_risk + reserved) FROM runs"
    ).fetchone()
    dearest = db.execute(
        "SELECT max(ifnull(highest, 1)) FROM kinds WHERE kind IN (SELECT kind FROM jobs WHERE state = 'pending')"
    ).fetchone()[0]
    if committed + dearest <= budget:
        return [f"{pending} jobs are left pending with {budget - committed} of the budget free"]
    return []


def _charges(db: sqlite3.Connection, sandbox: Sandbox) -> list[str]:
    """Hold the endpoint's own log against the ledger, prompt by prompt."""
    charged: Counter[str] = Counter()
    total = 0
    for charge in sandbox.charges():
        charged[charge.prompt] += 1
        total += charge.credits
    broken = []
    for prompt, paid, open_ in db.execute(
        "SELECT request ->> 'prompt', sum(outcome = 'paid'), sum(outcome IN ('doubt', 'unpriced'))"
        " FROM jobs LEFT JOIN attempts USING (job) GROUP BY jobs.job"
    ):
        if not (paid or 0) <= charged[prompt] <= (paid or 0) + (open_ or 0):
            broken.append(f"{prompt!r}: charged {charged[prompt]} times, the ledger has {paid} paid, {open_} in doubt")
    spent = db.execute("SELECT sum(spent) FROM runs").fetchone()[0] or 0
    if spent > total:
        broken.append(f"the ledger has {spent} spent, the endpoint charged {total}")
    return broken[:5]


def _images(db: sqlite3.Connection, out: Path) -> list[str]:
    """Re-hash every image, and look for files that nobody knows."""
    broken, known = [], set()
    for path, sha256 in db.execute("SELECT path, sha256 FROM images JOIN jobs USING (job) WHERE state = 'done'"):
        known.add(path)
        if hashlib.sha256((out / path).read_bytes()).digest() != sha256:
            broken.append(f"{path} is not what the state says")
    found = {str(path.relative_to(out)) for path in (out / "images").rglob("*") if not path.is_dir()}
    if found != known:
        broken.append(f"files that are no finished image: {sorted(found ^ known)[:5]}")
    return broken


def jobs_of(seed: int) -> int:
    """Return how many jobs a night of a tier has: every tenth is a large one."""
    return JOBS if seed % 10 == 0 else JOBS // 5


def play_seed(seed: int) -> Story:
    """Play the night of a tier."""
    return play(seed, jobs_of(seed))


def run(tier: str, nights: int | None = None, first: int = 1) -> Figures:
    """Play many nights, and the first of them twice."""
    figures = Figures()
    began_s = time.monotonic()
    seeds = range(first, first + (nights or NIGHTS[tier]))
    totals: Counter[str] = Counter()
    virtual_s = 0.0
    with ProcessPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        again = pool.submit(play_seed, first)
        for story in pool.map(play_seed, seeds, chunksize=4):
            totals.update(story.counts)
            totals["runs"] += len(story.runs)
            totals["deaths"] += sum(one.endswith("died") for one in story.runs)
            virtual_s += story.ended_s
            totals["jobs"] += jobs_of(story.seed)
            replay = f"python -m tests.torture.sim {story.seed} {jobs_of(story.seed)}"
            figures.violations += [f"night {story.seed}: {broken}  [{replay}]" for broken in story.broken]
            if story.seed == first and story.ledger != again.result().ledger:
                figures.violations.append(f"night {first} did not come out the same twice  [{replay}]")
    figures.counts = {"nights": len(seeds), "virtual_h": round(virtual_s / 3600), **dict(sorted(totals.items()))}
    figures.counts["seconds"] = round(time.monotonic() - began_s, 1)
    return figures


SUITE = Suite("T-sim", run)


def main() -> int:
    """Replay one night."""
    seed = int(sys.argv[1])
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else jobs_of(seed)
    print(draw(seed, jobs))
    story = play(seed, jobs)
    print("\n".join(story.runs))
    print(dict(story.counts), f"ended after {story.ended_s / 3600:.2f} h; ledger {story.ledger[:16]}")
    print("\n".join(story.broken) or "every promise was kept")
    return 1 if story.broken else 0


if __name__ == "__main__":
    sys.exit(main())
