"""T-signal: each signal at many instants of a run that waits, sends or downloads, once and twice; then resumed.

One signal is an order to stop: what is under way ends well, nothing is in doubt. A second SIGTERM cuts off; a second
SIGINT within a second is the same key pressed once, a second SIGHUP the same line cut once. Whatever came, every promise holds, and the batch is
completed afterwards.
"""

import os
import random
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from banana_batch.sandbox.config import Latency, SandboxConfig, parse_fault

from . import process
from .harness import Batch, completed, replay, scratch, violations
from .suite import Figures, Suite

JOBS = 9
LONGEST_S = 0.3
SECOND_AFTER_S = 0.01
POINTS = {"a": 20, "b": 200}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a run is at most of the time, by the endpoint's pace and its own.
PHASES: dict[str, tuple[SandboxConfig, tuple[str, ...]]] = {
    "idle": (process.QUICK, ("--rpm", "200")),
    "sending": (replace(process.QUICK, latency=Latency("uniform", 0.05, 0.2)), ("-c", "3")),
    "downloading": (replace(process.QUICK, faults=(parse_fault("image-slow=1"),), slow_image_s=0.15), ("-c", "6")),
}
# Done before it came; stopped; and, of a second one, in doubt or cut off.
_ENDS = {0, 7}
_CUT_ENDS = _ENDS | {4, 6, 143}


@dataclass(frozen=True, slots=True)
class Case:
    """One run and what it gets."""

    number: signal.Signals
    phase: str
    times: int
    point: int

    @property
    def name(self) -> str:
        """How a replay is told which one."""
        return f"{self.number.name}-{self.phase}-{self.times}-{self.point}"


@dataclass(slots=True)
class Signalled:
    """What became of it."""

    case: Case
    code: int
    doubts: int
    violations: list[str]


def cases(points: int) -> list[Case]:
    """Return every signal, phase and number of signals at that many instants each."""
    return [
        Case(number, phase, times, point)
        for number in SIGNALS
        for phase in PHASES
        for times in (1, 2)
        for point in range(points)
    ]


def signal_batch(case: Case) -> Signalled:
    """Run one batch, signal it, see what holds, complete it."""
    config, options = PHASES[case.phase]
    rng = random.Random(case.name)
    with scratch("signal") as folder:
        batch = Batch(Path(folder) / case.name, jobs=JOBS, options=options)
        pid = process.fork(batch.arguments(), batch.said, config=config)
        code = process.wait(pid, rng.uniform(0.0, LONGEST_S))
        for _ in range(case.times):
            if code is None:
                os.kill(pid, case.number)
                code = process.wait(pid, SECOND_AFTER_S)
        code = process.finish(pid) if code is None else code
        counts = batch.counts()
        found = violations(batch)
        cut = case.times > 1 and case.number is signal.SIGTERM
        # Before a run takes signals, and after its end, the system's own answer to one ends the process.
        early = {-case.number, 130 if case.number is signal.SIGINT else -case.number}
        if code not in (_CUT_ENDS if cut else _ENDS) | early:
            found.append(f"exit {code}")
        doubts = counts["in_doubt"] + counts["sending"]
        if doubts and not cut:
            found.append(f"{doubts} in doubt after one order to stop")
        found += completed(batch, resent=False, config=config)
    return Signalled(case, code, doubts, found)


def run_signals(points: int) -> Figures:
    """Do all cases; a signal that never met a run at work is a violation too."""
    figures = Figures()
    sums: Counter[str] = Counter()
    met: Counter[tuple[signal.Signals, int]] = Counter()
    for found in process.streams(signal_batch, cases(points)):
        case = found.case
        sums += Counter(cases=1, doubts=found.doubts)
        sums[f"exit {found.code}"] += 1
        met[case.number, case.times] += found.code in (4, 6, 7, 143)
        figures.violations += [f"{text}; {replay('signals', case.name)}" for text in found.violations]
    figures.counts.update(sums)
    figures.violations += [
        f"{number.name} x {times} met a run at work {met[number, times]} times: see LONGEST_S"
        for number in SIGNALS
        for times in (1, 2)
        if met[number, times] < points
    ]
    return figures


SUITE = Suite("T-signal", lambda tier: run_signals(POINTS[tier]))

if __name__ == "__main__":
    process.preload()
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for one in cases(POINTS["a"]):
        if wanted in ("", one.name):
            print(signal_batch(one))
