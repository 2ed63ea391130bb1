"""T-outside: SIGKILL at random instants of runs whose images are written by another process: of the run, or of that one.

A run that is killed leaves a process that ends its last group; the next run must neither be kept out by it nor take its
files for its own. A run whose process is killed goes on alone, to the end, as if nothing had been.
"""

import contextlib
import os
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from . import process
from .harness import Batch, completed, replay, scratch, violations
from .suite import Figures, Suite

JOBS = 240
KILLS = 3
LONGEST_S = 0.9
TIERS = {"a": 40, "b": 400}  # batches


@dataclass(slots=True)
class Orphaned:
    """What one batch went through."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def kill_batch(seed: int) -> Orphaned:
    """Kill one batch's runs and their helpers, then complete it."""
    rng = random.Random(seed)
    found = Orphaned(seed)
    with scratch("outside") as folder:
        batch = Batch(Path(folder) / f"b{seed}", jobs=JOBS, options=("-c", "16"))
        for _ in range(KILLS):
            pid = process.fork(batch.arguments(), batch.said, many=1)
            code = process.wait(pid, rng.uniform(0.0, LONGEST_S))
            helpers = [] if code is not None else _helpers(pid)
            found.counts["helpers"] += len(helpers)
            if code is None and rng.random() < 0.5:
                for helper in helpers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(helper, signal.SIGKILL)
                        found.counts["kills of helpers"] += 1
                code = process.finish(pid)
            elif code is None:
                code = process.kill(pid)
                found.counts["kills of runs"] += 1
                found.counts["kills of runs with helpers"] += bool(helpers)
            found.violations += violations(batch)
            if code not in (-9, 0, 4):
                found.violations.append(f"exit {code}")
            if code == 0:
                break
        found.violations += completed(batch)
    return found


def _helpers(pid: int) -> list[int]:
    """Return the processes that fetch images for a run. The one that reads for it is forked: it has the run's words."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                if b"images.served" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def run_batches(batches: int) -> Figures:
    """Kill; too few kills of either kind are a violation too."""
    figures, sums = Figures(), Counter(batches=batches)
    for found in process.streams(kill_batch, range(1, batches + 1)):
        sums += found.counts
        figures.violations += [f"{text}; {replay('outside', found.seed)}" for text in found.violations]
    for kind in ("kills of helpers", "kills of runs with helpers"):
        if sums[kind] < batches // 8:
            figures.violations.append(f"only {sums[kind]} {kind}: see LONGEST_S")
    figures.counts.update(sums)
    return figures


SUITE = Suite("T-outside", lambda tier: run_batches(TIERS[tier]))

if __name__ == "__main__":
    process.preload()
    for seed in map(int, sys.argv[1:]):
        print(kill_batch(seed))
