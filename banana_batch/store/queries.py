"""What people ask of a batch. Reads only; works while a run is live, never waits for it.

Rule: each query is bounded by an index or by what it returns; none walks the batch to print a number.
"""

import sqlite3
from collections.abc import Generator, Iterator
from typing import Literal

from msgspec import Struct

from banana_batch.lifecycle import JobState
from banana_batch.models import Kind, Totals

LedgerKey = Literal["run", "day", "model", "size"]
Notable = Literal["latency_s", "credits"]

# In the order of report/results.py, which takes a row as it comes (a test holds the two equal).
_RESULTS = """
SELECT jobs.job, jobs.id, jobs.state, jobs.request, jobs.unsent, jobs.meta,
  images.path, images.bytes, images.sha256, images.width, images.height, images.content_type, images.image_url,
  iif(jobs.twin IS NOT NULL AND jobs.state = 'done', 0, attempts.credits) AS credits,
  jobs.attempts, attempts.latency_s, iif(jobs.attempts, attempts.sent_us, NULL) AS sent_at_us,
  images.done_us AS done_at_us,
  iif(jobs.state IN ('paid', 'lost'), images.error_class, iif(jobs.state IN ('failed', 'in_doubt', 'dropped',
    'pending'), attempts.class, NULL)) AS error_class,
  iif(jobs.state IN ('paid', 'lost'), images.error_message, iif(jobs.state IN ('failed', 'in_doubt', 'dropped',
    'pending'), attempts.message, NULL)) AS error_message,
  images.warning
FROM placed CROSS JOIN jobs ON jobs.job = placed.job
LEFT JOIN images ON images.job = jobs.job
LEFT JOIN attempts ON attempts.attempt = jobs.attempt
"""
_KEYS: dict[LedgerKey, str] = {
    "run": "CAST(attempts.run AS TEXT)",
    "day": "date(attempts.sent_us / 1000000, 'unixepoch', 'localtime')",
    "model": "kinds.model",
    "size": "kinds.image_size",
}


class LedgerRow(Struct, frozen=True):
    """A line of the ledger; amounts in millionths."""

    key: str
    attempts: int
    spent: int
    at_risk: int
    wasted: int


class LastRun(Struct, frozen=True):
    """The newest run; the ending is None while it is live, or if it died."""

    run: int
    pid: int
    host: str
    started_us: int
    ended_us: int | None
    exit: int | None
    reason: str | None
    budget: int | None


class KindHistory(Struct, frozen=True):
    """What a model × size has cost and taken.

    Attributes:
        mean_bytes: Of the newest images, at most 200; None: none yet.
        mean_micro, highest_micro: None without a priced answer; one that was free is none.
        latencies_s: Of the newest answers, at most 500, unsorted.
    """

    kind: Kind
    answers: int
    mean_micro: int | None
    highest_micro: int | None
    latencies_s: tuple[float, ...]
    mean_bytes: int | None = None


class Doubt(Struct, frozen=True):
    """A job in doubt, with what is known of its request."""

    index: int
    id: str
    request: str
    attempt: int
    sent_us: int
    latency_s: float | None
    error_class: str | None
    message: str | None
    at_risk: int


def counts(db: sqlite3.Connection) -> dict[JobState, int]:
    """Return how many jobs of the batch are in each state."""
    found = dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
    return {state: int(found.get(state, 0)) for state in JobState}


def blocked(db: sqlite3.Connection) -> bool:
    """Tell whether a paid image of the current manifest waits whose url may not be fetched."""
    return bool(
        db.execute(
            "SELECT EXISTS (SELECT 1 FROM jobs CROSS JOIN images USING (job)"
            " WHERE state = 'paid' AND error_class = 'image_blocked' AND position IS NOT NULL)"
        ).fetchone()[0]
    )


def manifest_counts(db: sqlite3.Connection) -> dict[JobState, int]:
    """Return the same for the jobs of the current manifest: they decide the exit code."""
    found = dict(db.execute("SELECT state, count(position) FROM jobs GROUP BY state").fetchall())
    # A lost job of which the user ordered another copy has had its say.
    redone = db.execute(
        "SELECT count(*) FROM jobs WHERE state = 'lost' AND position IS NOT NULL"
        " AND EXISTS (SELECT 1 FROM jobs AS copy WHERE copy.origin = jobs.job)"
    ).fetchone()[0]
    # A twin shares the fate of the job whose image it shares; that one is counted. The sign keeps SQLite to the
    # index of twins, which are few, where pending jobs may be a million.
    twins = db.execute(
        "SELECT count(*) FROM jobs WHERE twin IS NOT NULL AND +state = 'pending' AND position IS NOT NULL"
    ).fetchone()[0]
    left_out = {JobState.LOST: redone, JobState.PENDING: twins}
    return {state: int(found.get(state, 0)) - left_out.get(state, 0) for state in JobState}


def totals(db: sqlite3.Connection) -> Totals:
    """Return the ledger's sums."""
    row = db.execute("SELECT sum(reserved), sum(spent), sum(at_risk), sum(wasted) FROM runs").fetchone()
    return Totals(*(value or 0 for value in row))


def run_totals(db: sqlite3.Connection, run: int) -> Totals:
    """Return one run's sums."""
    row = db.execute("SELECT reserved, spent, at_risk, wasted FROM runs WHERE run = ?", (run,)).fetchone()
    return Totals(*row)


def last_run(db: sqlite3.Connection) -> LastRun | None:
    """Return the newest run; None before the first."""
    row = db.execute(
        "SELECT run, pid, host, started_us, ended_us, exit, reason, budget FROM runs ORDER BY run DESC LIMIT 1"
    ).fetchone()
    return None if row is None else LastRun(*row)


def ledger(db: sqlite3.Connection, by: LedgerKey) -> list[LedgerRow]:
    """Return the attempts' sums by run, local day, model or image size."""
    rows = db.execute(
        f"""
        SELECT {_KEYS[by]} AS key, sum(outcome <> 'not_sent') AS attempts,
          sum(iif(outcome IN ('paid', 'charged'), credits, 0)) AS spent,
          sum(iif(outcome IN ('doubt', 'unpriced', 'sending'), reserved, 0)) AS at_risk,
          sum(iif(wasted AND outcome IN ('paid', 'charged'), credits, 0)) AS wasted
        FROM attempts JOIN kinds USING (kind) GROUP BY 1 ORDER BY min(attempts.attempt)
        """
    )
    return [LedgerRow(*row) for row in rows]


def sums_agree(db: sqlite3.Connection) -> bool:
    """Hold the kept sums against the attempts themselves."""
    rows = db.execute(
        """
        SELECT 1 FROM runs LEFT JOIN
          (SELECT run, sum(attempts) AS attempts, sum(reserved) AS reserved, sum(spent) AS spent,
             sum(at_risk) AS at_risk, sum(wasted) AS wasted FROM ledger GROUP BY run) AS counted USING (run)
        WHERE (runs.attempts, runs.reserved, runs.spent, runs.at_risk, runs.wasted) IS NOT
          (ifnull(counted.attempts, 0), ifnull(counted.reserved, 0), ifnull(counted.spent, 0),
           ifnull(counted.at_risk, 0), ifnull(counted.wasted, 0)) LIMIT 1
        """
    )
    return rows.fetchone() is None


def results(
    db: sqlite3.Connection, state: JobState | None = None, *, manifest_only: bool = False, skip: int = 0
) -> Generator[sqlite3.Row]:
    """Yield a row for each job but the first `skip`, in the manifest's order; jobs not in it come last, by index."""
    where, values = ("WHERE state = ?", (state,)) if state else ("", ())
    if manifest_only:
        where = "WHERE position IS NOT NULL"
    # Places are sorted, out of an index alone, and not what stands there: a quarter of the time. The limit keeps
    # SQLite from merging the two.
    placed = f"SELECT job FROM jobs {where} ORDER BY position IS NULL, position, job LIMIT -1 OFFSET ?"
    yield from db.execute(f"WITH placed AS ({placed}) {_RESULTS}", (*values, skip))


def result(db: sqlite3.Connection, job: int) -> sqlite3.Row:
    """Return one job's row."""
    row: sqlite3.Row = db.execute(f"WITH placed (job) AS (VALUES (?)) {_RESULTS}", (job,)).fetchone()
    return row


def doubts(db: sqlite3.Connection, *, manifest_only: bool = False) -> Iterator[Doubt]:
    """Yield each job in doubt with its newest request, in the manifest's order."""
    also = "AND position IS NOT NULL" if manifest_only else ""
    for row in db.execute(
        "SELECT jobs.job, id, request, attempts.attempt, sent_us, latency_s, class, message, reserved"
        " FROM jobs JOIN attempts ON attempts.attempt = jobs.attempt"
        f" WHERE state = 'in_doubt' {also} ORDER BY position IS NULL, position, jobs.job"
    ):
        yield Doubt(*row)


def history(db: sqlite3.Connection, *, latencies: bool = True) -> list[KindHistory]:
    """Return what each model × size has cost and, with `latencies`, taken so far."""
    kinds = db.execute("SELECT kind, model, image_size, answers, spent, highest FROM kinds").fetchall()
    return [
        KindHistory(
            Kind(row["model"], row["image_size"]),
            row["answers"],
            row["spent"] // row["answers"] if row["highest"] else None,
            row["highest"] or None,
            *(_observed(db, row["kind"]) if latencies else ((), None)),
        )
        for row in kinds
    ]


def _observed(db: sqlite3.Connection, kind: int) -> tuple[tuple[float, ...], int | None]:
    latencies = tuple(latency for (latency,) in db.execute(_LATENCIES, (kind,)))
    size = db.execute(_SIZES, (kind,)).fetchone()[0]
    return latencies, None if size is None else int(size)


_SIZES = """
SELECT avg(bytes) FROM (
  SELECT images.bytes FROM (SELECT attempt, kind FROM attempts ORDER BY attempt DESC LIMIT 2000) AS newest
  JOIN images USING (attempt) WHERE newest.kind = ? LIMIT 200)
"""

# Of the newest attempts only: a night's latency is no guide to another month's, and the table may hold millions.
_LATENCIES = """
SELECT latency_s FROM (SELECT kind, outcome, latency_s FROM attempts ORDER BY attempt DESC LIMIT 2000)
WHERE kind = ? AND outcome IN ('paid', 'unpriced') AND latency_s IS NOT NULL LIMIT 500
"""


class KindSums(Struct, frozen=True):
    """What one model × size came to in a run; latencies of its paid answers, at most 10,000, sorted."""

    kind: Kind
    images: int
    spent: int
    at_risk: int
    wasted: int
    latencies_s: tuple[float, ...]


def run_kinds(db: sqlite3.Connection, first_attempt: int) -> list[KindSums]:
    """Return the sums by model × size of the attempts from `first_attempt` on: a run's own."""
    rows = db.execute(
        """
        WITH sums AS (
          SELECT kind, sum(outcome IN ('paid', 'unpriced')) AS images,
            sum(iif(outcome IN ('paid', 'charged'), credits, 0)) AS spent,
            sum(iif(outcome IN ('doubt', 'unpriced', 'sending'), reserved, 0)) AS at_risk,
            sum(iif(wasted AND outcome IN ('paid', 'charged'), credits, 0)) AS wasted
          FROM attempts WHERE attempt >= ? GROUP BY kind)
        SELECT model, image_size, images, sums.spent, at_risk, wasted, kind
        FROM sums JOIN kinds USING (kind) ORDER BY sums.spent DESC
        """,
        (first_attempt,),
    ).fetchall()
    return [
        KindSums(
            Kind(row["model"], row["image_size"]), row["images"], row["spent"], row["at_risk"], row["wasted"],
            tuple(latency for (latency,) in db.execute(_RUN_LATENCIES, (first_attempt, row["kind"]))),
        )
        for row in rows
    ]  # fmt: skip


_RUN_LATENCIES = """
SELECT latency_s FROM (
  SELECT latency_s FROM attempts
  WHERE attempt >= ? AND kind = ? AND outcome IN ('paid', 'unpriced') AND latency_s IS NOT NULL LIMIT 10000)
ORDER BY latency_s
"""


def notable(
    db: sqlite3.Connection, first_attempt: int, by: Notable
) -> list[tuple[int, str, Kind, float | None, int | None]]:
    """Return index, id, kind, latency and credits of the five slowest, or dearest, paid jobs of a run."""
    rows = db.execute(
        f"""
        WITH notable AS (
          SELECT attempt, job, kind, latency_s, credits FROM attempts
          WHERE attempt >= ? AND outcome = 'paid' AND {by} IS NOT NULL ORDER BY {by} DESC, attempt LIMIT 5)
        SELECT job, id, model, image_size, latency_s, credits
        FROM notable JOIN jobs USING (job) JOIN kinds ON kinds.kind = notable.kind
        ORDER BY {by} DESC, notable.attempt
        """,
        (first_attempt,),
    )
    return [(row[0], row[1], Kind(row[2], row[3]), row[4], row[5]) for row in rows]


def failures(db: sqlite3.Connection) -> list[tuple[str, int, str | None]]:
    """Return class, count and an example's message of the failed jobs, the most frequent first."""
    return [
        (row[0] or "unknown", row[1], row[2])
        for row in db.execute(
            "SELECT class, count(*), min(message) FROM jobs JOIN attempts ON attempts.attempt = jobs.attempt"
            " WHERE jobs.state = 'failed' GROUP BY class ORDER BY 2 DESC"
        )
    ]


def next_attempt(db: sqlite3.Connection) -> int:
    """Return the number that the next attempt will have."""
    return int(db.execute("SELECT ifnull(max(attempt), 0) + 1 FROM attempts").fetchone()[0])


def ready_twins(db: sqlite3.Connection, limit: int) -> list[tuple[int, str, str, str]]:
    """Return index, id, stem and the shared image's path of pending twins whose image is on disk."""
    rows = db.execute(
        "SELECT twins.job, twins.id, twins.stem, images.path FROM jobs AS twins"
        " JOIN jobs AS first ON first.job = twins.twin JOIN images ON images.job = first.job"
        " WHERE twins.twin IS NOT NULL AND +twins.state = 'pending' AND first.state = 'done' LIMIT ?",
        (limit,),
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def pending_kinds(db: sqlite3.Connection, *, on_wire: bool = False) -> dict[Kind, int]:
    """Return how many jobs of the manifest wait to be sent, by model × size; `on_wire`: or are being sent."""
    states = "('pending', 'sending')" if on_wire else "('pending')"
    return {
        Kind(row[0], row[1]): row[2]
        for row in db.execute(
            "SELECT model, image_size, count(*) FROM jobs JOIN kinds USING (kind)"
            f" WHERE state IN {states} AND position IS NOT NULL AND twin IS NULL GROUP BY kind"
        )
    }


def warned(db: sqlite3.Connection, since_us: int) -> int:
    """Return how many images were kept with a warning since a moment."""
    row = db.execute("SELECT count(*) FROM images WHERE warning IS NOT NULL AND done_us >= ?", (since_us,))
    return int(row.fetchone()[0])


def done_since(db: sqlite3.Connection, since_us: int) -> int:
    """Return how many of the newest attempts, at most 10,000, were sent since a moment and bought an image."""
    row = db.execute(
        "SELECT count(*) FROM (SELECT outcome, sent_us FROM attempts ORDER BY attempt DESC LIMIT 10000)"
        " WHERE outcome IN ('paid', 'unpriced') AND sent_us >= ?",
        (since_us,),
    )
    return int(row.fetchone()[0])
