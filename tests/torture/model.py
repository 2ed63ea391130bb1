"""T-model: every state that a crash may leave, by the weakest reading of POSIX.

The steps are those of a real run (recorder.py). A crash may come before, during or after each of them; of what was
not synced, any part may survive without the rest: each write of a file, each entry of a folder. A commit is durable
when it returns, as WAL with synchronous=FULL has it (both are read back by the program itself).

In each of these states:
    whole      a name in images/ that does not start with a dot is a whole image
    done       a job that is done has its image under its name
    sent       a request that left has its attempt, in a state file that is found under its name
    told       what the program was told is durable, is durable

    python -m tests.torture.model       prints the steps, and what each left-out sync would break
"""

import contextlib
import itertools
import os
import sqlite3
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import async_solipsism

from banana_batch.images.recovery import adopt, remove_parts
from banana_batch.images.verify import Whole, examine
from banana_batch.store.handout import paid_images
from tests.torture.recorder import Op, Recorder
from tests.torture.suite import Figures, Suite
from tests.torture.weather import Night
from tests.torture.witness import Witness
from tests.torture.world import World

JOBS = 2
_ORDER = ("pending", "sending", "paid", "done")


@dataclass
class Trace:
    """The relevant steps of one run, and what the names in them mean."""

    ops: list[Op]
    out: int
    images: int
    finals: dict[int, str]
    data: dict[int, int] = field(default_factory=dict)

    def sites(self) -> list[str]:
        """Return where the program syncs."""
        return sorted({op.site for op in self.ops if op.kind == "sync"})


def calm(jobs: int) -> Night:
    """Return a night in which nothing happens."""
    return Night(
        seed=1, jobs=jobs, concurrency=1, median_s=1.0, rate_limit=None, queue_limit=None, shares=(), spells=(),
        cuts_s=(), prices=(), balance=None, budget=None, raises=False, deaths=(), drains_s=(), stop_by_s=None,
        in_doubt="keep", download_wait_s=60.0,
    )  # fmt: skip


def record(folder: Path, *, streamed: bool) -> Trace:
    """Run two jobs for real, and note each step.

    Args:
        streamed: Images go through a part on the disk, as large ones do.
    """
    world = World(calm(JOBS), folder)
    recorder = Recorder(world.out)
    committed = Witness.committed

    def noted(witness: Witness, db: sqlite3.Connection) -> None:
        committed(witness, db)
        states = tuple(sorted(witness.states.items()))
        last = next((op.states for op in reversed(recorder.ops) if op.kind == "commit"), ())
        if states != last:
            recorder.note("commit", states=states)

    def received(_sandbox: object, call: object) -> None:
        recorder.note("send", job=world.indices[call.order.prompt])  # type: ignore[attr-defined]

    async def night() -> None:
        async with world.sandbox() as sandbox:
            sandbox.follow(lambda call: received(sandbox, call))
            with recorder.recording():
                await world.one_run(None, stop_by=False)

    loop = async_solipsism.EventLoop()
    large = patch("banana_batch.images.bodies.SMALL_BYTES", 100 if streamed else 1 << 20)
    try:
        with world.inside(), patch.object(Witness, "committed", noted), large:
            loop.run_until_complete(night())
    finally:
        loop.close()
    assert not world.broken, world.broken
    assert not world.witness.broken, world.witness.broken
    return _trace(world, recorder.ops)


def _trace(world: World, ops: Sequence[Op]) -> Trace:
    out, images = world.out.stat().st_ino, (world.out / "images").stat().st_ino
    with contextlib.closing(sqlite3.connect(world.out / "state.sqlite3")) as db:
        finals = {job: os.path.basename(path) for job, path in db.execute("SELECT job, path FROM images")}
    names = {"state.sqlite3", "images", world.out.name}
    folders = {out, images, world.folder.stat().st_ino}
    ours = {op.inode for op in ops if op.folder == images} | folders
    kept = [
        op
        for op in ops
        if not op.site.startswith("report/")  # it comes last and is made again by any run: it must not help out here
        and (
            op.kind in ("commit", "send")
            or (op.kind in ("data", "sync") and op.inode in ours)
            or (op.folder == images)
            or (op.folder in folders and (op.entry in names or op.to[1] in names))
        )
    ]
    trace = Trace(kept, out, images, finals)
    for op in kept:
        if op.kind == "data":
            trace.data[op.inode] = trace.data.get(op.inode, 0) + 1
    unseen = [op.entry for op in kept if op.folder == images and op.kind == "name" and op.inode not in trace.data]
    assert not unseen, f"{unseen}: written by a call that the recorder does not know"
    return trace


@dataclass
class Disk:
    """What a crash left.

    Attributes:
        entries: By folder, each entry's inode.
        data: Writes that survived, by inode.
        states: Of the jobs, by the last commit that survived; empty: none did.
    """

    entries: dict[int, dict[str, int]]
    data: dict[int, int]
    states: dict[int, str]


def crashes(trace: Trace) -> Iterator[tuple[int, Disk]]:
    """Yield each state that may be left, with the number of steps that were finished."""
    seen = set()
    for done in range(len(trace.ops) + 1):
        sure, open_ = _durable(trace.ops, done)
        for count in range(len(open_) + 1):
            for lucky in itertools.combinations(open_, count):
                survived = sorted({*sure, *lucky})
                told = _told(trace.ops, done)
                key = (tuple(survived), told)
                if key not in seen:
                    seen.add(key)
                    yield done, _disk(trace.ops, survived)


def _durable(ops: Sequence[Op], done: int) -> tuple[list[int], list[int]]:
    """Split the effects of the first `done` steps, and of the one under way, into durable ones and open ones."""
    sure: list[int] = []
    open_: list[int] = []
    synced: dict[int, int] = {}
    for place in range(done):
        if ops[place].kind == "sync":
            synced[ops[place].inode] = place
    commits = [place for place in range(done) if ops[place].kind == "commit"]
    last = max((place for place in commits if ops[place].site != "unsynced"), default=-1)
    for place in range(min(done + 1, len(ops))):
        op = ops[place]
        if op.kind in ("sync", "send"):
            continue
        if op.kind == "commit":
            durable = place <= last
        elif op.kind == "data":
            durable = place < synced.get(op.inode, -1)
        else:
            durable = all(place < synced.get(folder, -1) for folder in {op.folder, op.to[0] or op.folder})
        (sure if durable and place < done else open_).append(place)
    return sure, open_


def _told(ops: Sequence[Op], done: int) -> int:
    return sum(op.kind in ("commit", "send") for op in ops[:done])


def _disk(ops: Sequence[Op], survived: Sequence[int]) -> Disk:
    disk = Disk(defaultdict(dict), defaultdict(int), {})
    for place in survived:
        op = ops[place]
        if op.kind == "name":
            disk.entries[op.folder][op.entry] = op.inode
        elif op.kind == "unname":
            disk.entries[op.folder].pop(op.entry, None)
        elif op.kind == "rename":
            disk.entries[op.folder].pop(op.entry, None)
            disk.entries[op.to[0]][op.to[1]] = op.inode
        elif op.kind == "data":
            disk.data[op.inode] += 1
        else:
            # A WAL is read up to its first hole: a commit survives with all before it, or not at all.
            disk.states = dict(op.states)
    return disk


def broken(trace: Trace, done: int, disk: Disk) -> str | None:
    """Return the promise that a state breaks; None if it keeps all."""
    found = "state.sqlite3" in disk.entries[trace.out] and _reached(trace, disk)
    images = disk.entries[trace.images] if "images" in disk.entries[trace.out] and found else {}
    for name, inode in images.items():
        if not name.startswith(".") and disk.data[inode] < trace.data.get(inode, 0):
            return f"whole: {name} is there, and not whole"
    for job, state in disk.states.items():
        if state == "done" and found and trace.finals[job] not in images:
            return f"done: job {job} is done, and its image is not there"
    for op in trace.ops[:done]:
        if op.kind == "send" and (not found or _rank(disk, op.job) < _ORDER.index("sending")):
            return f"sent: job {op.job} was sent, and nothing says so"
        if op.kind == "commit" and any(_rank(disk, job) < _ORDER.index(state) for job, state in op.states):
            return "told: a commit that returned is gone"
    return None


def _reached(trace: Trace, disk: Disk) -> bool:
    """Whether the output folder itself is there."""
    return any(trace.out in entries.values() for folder, entries in disk.entries.items() if folder != trace.images)


def _rank(disk: Disk, job: int) -> int:
    return _ORDER.index(disk.states.get(job, "pending"))


def first_broken(trace: Trace) -> str | None:
    """Return what breaks first; None if no crash breaks anything."""
    for done, disk in crashes(trace):
        found = broken(trace, done, disk)
        if found:
            return f"after step {done}: {found}"
    return None


def mutants(trace: Trace) -> Iterator[tuple[str, Trace]]:
    """Yield the trace with each sync left out, each made too late, each kind of commit not synced, sends too early."""
    yield "send before its commit", replace(trace, ops=_early_sends(trace.ops))
    for site in trace.sites():
        yield f"without {site}", replace(trace, ops=[op for op in trace.ops if (op.kind, op.site) != ("sync", site)])
        yield f"late {site}", replace(trace, ops=_later(trace.ops, site))
    for state in _ORDER[1:]:
        ops = [replace(op, site="unsynced") if _leads_to(trace.ops, place, state) else op
               for place, op in enumerate(trace.ops)]  # fmt: skip
        yield f"commit of {state} not synced", replace(trace, ops=ops)


def _later(ops: Sequence[Op], site: str) -> list[Op]:
    """Move each sync of a site behind the next commit that says that an image is done."""
    moved: list[Op] = []
    held: list[Op] = []
    for place, op in enumerate(ops):
        if (op.kind, op.site) == ("sync", site):
            held.append(op)
            continue
        moved.append(op)
        if _leads_to(ops, place, "done"):
            moved += held
            held = []
    return moved + held


def _early_sends(ops: Sequence[Op]) -> list[Op]:
    moved: list[Op] = []
    for op in ops:
        moved.insert(len(moved) - (op.kind == "send"), op)
    return moved


def _leads_to(ops: Sequence[Op], place: int, state: str) -> bool:
    if ops[place].kind != "commit":
        return False
    before = next((op.states for op in reversed(ops[:place]) if op.kind == "commit"), ())
    return any(now == state and dict(before).get(job) != state for job, now in ops[place].states)


def recover(trace: Trace, disk: Disk, world: Path, body: bytes) -> str | None:
    """Build `images/` as a crash left it, let the real recovery at it, and look."""
    with tempfile.TemporaryDirectory(dir=world) as folder:
        out = Path(folder)
        (out / "images").mkdir()
        for name, inode in disk.entries[trace.images].items():
            whole = disk.data[inode] >= trace.data.get(inode, 0)
            (out / "images" / name).write_bytes(body if whole else body[: len(body) // 2])
        remove_parts(out)
        with contextlib.closing(sqlite3.connect(world / "out" / "state.sqlite3")) as db:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")
            db.execute("UPDATE jobs SET state = 'paid' WHERE state = 'done'")
            for image, known_sha256 in list(paid_images(db)):
                adopt(out, image, known_sha256)
            db.execute("ROLLBACK")
        for file in (out / "images").iterdir():
            if not isinstance(examine(file.read_bytes()), Whole):
                return f"recovery left {file.name}, which is no whole image"
    return None


def run(tier: str) -> Figures:  # the same in each tier: it is complete
    """Record, enumerate, recover; then show that each sync is needed."""
    figures = Figures(counts={"steps": 0, "states": 0, "recovered": 0, "mutants": 0, "caught": 0})
    for streamed in (False, True):
        with tempfile.TemporaryDirectory(prefix="model-") as folder:
            _check(figures, Path(folder), streamed=streamed)
    return figures


def _count(figures: Figures, name: str, by: int = 1) -> None:
    figures.counts[name] = int(figures.counts[name]) + by


def _check(figures: Figures, folder: Path, *, streamed: bool) -> None:
    trace = record(folder, streamed=streamed)
    body = next((folder / "out" / "images").iterdir()).read_bytes()
    tried = set()
    _count(figures, "steps", len(trace.ops))
    for done, disk in crashes(trace):
        _count(figures, "states")
        found = broken(trace, done, disk)
        picture = repr((disk.entries[trace.images], dict(disk.data)))
        if found is None and picture not in tried:
            tried.add(picture)
            _count(figures, "recovered")
            found = recover(trace, disk, folder, body)
        if found:
            figures.violations.append(f"after step {done}: {found}  [python -m tests.torture.model]")
    for name, mutant in mutants(trace):
        _count(figures, "mutants")
        caught = first_broken(mutant)
        if caught:
            _count(figures, "caught")
        else:
            figures.violations.append(f"{name}: nothing breaks, so it is not needed or not seen")


SUITE = Suite("T-model", run)


def main() -> int:
    """Print the steps and what each mutant breaks."""
    for streamed in (False, True):
        with tempfile.TemporaryDirectory(prefix="model-") as folder:
            trace = record(Path(folder), streamed=streamed)
            for place, op in enumerate(trace.ops):
                print(place, op.kind, op.entry or op.inode, op.to[1], op.site, op.states or op.job or "")
            print("first broken:", first_broken(trace))
            for name, mutant in mutants(trace):
                print(f"{name}: {first_broken(mutant)}")
    figures = run("a")
    print(figures.counts, *figures.violations, sep="\n")
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
