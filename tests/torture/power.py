"""T-power: a batch on a file system of its own, whose power is cut at random instants.

The run is stopped, the file behind the loop device is copied, and the copy is mounted: it holds what had reached the
disk by then. The endpoint and its charge log live outside. The same cuts must catch a program that syncs less.
"""

import os
import random
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import disk, process, trace
from .harness import Batch, completed, replay, scratch, violations
from .suite import Figures, Suite

TIERS = {"a": 60, "b": 1000}
MUTANT_CUTS = 12
LONGEST_S = 0.12
_MEGABYTES = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """One power cut; its text is `SEED:MUTANT`."""

    seed: int
    mutant: str
    gateway: str = ""
    log: str = ""

    def __str__(self) -> str:
        """Return the text."""
        return f"{self.seed}:{self.mutant}"


def state_unsynced() -> None:
    """The state is not synced at each commit."""
    from banana_batch.store import database

    durable = database.make_durable

    def weaker(db: sqlite3.Connection, out: Path) -> None:
        durable(db, out)
        db.execute("PRAGMA synchronous = NORMAL")

    vars(database)["make_durable"] = weaker


def parts_unsynced() -> None:
    """Images are not synced before they get their names, nor is their writing begun early.

    The latter alone brings them to this disk, which takes everything at once: it hides a missing sync here.
    """
    from banana_batch.images import committer, files

    class Lazy:
        def __getattr__(self, name: str) -> object:
            return (lambda descriptor: None) if name == "fsync" else getattr(os, name)

    vars(committer)["os"] = vars(files)["os"] = Lazy()
    vars(files)["_advise"] = None


MUTANTS: dict[str, Callable[[], None] | None] = {"none": None, "normal": state_unsynced, "unsynced": parts_unsynced}


def cut(case: Cut) -> tuple[Cut, bool, list[str]]:
    """Cut one batch's power; return whether it still ran, and what does not hold on the copy."""
    rng = random.Random(case.seed)
    log = Path(case.log)
    with scratch("power") as folder:
        image, copy = folder / "disk.ext4", folder / "copy.ext4"
        disk.make(image, _MEGABYTES)
        with disk.mounted(image) as place:
            batch = Batch(
                folder / f"p{case.seed}{case.mutant}",
                jobs=rng.randint(4, 8),
                gateway=case.gateway,
                log=log,
                since=log.stat().st_size if log.exists() else 0,
                options=("-c", str(rng.choice((1, 2, 8)))),
                out=place / "out",
            )
            pid = process.fork(batch.arguments(), batch.said, mutate=MUTANTS[case.mutant])
            running = _wait_for_charges(batch, pid, rng.randint(0, batch.jobs))
            running = running and process.wait(pid, rng.uniform(0.0, LONGEST_S)) is None
            if running:
                os.kill(pid, signal.SIGSTOP)
                os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            shutil.copyfile(image, copy)
            if running:
                process.kill(pid)
        image.unlink()
        with disk.mounted(copy) as place:
            batch.out = place / "out"
            found = violations(batch)
            if case.mutant == "none":
                found += completed(batch)
        return case, running, found


def _wait_for_charges(batch: Batch, pid: int, count: int) -> bool:
    """Wait until so many calls were charged, so that cuts fall on all of a batch; return whether it still runs."""
    for _ in process.until(process.BOUND_S):
        if count == 0 or len(batch.charges()) >= count:
            return True
        if process.wait(pid, 0.0) is not None:
            return False
    return True


def run_cuts(tier: str) -> Figures:
    """Cut the real program's power, then that of each mutant."""
    figures, why = Figures(), disk.missing()
    if why:
        figures.counts[f"left out: {why}"] = 1
        return figures
    with scratch("server") as folder, trace.server(folder / "sandbox") as (gateway, log):
        cuts = {"none": TIERS[tier], "normal": MUTANT_CUTS, "unsynced": MUTANT_CUTS}
        cases = [Cut(seed, name, gateway, str(log)) for name, count in cuts.items() for seed in range(1, count + 1)]
        caught = dict.fromkeys(MUTANTS, 0)
        while_running = 0
        for case, running, found in process.streams(cut, cases):
            caught[case.mutant] += bool(found)
            while_running += running and case.mutant == "none"
            if case.mutant == "none":
                figures.violations += [f"{text}; {replay('power', case)}" for text in found]
    figures.counts.update(cuts=cuts["none"])
    figures.counts["while it ran"] = while_running
    for name in ("normal", "unsynced"):
        figures.counts[f"mutant {name} caught"] = f"{caught[name]} of {cuts[name]}"
        if not caught[name]:
            figures.violations.append(f"the mutant {name} was not caught in {cuts[name]} cuts")
    return figures


SUITE = Suite("T-power", run_cuts)

if __name__ == "__main__":
    process.preload()
    for text in sys.argv[1:]:
        seed, _, mutant = text.partition(":")
        with scratch("server") as outside, trace.server(outside / "sandbox") as (url, charges):
            print(cut(Cut(int(seed), mutant or "none", url, str(charges))))
