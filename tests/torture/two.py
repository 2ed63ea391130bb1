"""T-two: many starters of one batch at once. One runs; each other says 75 within a second, and sends nothing."""

import json
import sys
import time
from pathlib import Path

from msgspec.structs import replace

from banana_batch.sandbox.config import Latency

from . import process
from .harness import Batch, last_words, replay, scratch, traceback_in, violations
from .suite import Figures, Suite

STARTERS = 20
LOCKED = 75
AT_ONCE_S = 1.0
TIERS = {"a": 5, "b": 200}
# So long that the one that runs still does when the last of the crowd has come.
_SLOW = replace(process.QUICK, latency=Latency("fixed", 2.0, 2.0))


def start_together(number: int, starters: int = STARTERS) -> tuple[list[str], float]:
    """Start one batch many times at once; return what does not hold, and how long the slowest refusal took."""
    with scratch("two") as folder:
        batch = Batch(Path(folder) / f"t{number}", jobs=8)
        began_s = time.monotonic()
        pids = [
            process.fork(batch.arguments("--json"), folder / f"said-{one}", config=_SLOW) for one in range(starters)
        ]
        ends: dict[int, tuple[int | None, float]] = {}
        while len(ends) < starters and time.monotonic() - began_s < process.BOUND_S:
            for one, pid in enumerate(pids):
                if one not in ends and (code := process.wait(pid, 0.002)) is not None:
                    ends[one] = code, time.monotonic() - began_s
        for one in range(starters):
            if one not in ends:
                process.kill(pids[one])
                ends[one] = process.HUNG, process.BOUND_S
        codes = [ends[one][0] for one in range(starters)]
        found = violations(batch)
        if sorted(map(str, codes)) != sorted(["0", *[str(LOCKED)] * (starters - 1)]):
            found.append(f"exits {sorted(map(str, codes))} instead of one 0 and {starters - 1} x {LOCKED}")
        if (charged := len(batch.charges())) != batch.jobs:
            found.append(f"{charged} charges for {batch.jobs} jobs")
        for one in range(starters):
            said = (folder / f"said-{one}").read_text(errors="replace")
            if codes[one] == LOCKED and (json.loads(said.splitlines()[-1])["exit"] != LOCKED or "pid" not in said):
                found.append(f"a refused starter said {said!r}")
        batch.said.write_text("".join((folder / f"said-{one}").read_text(errors="replace") for one in range(starters)))
        found += traceback_in(batch)
        slowest_s = max([0.0, *[at_s for code, at_s in ends.values() if code == LOCKED]])
        return [f"{text} ({last_words(batch)})" for text in found], slowest_s


def alone(number: int, at_once_s: float = AT_ONCE_S) -> tuple[list[str], float]:
    """Hold a batch, start it once more; the refusal takes less than a second when nothing else runs."""
    with scratch("two") as folder:
        batch = Batch(Path(folder) / f"h{number}", jobs=4)
        gate = process.Gate("state")
        holder = process.fork(batch.arguments(), batch.said, gate=gate)
        try:
            gate.thread(holder)
            start_s = time.monotonic()
            code = process.finish(process.fork(batch.arguments(), folder / "second"))
            took_s = time.monotonic() - start_s
            gate.open()
            first = process.finish(holder)
        finally:
            gate.close()
        found = violations(batch)
        if (code, first) != (LOCKED, 0):
            found.append(f"the holder ended with {first}, the second with {code}")
        if f"pid {holder} on " not in (folder / "second").read_text():
            found.append("the refusal does not name the holder")
        if took_s > at_once_s:
            found.append(f"the refusal took {took_s:.1f} s")
        return found, took_s


def run_rounds(rounds: int, starters: int = STARTERS, at_once_s: float = AT_ONCE_S) -> Figures:
    """Do both as often as that."""
    figures = Figures()
    slowest_s = alone_s = 0.0
    for number in range(rounds):
        found, took_s = process.apart(start_together, number, starters)
        slowest_s = max(slowest_s, took_s)
        figures.violations += [f"{text}; {replay('two', number)}" for text in found]
        found, took_s = process.apart(alone, number, at_once_s)
        alone_s = max(alone_s, took_s)
        figures.violations += [f"{text}; {replay('two', number)}" for text in found]
    figures.counts.update(rounds=rounds, starters=starters * rounds)
    figures.counts["slowest refusal of a crowd"] = f"{slowest_s:.2f} s"
    figures.counts["slowest refusal beside one holder"] = f"{alone_s:.2f} s"
    return figures


SUITE = Suite("T-two", lambda tier: run_rounds(TIERS[tier]))

if __name__ == "__main__":
    for one in map(int, sys.argv[1:]):
        process.preload()
        print(start_together(one), alone(one))
