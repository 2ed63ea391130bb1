"""A small batch, its runs, and what must hold of it at every instant: after each kill, cut and fault.

Rule: the endpoint's own charge log is the truth. The state is read from a copy, so that looking repairs nothing.
"""

import re
import shutil
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from banana_batch.images.verify import Whole, examine
from banana_batch.money import MICRO
from banana_batch.sandbox.charges import LOG_NAME, Charge, parse_line
from banana_batch.store.queries import sums_agree

from . import process

FINISHED = {0: "done", 4: "in doubt"}
_BOUGHT = ("paid", "unpriced", "charged")
_OPEN = ("sending", "doubt")
_NOTHING_CAME_OF_IT = ("not_sent", "refused", "not_charged")
_SOLD_AS = re.compile(rb"(.{4})tEXtComment\0([0-9a-f]+)", re.DOTALL)


@dataclass(slots=True)
class Batch:
    """One batch in a folder of its own.

    Attributes:
        folder: Holds manifest, output folder and what the runs said; made anew.
        gateway: Of a sandbox that runs by itself; None: the batch's own, embedded.
        log: Where the charge log is; `since` is the offset of this batch's first line.
        options: Further arguments of each run.
        out: The output folder; None: beside the manifest.
    """

    folder: Path
    jobs: int = 6
    gateway: str | None = None
    log: Path | None = None
    since: int = 0
    options: tuple[str, ...] = ()
    out: Path = field(default=None)  # type: ignore[assignment]
    prompts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Write the manifest."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.out = self.out or self.folder / "out"
        self.prompts = [f"{self.folder.name} picture {number}" for number in range(1, self.jobs + 1)]
        (self.folder / "jobs.txt").write_text("".join(f"{prompt}\n" for prompt in self.prompts), encoding="utf-8")
        if self.log is None:
            self.log = self.out / "sandbox" / LOG_NAME

    @property
    def said(self) -> Path:
        """What the runs printed."""
        return self.folder / "said"

    def arguments(self, *further: str) -> list[str]:
        """Return the command line of a run."""
        side = ["--sandbox"] if self.gateway is None else ["--base-url", self.gateway]
        manifest = str(self.folder / "jobs.txt")
        return ["run", manifest, "-o", str(self.out), "--no-progress", *side, *self.options, *further]

    def run(self, *further: str, **options: Any) -> int:
        """Run it to its end; return the exit code."""
        return process.run(self.arguments(*further), self.said, **options)

    def charges(self) -> list[Charge]:
        """Return what the endpoint charged for this batch."""
        assert self.log is not None
        try:
            with self.log.open("rb") as log:
                log.seek(self.since)
                data = log.read()
        except FileNotFoundError:
            return []
        mine = set(self.prompts)
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        return [charge for charge in map(parse_line, lines) if charge.prompt in mine]

    @contextmanager
    def state(self) -> Iterator[sqlite3.Connection | None]:
        """Open a copy of the state as it lies on disk, its log included; None where there is none."""
        with tempfile.TemporaryDirectory(dir=self.folder) as copy:
            for name in ("state.sqlite3", "state.sqlite3-wal"):
                if (self.out / name).exists():
                    shutil.copy(self.out / name, copy)
            path = Path(copy) / "state.sqlite3"
            if not path.exists():
                yield None
                return
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                yield db

    def counts(self) -> Counter[str]:
        """Return how many jobs are in each state."""
        with self.state() as db:
            return Counter() if db is None else Counter(dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY 1")))


def violations(batch: Batch, *, resent: bool = False) -> list[str]:
    """Return each promise that does not hold now.

    Args:
        resent: The user let jobs in doubt be sent again in one of the runs.
    """
    charges = batch.charges()
    with batch.state() as db:
        if db is None:
            found = [f"{len(charges)} charges and no state"] if charges else []
            return found + [f"{path} without a state" for path in _final_names(batch)]
        broken = [str(row[0]) for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        if broken:
            return [f"the state is damaged: {broken[0]}"]
        return [
            *_never_twice(db, charges, resent=resent),
            *_images(db, batch, charges),
            *_ledger(db, charges),
        ]  # fmt: skip


def _never_twice(db: sqlite3.Connection, charges: Iterable[Charge], *, resent: bool) -> Iterator[str]:
    bought: defaultdict[str, list[Charge]] = defaultdict(list)
    for charge in charges:
        bought[charge.prompt].append(charge)
    sent: defaultdict[int, list[sqlite3.Row]] = defaultdict(list)
    for row in db.execute("SELECT * FROM attempts ORDER BY attempt"):
        sent[row["job"]].append(row)
    known = set()
    for job in db.execute("SELECT job, state, json_extract(request, '$.prompt') AS prompt FROM jobs"):
        known.add(job["prompt"])
        attempts, charged = sent[job["job"]], bought[job["prompt"]]
        outcomes = [attempt["outcome"] for attempt in attempts]
        name = f"job {job['job']} ({job['state']}, attempts {' '.join(outcomes) or 'none'})"
        least = sum(outcome in _BOUGHT for outcome in outcomes)
        most = least + sum(outcome in _OPEN for outcome in outcomes)
        if not least <= len(charged) <= most:
            yield f"{name}: charged {len(charged)} times, the ledger allows {least} to {most}"
        again = (*_NOTHING_CAME_OF_IT, "doubt", "charged") if resent else _NOTHING_CAME_OF_IT
        if any(outcome not in again for outcome in outcomes[:-1]):
            yield f"{name}: sent again without need"
        prices = Counter(charge.credits for charge in charged)
        if Counter(row["credits"] for row in attempts if row["outcome"] == "paid") - prices:
            yield f"{name}: the ledger has another price than the endpoint"
    for prompt in bought.keys() - known:
        yield f"{prompt!r} was charged and is no job"


def _images(db: sqlite3.Connection, batch: Batch, charges: Iterable[Charge]) -> Iterator[str]:
    sold = {charge.image: charge for charge in charges}
    rows = db.execute(
        "SELECT job, state, path, sha256, bytes, json_extract(request, '$.prompt') AS prompt"
        " FROM jobs LEFT JOIN images USING (job)"
    ).fetchall()
    stems = {row["prompt"]: f"{row['job']:05d}-" for row in rows}
    files = {str(path.relative_to(batch.out)): path for path in _final_names(batch)}
    for name, path in files.items():
        content = path.read_bytes()
        charge = sold.get(_sold_as(content))
        if not isinstance(examine(content), Whole):
            yield f"{name} is no whole image ({len(content)} bytes)"
        elif charge is None or not path.name.startswith(stems[charge.prompt]):
            yield f"{name} holds another picture"
    for row in rows:
        if row["state"] != "done":
            continue
        if row["path"] not in files:
            yield f"job {row['job']} is done and {row['path']} is missing"
        elif _sha256(files[row["path"]]) != row["sha256"]:
            yield f"job {row['job']} is done and {row['path']} has changed"
    for folder in ("damaged", "conflicts"):
        if any((batch.out / folder).glob("*")):
            yield f"{folder}/ holds something"


def _sold_as(content: bytes) -> str:
    """Return the name under which a plain picture was sold: it stands in the picture."""
    mark = _SOLD_AS.search(content)
    return mark[2][: int.from_bytes(mark[1], "big") - len("Comment\0")].decode() if mark else ""


def _final_names(batch: Batch) -> list[Path]:
    found = (batch.out / "images").rglob("*")
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def _sha256(path: Path) -> bytes:
    import hashlib

    return hashlib.sha256(path.read_bytes()).digest()


def _ledger(db: sqlite3.Connection, charges: list[Charge]) -> Iterator[str]:
    """Settle each doubt as the charge log says, and hold the ledger against it. The copy is used up by this."""
    if not sums_agree(db):
        yield "the kept sums are not those of the attempts"
    left = Counter(charge.prompt for charge in charges)
    prices = {charge.prompt: charge.credits for charge in charges}
    rows = db.execute(
        "SELECT attempts.attempt, outcome, json_extract(request, '$.prompt') AS prompt FROM attempts JOIN jobs USING (job)"
    ).fetchall()
    left.subtract(row["prompt"] for row in rows if row["outcome"] in _BOUGHT)
    for row in rows:
        if row["outcome"] not in _OPEN:
            continue
        if row["outcome"] == "sending":
            db.execute("UPDATE attempts SET outcome = 'doubt' WHERE attempt = ?", (row["attempt"],))
        charged = left[row["prompt"]] > 0
        left[row["prompt"]] -= charged
        db.execute(
            "UPDATE attempts SET outcome = ?, credits = ? WHERE attempt = ?",
            ("charged" if charged else "not_charged", prices[row["prompt"]] if charged else None, row["attempt"]),
        )
    total = sum(charge.credits for charge in charges)
    spent, at_risk, reserved = db.execute("SELECT sum(spent), sum(at_risk), sum(reserved) FROM runs").fetchone()
    if (spent or 0) != total or at_risk or reserved or not sums_agree(db):
        yield (
            f"resolved, the ledger says {(spent or 0) / MICRO:g} spent, {(at_risk or 0) / MICRO:g} at risk,"
            f" {(reserved or 0) / MICRO:g} reserved; the endpoint charged {total / MICRO:g}"
        )


def completed(batch: Batch, *, resent: bool = False, **options: Any) -> list[str]:
    """Go on with a batch that was stopped by force, to its end; return what does not hold on the way.

    First by itself: doubts stay; then with the user's word: everything is done.
    """
    code = batch.run(**options)
    found = violations(batch, resent=resent)
    if code not in FINISHED:
        return [*found, f"resumed: exit {code} instead of 0 or 4: {last_words(batch)}"]
    if code == 4:
        code = batch.run("--in-doubt", "resend", **options)
        found += violations(batch, resent=True)
        if code != 0:
            found.append(f"sent again: exit {code} instead of 0: {last_words(batch)}")
    counts = batch.counts()
    if counts != {"done": batch.jobs}:
        found.append(f"at the end: {dict(counts)}")
    return found


def last_words(batch: Batch, count: int = 3) -> str:
    """Return what the runs said of trouble, or the last lines that they printed."""
    lines = []
    for path in (batch.out / "run.log", batch.said):
        if path.exists():
            lines += path.read_text(errors="replace").splitlines()
    trouble = [line for line in lines if "banana-batch: " in line or '"event":"stop"' in line or "a bug" in line]
    return " | ".join((trouble or lines)[-count:])


def traceback_in(batch: Batch) -> list[str]:
    """Return a violation if a run printed a traceback."""
    return ["a traceback was printed"] if "Traceback" in batch.said.read_text(errors="replace") else []


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Yield a folder for a suite, in memory where the system has such; removed at the end."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix=f"banana-{name}-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def replay(module: str, case: object) -> str:
    """Return the command line that does one case again."""
    return f"python -m tests.torture.{module} {case}"
