"""T-sim: whole nights of the real program before the real sandbox, on a virtual clock, with faults drawn from a seed.

    python -m tests.torture.sim SEED [JOBS]     replays one night and tells its story

Held at every commit: the budget, the sums, the legal states, never twice (witness.py). Held at every call that
reaches the endpoint: its attempt is durable. Held at the end: what the endpoint charged is in the ledger, every
image is whole, and everything is done that the faults allowed.
"""

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType

import async_solipsism

from banana_batch.engine.stops import Stop
from banana_batch.errors import Exit
from tests.torture.suite import Figures, Suite
from tests.torture.verdict import Story, judge
from tests.torture.weather import draw
from tests.torture.world import World

JOBS = 500
NIGHTS = {"a": 300, "b": 5000}
MOST_RUNS = 30
LONGEST_S = 60  # of our own time, for one night


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
            judge(world, story, sandbox)
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
    states = states_of(world)
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


def states_of(world: World) -> Counter[str]:
    with contextlib.closing(sqlite3.connect(world.out / "state.sqlite3")) as db:
        return Counter(dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state")))


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
