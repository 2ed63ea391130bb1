"""T-sys, T-err and T-order: a small batch, one system call at a time.

T-sys    SIGKILL at every write, sync, link, rename, unlink, open, send and receive, of every thread that makes them
T-err    EIO and ENOSPC at every such call to the disk, once and from then on
T-order  the record of one run: part synced < linked < folder synced < DONE durable; SENDING durable < POST sent
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from banana_batch.errors import Exit

from . import process, trace
from .harness import Batch, completed, last_words, replay, scratch, traceback_in, violations
from .suite import Figures

JOBS = 5
DISK = 74
AT_START = (66, 73)  # the manifest can't be read, the folder can't be made: before anything was sent
_WIDTHS = {"a": ("2",), "b": ("1", "3", "8")}


@dataclass(frozen=True, slots=True)
class Case:
    """One fault. Its text, `state:pwrite64:17:EIO+:2`, is its name and replays it.

    Attributes:
        sticky: The calls after it fail too, in every thread.
        width: Paid calls in flight.
    """

    role: str
    call: str
    number: int
    what: str
    sticky: bool = False
    width: str = "2"
    gateway: str = ""
    log: str = ""

    def __str__(self) -> str:
        """Return the text."""
        return f"{self.role}:{self.call}:{self.number}:{self.what}{'+' * self.sticky}:{self.width}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Read the text."""
        role, call, number, what, width = text.split(":")
        return cls(role, call, int(number), what.rstrip("+"), what.endswith("+"), width)


@dataclass(frozen=True, slots=True)
class Found:
    """What one case led to; `code` None: the thread was never there."""

    case: Case
    code: int | None
    violations: list[str]


def strike(case: Case) -> Found:
    """Let one case happen to a fresh batch, look at what is left, and complete it."""
    with scratch("sys") as folder:
        log = Path(case.log)
        batch = Batch(
            folder / str(case).replace(":", "-").replace("+", "s"),
            jobs=JOBS,
            gateway=case.gateway,
            log=log,
            since=log.stat().st_size if log.exists() else 0,
            options=("-c", case.width),
        )
        options = trace.injection(case.call, case.number, case.what, sticky=case.sticky)
        if _is_of_files(case.call, case.what):
            options += trace.only_files(batch)
        code = trace.run_traced(batch, case.role, options, every_thread=case.sticky, mutate=trace.name_parts)
        found = violations(batch)
        found += _wrong_end(batch, case, code)
        found += completed(batch)
        found += traceback_in(batch)
        return Found(case, code, found)


def _wrong_end(batch: Batch, case: Case, code: int | None) -> list[str]:
    done = batch.counts() == {"done": JOBS}
    if code is None or (code == 0 and done) or (code == -9 and case.what == "KILL"):
        return []
    if code == 0:
        return [f"exit 0 with work undone: {dict(batch.counts())}"]
    if case.what == "KILL" and case.role == "reader" and code == Exit.BUG and not batch.charges():
        return []  # the run says that its reader was killed
    if case.what == "KILL" or code not in (DISK, *AT_START):
        return [f"exit {code}: {last_words(batch)}"]
    if code in AT_START and batch.charges():
        return [f"exit {code} after something was sent: {last_words(batch)}"]
    return []


def _is_of_files(call: str, what: str) -> bool:
    """Tell whether a fault is to meet files alone: a kill may come anywhere, a full disk not on a socket."""
    return call == "write" and what != "KILL"


def points(gateway: str, log: Path, width: str, calls: tuple[str, ...], what: str) -> Iterator[Case]:
    """Count the calls of an undisturbed batch; yield a case for each, and one more of each kind."""
    with scratch("count") as folder:
        for role in trace.ROLES:

            def batch(name: str, role: str = role) -> Batch:
                place = folder / f"count-{role}-{name}"
                return Batch(place, jobs=JOBS, gateway=gateway, log=log, options=("-c", width))

            of_files = tuple(call for call in calls if _is_of_files(call, what))
            found = trace.counted(batch("all"), role, tuple(call for call in calls if call not in of_files))
            if of_files:
                found += trace.counted(batch("files"), role, of_files, files=True)
            for call, count in sorted(found.items()):
                for number in range(1, count + 2):
                    yield Case(role, call, number, what, width=width, gateway=gateway, log=str(log))


def run_sys(tier: str) -> Figures:
    """SIGKILL at every call."""
    return _run(tier, trace.DISK_CALLS + trace.NET_CALLS, "KILL", lambda case: [case])


def run_err(tier: str) -> Figures:
    """EIO and ENOSPC at every call to the disk; of the many writes of the state, in tier A, every fifth."""

    def faults(case: Case) -> list[Case]:
        if tier == "a" and case.call == "pwrite64" and case.number % 5:
            return []
        return [replace(case, what=what, sticky=sticky) for what in ("EIO", "ENOSPC") for sticky in (False, True)]

    return _run(tier, trace.DISK_CALLS, "EIO", faults)


def _run(tier: str, calls: tuple[str, ...], what: str, faults: Callable[[Case], list[Case]]) -> Figures:
    figures, why = Figures(), trace.missing()
    if why:
        figures.counts[f"left out: {why}"] = 1
        return figures
    with scratch("server") as folder, trace.server(folder / "sandbox") as (gateway, log):
        cases = [
            fault
            for width in _WIDTHS[tier]
            for one in points(gateway, log, width, calls, what)
            for fault in faults(one)
        ]
        codes: Counter[str] = Counter()
        for found in process.streams(strike, cases):
            codes[_end(found.code)] += 1
            figures.violations += [f"{text}; {replay('syscalls', found.case)}" for text in found.violations]
    figures.counts.update(points=len(cases), **codes)
    return figures


def _end(code: int | None) -> str:
    return "not reached" if code is None else "killed" if code == -9 else f"exit {code}"


if __name__ == "__main__":
    process.preload()
    for text in sys.argv[1:]:
        with scratch("server") as place, trace.server(place / "sandbox") as (url, charges):
            print(strike(replace(Case.parse(text), gateway=url, log=str(charges))))
