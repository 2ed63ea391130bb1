"""T-kill: SIGKILL at random instants of whole batches, downloads included; resumed until the batch is complete.

Each batch is killed up to KILLS times in a row, every run at an instant of its own. After each kill everything
that is promised of a stopped batch must hold; then the batch is completed, and everything must be done and paid once.
"""

import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import process
from .harness import Batch, completed, replay, scratch, violations
from .suite import Figures, Suite

KILLS = 5
LONGEST_S = 0.15
TIERS = {"a": 400, "b": 4000}


@dataclass(slots=True)
class Killed:
    """What one batch went through."""

    seed: int
    kills: int = 0
    runs: int = 0
    doubts: int = 0
    charges: int = 0
    jobs: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def kill_batch(seed: int) -> Killed:
    """Kill one batch again and again, then complete it."""
    rng = random.Random(seed)
    found = Killed(seed)
    with scratch("kill") as folder:
        batch = Batch(Path(folder) / f"b{seed}", jobs=rng.randint(4, 9), options=("-c", str(rng.choice((1, 3, 8)))))
        found.jobs = batch.jobs
        resent = False
        for number in range(KILLS):
            # Doubts are kept at first; a later run may be killed while it sends them again.
            further = ("--in-doubt", "resend") if number >= 3 and rng.random() < 0.5 else ()
            resent = resent or bool(further)
            pid = process.fork(batch.arguments(*further), batch.said)
            code = process.wait(pid, rng.uniform(0.0, LONGEST_S))
            if code is None:
                code = process.kill(pid)
            found.runs += 1
            found.kills += code == -9
            found.moments[_moment(batch)] += code == -9
            found.violations += violations(batch, resent=resent)
            if code not in (-9, 0, 4):
                found.violations.append(f"exit {code}")
            if code == 0:
                break
        found.doubts = batch.counts()["in_doubt"] + batch.counts()["sending"]
        found.violations += completed(batch, resent=resent)
        found.charges = len(batch.charges())
    return found


def _moment(batch: Batch) -> str:
    """Name the farthest that a killed run's jobs were."""
    counts = batch.counts()
    for state in ("paid", "sending", "done", "pending"):
        if counts[state]:
            return state
    return "before"


def run_kills(kills: int, first_seed: int = 1) -> Figures:
    """Kill batches, so many that about that many kills hit; fewer than that is a violation too."""
    figures = Figures()
    sums: Counter[str] = Counter()
    batches = kills * 2 // 5 + 1
    for found in process.streams(kill_batch, range(first_seed, first_seed + batches)):
        sums += Counter(batches=1, kills=found.kills, runs=found.runs, doubts=found.doubts, jobs=found.jobs)
        sums += Counter(charges=found.charges)
        sums += Counter({f"kills while {moment}": count for moment, count in found.moments.items()})
        figures.violations += [f"{text}; {replay('kill', found.seed)}" for text in found.violations]
    figures.counts.update(sums)
    if sums["kills"] < kills:
        figures.violations.append(f"only {sums['kills']} of {kills} kills hit a run: see LONGEST_S")
    return figures


SUITE = Suite("T-kill", lambda tier: run_kills(TIERS[tier]))

if __name__ == "__main__":
    process.preload()
    for seed in map(int, sys.argv[1:]):
        print(kill_batch(seed))
