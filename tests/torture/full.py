"""T-full: a disk of 8 MiB that is, or becomes, full; then space is freed and the batch goes on.

Half of the points are a disk with so much left before the start, half are filled up at a random instant of the run.
"""

import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import disk, process, trace
from .harness import Batch, completed, last_words, replay, scratch, traceback_in, violations
from .suite import Figures, Suite

TIERS = {"a": 40, "b": 400}
LONGEST_S = 0.3
_MEGABYTES = 8
# Free space before the start: from nothing to all of it, in steps that differ more where it is scarce.
_MOST_LEFT = 6 << 20


@dataclass(frozen=True, slots=True)
class Point:
    """One point; its text is `NUMBER/OF`."""

    number: int
    of: int
    gateway: str = ""
    log: str = ""

    def __str__(self) -> str:
        """Return the text."""
        return f"{self.number}/{self.of}"


def fill_up(point: Point) -> tuple[Point, int, list[str]]:
    """Run a batch on a disk that is full sooner or later; free the space and complete it."""
    rng, log = random.Random(point.number), Path(point.log)
    with scratch("full") as folder:
        image = folder / "disk.ext4"
        disk.make(image, _MEGABYTES)
        with disk.mounted(image) as place:
            batch = Batch(
                folder / f"f{point.number}",
                jobs=6,
                gateway=point.gateway,
                log=log,
                since=log.stat().st_size if log.exists() else 0,
                options=("-c", "2"),
                out=place / "out",
            )
            before = point.number % 2 == 0
            filler = disk.fill(place, int(_MOST_LEFT * (point.number / point.of) ** 2)) if before else place / "filler"
            pid = process.fork(batch.arguments(), batch.said)
            code = None if before else process.wait(pid, rng.uniform(0.0, LONGEST_S))
            if code is None and not before:
                filler = disk.fill(place, rng.choice((0, 0, 4096, 65536)))
            if code is None:
                code = process.finish(pid)
            found = violations(batch)
            if code == 0 and batch.counts() != {"done": batch.jobs}:
                found.append(f"exit 0 with work undone: {dict(batch.counts())}")
            if code not in (0, 73, 74) or (code == 73 and batch.charges()):
                found.append(f"exit {code}: {last_words(batch)}")
            filler.unlink(missing_ok=True)
            found += completed(batch)
            return point, code, found + traceback_in(batch)


def run_full(tier: str) -> Figures:
    """Fill the disk at every point."""
    figures, why = Figures(), disk.missing()
    if why:
        figures.counts[f"left out: {why}"] = 1
        return figures
    with scratch("server") as folder, trace.server(folder / "sandbox") as (gateway, log):
        points = [Point(number, TIERS[tier], gateway, str(log)) for number in range(TIERS[tier])]
        codes: Counter[str] = Counter()
        for point, code, found in process.streams(fill_up, points):
            codes[f"exit {code}"] += 1
            figures.violations += [f"{text}; {replay('full', point)}" for text in found]
    figures.counts.update(points=len(points), **codes)
    return figures


SUITE = Suite("T-full", run_full)

if __name__ == "__main__":
    process.preload()
    for text in sys.argv[1:]:
        number, _, of = text.partition("/")
        with scratch("server") as outside, trace.server(outside / "sandbox") as (url, charges):
            print(fill_up(Point(int(number), int(of), url, str(charges))))
