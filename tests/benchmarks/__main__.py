"""How fast it is, beside what a user would pick instead: `python -m tests.benchmarks [--quick] [--only W1 …]`.

Rule 1: in one run and in turn (A B C A B C …): only ratios within one run mean anything.
Rule 2: every run is checked: all generated, all files there.
Rule 3: where other work takes more than 15 % of the machine, the figures are not reported.
Rule 4: small files are deleted at the end only: creating some where thousands were just deleted is slow on ext4.
"""

import argparse
import errno
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median

from .chart import bars
from .measure import BUSY_SHARE, Taken, busy_share, endpoint, taken
from .scale import Figure, at_most, scale, start, steady
from .workloads import COMMANDS, OURS, QUICK, SCRIPT, TUNED, WORKLOADS, Workload, write_manifest

QUIET_WAIT_S = 20.0
REPEATS = 3  # of a run that others disturbed
LARGE_BYTES = 1 << 30  # of images: few large files, deleted after each run
ROOM_BYTES = 12 << 30


class Busy(Exception):
    """Other work takes too much of the machine."""


class Bench:
    """One session: where its files lie, and whether a busy machine matters."""

    def __init__(self, folder: Path, *, anyway: bool) -> None:
        self.folder = folder
        self.anyway = anyway
        self.disturbed = 0.0

    def calm(self) -> None:
        """Wait a little for other work to end.

        Raises:
            Busy: it does not.
        """
        ends_s = time.monotonic() + QUIET_WAIT_S
        while not self.anyway and (share := busy_share()) > BUSY_SHARE:
            if time.monotonic() > ends_s:
                raise Busy(f"other work takes {share:.0%} of this machine; --anyway measures all the same")

    def has_room(self) -> None:
        """Look whether the disk holds what is written meanwhile.

        Raises:
            OSError: it does not; others would meet a full disk too.
        """
        free = shutil.disk_usage(self.folder).free
        if free < ROOM_BYTES:
            raise OSError(errno.ENOSPC, f"{free >> 30} GiB free in {self.folder}, {ROOM_BYTES >> 30} needed")

    def compare(self, workload: Workload) -> dict[str, list[Taken]]:
        """Let every peer do the work, in turn."""
        manifest = write_manifest(self.folder / f"{workload.name}.jsonl", workload.jobs)
        found: dict[str, list[Taken]] = {peer: [] for peer in workload.peers}
        for number in range(workload.rounds):
            for peer in workload.peers:
                found[peer].append(self._once(workload, peer, manifest, f"{workload.name}-{number}-{peer.split()[0]}"))
        return found

    def _once(self, workload: Workload, peer: str, manifest: Path, name: str) -> Taken:
        for repeat in range(REPEATS):
            self.calm()
            folder = self.folder / f"{name}-{repeat}"
            folder.mkdir()
            with endpoint(*workload.options) as server:
                run = taken(COMMANDS[peer](manifest, folder, workload.concurrency, server.base_url), server)
                stats = server.stats()
            files = sum(1 for _ in folder.rglob("*.png"))
            if workload.jobs * workload.image_bytes > LARGE_BYTES:
                shutil.rmtree(folder)
            whole = run.exit == 0 and stats["generated"] == stats["images"] == files == workload.jobs
            if not whole:
                raise AssertionError(f"{name}: exit {run.exit}, {stats}, {files} files: {run.output[-1000:]}")
            if run.foreign <= BUSY_SHARE or self.anyway:
                self.disturbed = max(self.disturbed, run.foreign)
                return run
        raise Busy(f"{peer} on {workload.name} was disturbed {REPEATS} times, at last by {run.foreign:.0%}")


def figures(workload: Workload, found: dict[str, list[Taken]]) -> Iterator[Figure]:
    """Return the medians and ratios of one workload."""
    wall = {peer: median(run.wall_s for run in runs) for peer, runs in found.items()}
    for peer, runs in found.items():
        what = f"{peer}: {workload.what}"
        speed = workload.jobs / wall[peer]
        if workload.name == "W3":
            yield Figure(workload.name, what, speed * workload.image_bytes / 1e6, "MB/s")
        elif workload.latency_s:
            yield Figure(workload.name, what, workload.ideal_s() / wall[peer], "of the ideal")
        else:
            yield Figure(workload.name, what, speed, "jobs/s")
        yield Figure(workload.name, f"{peer}: CPU", 1000 * median(run.cpu_s for run in runs) / workload.jobs, "ms/job")
        yield Figure(workload.name, f"{peer}: peak memory", median(run.peak_rss_bytes for run in runs) / 1e6, "MB")
    yield from _verdicts(workload, found, wall)


def _verdicts(workload: Workload, found: dict[str, list[Taken]], wall: dict[str, float]) -> Iterator[Figure]:
    def at_least(what: str, value: float, limit: float, unit: str) -> Figure:
        return Figure(workload.name, what, value, unit, f"≥ {limit:g}", value >= limit)

    memory = median(run.peak_rss_bytes for run in found[OURS]) / 1e6
    if workload.name == "W1":
        yield at_least("speed beside the script", wall[SCRIPT] / wall[OURS], 0.8, "×")
        yield at_least("speed beside tuned", wall[TUNED] / wall[OURS], 0.6, "×")
    elif workload.name == "W3":
        yield at_least("speed beside tuned", wall[TUNED] / wall[OURS], 1.0, "×")
        yield at_most(workload.name, "peak memory", memory, 100, "MB")
    else:
        limit = 0.91 if workload.name == "W2" else 0.95
        yield at_least("efficiency", workload.ideal_s() / wall[OURS], limit, "")
        if workload.name == "W2b":
            cpu_ms = 1000 * median(run.cpu_s for run in found[OURS]) / workload.jobs
            yield at_most(workload.name, "CPU a job", cpu_ms, 0.6, "ms")
            yield at_most(workload.name, "peak memory", memory, 130, "MB")


def run(bench: Bench, *, quick: bool, only: list[str]) -> list[Figure]:
    """Measure everything, or what was asked for; print each figure as it is known."""
    found: list[Figure] = []

    def told(more: Iterator[Figure]) -> None:
        for figure in more:
            found.append(figure)
            print(line(figure), flush=True)

    for workload in QUICK if quick else WORKLOADS:
        if not only or workload.name in only:
            told(figures(workload, bench.compare(workload)))
    if not only or "W4" in only:
        told(scale(bench.folder, 100_000 if quick else 1_000_000))
    if not only or "W5" in only:
        told(start(bench.folder))
    if "W6" in only or not (only or quick):
        told(steady(bench.folder, 200_000))
    return found


def line(figure: Figure) -> str:
    """Return a figure as a line of the table."""
    verdict = "" if figure.ok is None else f"{figure.must:<14} {'ok' if figure.ok else 'SHORT'}"
    return f"{figure.name:<4} {figure.what:<52} {short(figure.value):>9} {figure.unit:<12} {verdict}".rstrip()


def short(value: float) -> str:
    """Return a number with three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write(out: Path, found: list[Figure], bench: Bench) -> None:
    """Write the figures as JSON and as a picture."""
    out.mkdir(parents=True, exist_ok=True)
    machine = {"system": platform.platform(), "python": platform.python_version(), "disturbed": bench.disturbed}
    when = time.strftime("%Y-%m-%d %H:%M")
    document = {"when": when, "machine": machine, "figures": [asdict(figure) for figure in found]}
    (out / "bench.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    groups: dict[str, list[tuple[str, float, str]]] = {}
    for figure in found:
        peer, _, what = figure.what.partition(": ")
        if peer in COMMANDS and what not in ("CPU", "peak memory"):
            bar = (peer, figure.value, f"{short(figure.value)} {figure.unit}")
            groups.setdefault(f"{figure.name}  {what}", []).append(bar)
    (out / "bench.svg").write_text(bars(f"banana-batch beside others, {when}", groups), encoding="utf-8")
    print(f"written: {out / 'bench.json'}, {out / 'bench.svg'}")


def main() -> int:
    """Read the arguments and measure; 1: a promise was missed, 2: the machine is busy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller workloads, at most two minutes")
    parser.add_argument("--only", nargs="*", default=[], metavar="W1", help="these workloads alone")
    parser.add_argument("--anyway", action="store_true", help="on a busy machine too; the figures are worth little")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of bench.json and bench.svg")
    asked = parser.parse_args()
    bench = Bench(Path(tempfile.mkdtemp(prefix="banana-bench-")), anyway=asked.anyway)
    try:
        bench.has_room()
        bench.calm()
        found = run(bench, quick=asked.quick, only=asked.only)
    except (Busy, OSError) as refused:
        print(f"nothing is reported: {refused}", file=sys.stderr)
        return 2
    finally:
        # Not before: files are created slower for minutes where thousands were just deleted.
        shutil.rmtree(bench.folder, ignore_errors=True)
    write(asked.out, found, bench)
    if bench.disturbed > BUSY_SHARE:
        print(f"not to be trusted: other work took up to {bench.disturbed:.0%} of this machine")
    return int(any(figure.ok is False for figure in found))


if __name__ == "__main__":
    sys.exit(main())
