"""A million rows: planning, starting, looking, going on; and how fast a command starts.

The state of a batch with everything done is made by statements of its own, along the table of states: buying a
million images would take an hour and measure nothing else.
"""

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .measure import Taken, endpoint, taken
from .workloads import write_manifest

START_S = 0.5  # of a command, however few its rows

_DONE = (
    "UPDATE attempts SET outcome = 'not_sent' WHERE outcome = 'sending'",
    "UPDATE jobs SET state = 'pending' WHERE state = 'sending'",
    (
        "INSERT INTO attempts (attempt, job, run, kind, reserved, ceiling, sent_us)"
        " SELECT job + 1000000, job, 1, kind, 2000000, 0, job FROM jobs"
    ),
    "UPDATE jobs SET state = 'sending', attempts = 1, attempt = job + 1000000",
    (
        "UPDATE attempts SET outcome = 'paid', credits = 2000000, latency_s = 12.5, status = 200, class = 'ok',"
        " message = 'success', settled_by = 'answer', answer = CAST(printf('%-280s', 'answer') AS BLOB)"
        " WHERE outcome = 'sending'"
    ),
    "UPDATE jobs SET state = 'paid'",
    (
        "INSERT INTO images (job, attempt, image_url, path, bytes, sha256, width, height, content_type, done_us)"
        " SELECT job, attempt, 'https://cdn.example.com/' || hex(randomblob(16)) || '.png', stem, 1500000,"
        " randomblob(32), 1376, 768, 'image/png', job FROM jobs"
    ),
    "UPDATE jobs SET state = 'done'",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside what is promised; `ok` None: nothing is."""

    name: str
    what: str
    value: float
    unit: str
    must: str = ""
    ok: bool | None = None


def at_most(name: str, what: str, value: float, limit: float, unit: str) -> Figure:
    """Return a figure with an upper limit."""
    return Figure(name, what, value, unit, f"≤ {limit:g} {unit}", value <= limit)


def scale(folder: Path, rows: int) -> Iterator[Figure]:
    """Measure W4. Limits are for a million rows; with fewer, those that grow with rows are scaled down."""
    part = rows / 1_000_000

    def limit_s(whole_s: float) -> float:
        return whole_s * part + START_S * (1 - part)

    manifest = write_manifest(folder / "rows.jsonl", rows)
    out = folder / "scale"
    run = [sys.executable, "-m", "banana_batch", "run", str(manifest), "-o", str(out), "-y", "-q", "-c", "64"]
    planned = taken([sys.executable, "-m", "banana_batch", "plan", str(manifest), "-o", str(out), "-q"])
    yield at_most("W4", f"plan {rows:,} rows", _whole(planned).wall_s, limit_s(20), "s")
    yield at_most("W4", "peak memory of plan", planned.peak_rss_bytes / 1e6, 150, "MB")
    with endpoint("--latency=30") as server:
        begun = taken([*run, "--base-url", server.base_url], server, until_first_call=True)
    yield at_most("W4", f"first paid call of {rows:,} rows", begun.wall_s, limit_s(20), "s")
    yield at_most("W4", "peak memory until then", begun.peak_rss_bytes / 1e6, 150, "MB")
    yield at_most("W4", "state, bytes a pending job", _state_bytes(out) / rows, 500, "B")
    _finish(out)
    yield at_most("W4", "state, bytes a done job", _state_bytes(out) / rows, 1500, "B")
    looked = [taken([sys.executable, "-m", "banana_batch", "status", str(out)]) for _ in range(3)]
    yield at_most("W4", f"status of {rows:,} jobs", median(_whole(look).wall_s for look in looked), 0.3, "s")
    with endpoint() as server:
        first = taken([*run, "--base-url", server.base_url], server)
        again = taken([*run, "--base-url", server.base_url], server)
        assert not server.stats()["generated"], "a job that was done was sent again"
    yield Figure("W4", "first run after it (writes the results)", _whole(first).wall_s, "s")
    yield at_most("W4", f"re-run of {rows:,} done jobs", _whole(again).wall_s, limit_s(5), "s")


def start(folder: Path) -> Iterator[Figure]:
    """Measure W5: CPU time, as the wall's is the machine's."""
    manifest = write_manifest(folder / "few.jsonl", 5)
    out = folder / "few"
    with endpoint() as server:
        made = taken(
            [sys.executable, "-m", "banana_batch", "run", str(manifest), "-o", str(out), "-q", "-y",
             "--base-url", server.base_url], server,
        )  # fmt: skip
    _whole(made)
    commands = {
        "import asyncio": [sys.executable, "-c", "import asyncio"],
        "--version": [sys.executable, "-m", "banana_batch", "--version"],
        "status": [sys.executable, "-m", "banana_batch", "status", str(out)],
    }
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(9):
        for name, command in commands.items():
            cpu[name].append(taken(command).cpu_s)
    base = median(cpu["import asyncio"])
    yield at_most("W5", "--version, × import asyncio", median(cpu["--version"]) / base, 3.5, "×")
    yield at_most("W5", "status, × import asyncio", median(cpu["status"]) / base, 5, "×")


def steady(folder: Path, jobs: int) -> Iterator[Figure]:
    """Measure W6: the last jobs go as fast as the first, and memory does not grow with them."""
    manifest = write_manifest(folder / "many.jsonl", jobs)
    out = folder / "many"
    with endpoint("--image-bytes=1000") as server:
        run = taken(
            [sys.executable, "-m", "banana_batch", "run", str(manifest), "-o", str(out), "-q", "-y", "-c", "64",
             "--base-url", server.base_url], server,
        )  # fmt: skip
    ended_s = time.time()
    with contextlib.closing(sqlite3.connect(out / "state.sqlite3")) as db:
        done_us = [row[0] for row in db.execute("SELECT done_us FROM images ORDER BY done_us")]
        (sent_us,) = db.execute("SELECT max(sent_us) FROM attempts").fetchone()
    closing_s = ended_s - sent_us / 1e6
    tenth = len(done_us) // 10
    first, last = done_us[tenth] - done_us[0], done_us[-1] - done_us[-1 - tenth]
    yield Figure("W6", f"{jobs:,} jobs", jobs / _whole(run).wall_s, "jobs/s")
    yield Figure("W6", "last tenth ÷ first tenth", first / last, "×", "≥ 0.95 ×", first / last >= 0.95)
    # While calls leave: not until caches are full, and not while the results of all are written, from the last call on.
    working = [(at_s, size) for at_s, size in run.rss if run.wall_s / 5 < at_s < run.wall_s - closing_s]
    grown = _slope(working) * (run.wall_s - closing_s) / jobs * 1000
    yield at_most("W6", "memory a 1,000 jobs", grown / 1024, 1, "KiB")


def _slope(points: list[tuple[float, int]]) -> float:
    """Return the slope of the line through points, by least squares."""
    middle_x, middle_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return float(sum((x - middle_x) * (y - middle_y) for x, y in points) / spread)


def _whole(run: Taken) -> Taken:
    assert run.exit == 0, run.output[-2000:]
    return run


def _state_bytes(out: Path) -> int:
    return sum(file.stat().st_size for file in out.glob("state.sqlite3*"))


def _finish(out: Path) -> None:
    """Make every job done."""
    with contextlib.closing(sqlite3.connect(out / "state.sqlite3", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        for statement in _DONE:
            db.execute(statement)
        db.execute("UPDATE runs SET ended_us = 1, exit = 0, reason = 'done'")
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    subprocess.run(["sync"], check=True)
