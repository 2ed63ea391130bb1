"""T-order: what one run really asked of the system, in its order.

    SENDING written < synced < the POST's first byte < its answer written < synced < the image asked for
    < part synced < linked < folder synced < DONE written < synced

strace writes the calls of all threads down as they begin and end; one job at a time keeps the story single.
The same record must convict a program that leaves any of these syncs out.
"""

import re
import sys
from collections.abc import Callable

from banana_batch.models import FetchFailed

from . import trace
from .harness import Batch, replay, scratch
from .power import parts_unsynced, state_unsynced
from .process import preload
from .suite import Figures, Suite

_CALLS = "pwrite64,write,fsync,fdatasync,linkat"
_LINE = re.compile(r"^\d+ +(?:<\.\.\. (?P<resumed>\w+) resumed>|(?P<call>\w+)\()(?P<rest>.*)$")


def _folder_unsynced() -> None:
    """The folder is not synced after an image got its name."""
    from banana_batch.images.committer import Committer

    def nothing(touched: set[int]) -> dict[int, FetchFailed]:
        return {}

    Committer._sync_folders = staticmethod(nothing)  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None] | None] = {
    "none": None,
    "state not synced": state_unsynced,
    "part not synced": parts_unsynced,
    "folder not synced": _folder_unsynced,
}


def events(record: str) -> list[str]:
    """Return the calls that matter, in order: `wal+` written, `wal` synced, `post`, `get`, `part`, `link`, `folder`.

    A sync counts when it ends, all else when it begins.
    """
    found: list[str] = []
    begun: dict[str, str] = {}
    for line in record.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        thread, call, rest = line.split(None, 1)[0], match["call"], match["rest"]
        if call is None:
            found += filter(None, [begun.pop(thread, "")])
            continue
        name = _name(call, rest)
        if not name:
            continue
        if call in ("fsync", "fdatasync") and "<unfinished" in rest:
            begun[thread] = name
        else:
            found.append(name)
    return found


def _name(call: str, rest: str) -> str:
    target = rest.split(",", maxsplit=1)[0]
    if call == "write" and "<socket:" in target:
        return "post" if '"POST ' in rest else "get" if '"GET ' in rest else ""
    if call == "linkat":
        return "link"
    if "state.sqlite3-wal>" in target:
        return "wal" if call.endswith("sync") else "wal+"
    if call == "fsync" and ".part>" in target and "/images/." in target:
        return "part"
    return "folder" if call == "fsync" and "/images>" in target else ""


def broken(order: list[str]) -> list[str]:
    """Return each link of the chain that does not hold for a batch of one job."""
    try:
        post, get, link = order.index("post"), order.index("get"), order.index("link")
    except ValueError as absent:
        return [f"the record is not that of a batch: {absent}"]
    done = next((at for at in range(link, len(order)) if order[at] == "wal+"), len(order))
    rules = {
        "SENDING was not durable when the POST left": _durable(order[:post]),
        "the answer was not durable when its image was asked for": _durable(order[post:get]),
        "the part was not synced when it got its name": "part" in order[get:link],
        "the folder was not synced when DONE was written": "folder" in order[link:done],
        "DONE was not synced": "wal" in order[done:],
    }
    return [rule for rule, holds in rules.items() if not holds]


def _durable(order: list[str]) -> bool:
    """Tell whether the state was written, and synced after its last write."""
    of_state = [name for name in order if name.startswith("wal")]
    return "wal+" in of_state and of_state[-1] == "wal"


def observe(mutant: str) -> list[str]:
    """Run one batch of one job; return what does not hold."""
    with scratch("order") as folder, trace.server(folder / "sandbox") as (gateway, log):
        batch = Batch(folder / "order", jobs=1, gateway=gateway, log=log)
        record = folder / "record"
        options = ["-y", "-s", "16", "-o", str(record), "-e", f"trace={_CALLS}"]
        code = trace.run_traced(batch, "main", options, every_thread=True, mutate=MUTANTS[mutant])
        return broken(events(record.read_text(errors="replace"))) + ([f"exit {code}"] if code else [])


def run_order(tier: str) -> Figures:
    """Hold the real program to the order, then each mutant."""
    figures, why = Figures(), trace.missing()
    if why:
        figures.counts[f"left out: {why}"] = 1
        return figures
    preload()
    runs = {"a": 3, "b": 30}[tier]
    for _ in range(runs):
        figures.violations += [f"{text}; {replay('order', 'none')}" for text in observe("none")]
    for mutant in MUTANTS.keys() - {"none"}:
        found = observe(mutant)
        figures.counts[f"mutant '{mutant}'"] = found[0] if found else "not caught"
        if not found:
            figures.violations.append(f"the mutant {mutant!r} was not caught; {replay('order', repr(mutant))}")
    figures.counts["runs"] = runs
    return figures


SUITE = Suite("T-order", run_order)

if __name__ == "__main__":
    preload()
    for wanted in sys.argv[1:]:
        print(wanted, observe(wanted))
