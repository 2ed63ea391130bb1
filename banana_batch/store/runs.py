"""A run's beginning and end in the state file, and what the batch remembers between runs."""

import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator

from banana_batch.errors import REASONS, DiskError, Exit
from banana_batch.lifecycle import Event, JobState, Settlement, after

INTERRUPTED = "interrupted"
_LISTED = "results_of_run"
DIED = "the program ended while this request was on the wire"


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Make the statements inside one durable step, or none of them.

    Raises:
        DiskError: it can't be made durable.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except sqlite3.OperationalError as failed:
        _undo(db)
        raise DiskError(f"the state file can't be written: {failed}", "free some space or mend the disk") from failed
    except BaseException:
        _undo(db)
        raise


@contextlib.contextmanager
def telling_disk() -> Iterator[None]:
    """Say for the whole of a run what it means that SQLite can't read or write: the disk, and no bug.

    Raises:
        DiskError: the state can't be read or written.
    """
    try:
        yield
    except sqlite3.OperationalError as failed:
        raise DiskError(
            f"the state file can't be read or written: {failed}", "free some space or mend the disk, then run again"
        ) from failed


def _undo(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def remember(db: sqlite3.Connection, name: str, value: str) -> None:
    """Keep a fact of the batch: its side, its sandbox's port, its manifest's fingerprint."""
    db.execute("INSERT OR REPLACE INTO batch (name, value) VALUES (?, ?)", (name, value))


def recall(db: sqlite3.Connection, name: str) -> str | None:
    """Return a fact of the batch; None if it was never told."""
    row = db.execute("SELECT value FROM batch WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def tell_listed(db: sqlite3.Connection, run: int | None) -> None:
    """Keep up to which run results.jsonl is true; None: a job has changed, or is about to, without a run."""
    remember(db, _LISTED, "" if run is None else str(run))


def is_listed(db: sqlite3.Connection, run: int) -> bool:
    """Tell whether results.jsonl was true when that run began: the one before told all of its own."""
    return recall(db, _LISTED) == str(run - 1)


def begin_run(db: sqlite3.Connection, now_us: int, budget: int | None) -> int:
    """Open a run; return its number."""
    cursor = db.execute(
        "INSERT INTO runs (pid, host, started_us, budget) VALUES (?, ?, ?, ?)",
        (os.getpid(), socket.gethostname(), now_us, budget),
    )
    return int(cursor.lastrowid or 0)


def end_run(db: sqlite3.Connection, run: int, now_us: int, code: Exit) -> None:
    """Close a run with its exit code."""
    db.execute("UPDATE runs SET ended_us = ?, exit = ?, reason = ? WHERE run = ?", (now_us, code, REASONS[code], run))


def doubt_interrupted(db: sqlite3.Connection, why: str) -> int:
    """Mark every request that is on the wire as in doubt; return how many. Call it in a transaction.

    Whoever sent it is gone, or has given up waiting. A row in `sending` says that a request may have left;
    nothing says what became of it. So it is never sent again without the user's word.
    """
    db.execute(
        "UPDATE attempts SET outcome = ?, class = ?, message = ?, settled_by = 'start'"
        " WHERE outcome = 'sending' AND attempt IN (SELECT attempt FROM jobs WHERE state = 'sending')",
        (Settlement.DOUBT, INTERRUPTED, why),
    )
    return db.execute(
        "UPDATE jobs SET state = ? WHERE state = 'sending'", (after(JobState.SENDING, Event.UNANSWERED),)
    ).rowcount


def lower_ceilings(db: sqlite3.Connection) -> None:
    """Bring what is at risk for want of a price down to the dearest seen, where one is known by now.

    An answer does so for all that is open when it comes, and a begin for itself behind it (known.py). This is for a
    price that the user told, and for what an earlier version began beside the first answer.
    """
    db.execute(
        "UPDATE attempts SET ceiling = 0,"
        " reserved = min(reserved, (SELECT highest FROM kinds WHERE kinds.kind = attempts.kind))"
        " WHERE ceiling = 1 AND outcome IN ('sending', 'doubt', 'unpriced')"
        " AND kind IN (SELECT kind FROM kinds WHERE highest > 0)"
    )


def drop_doubts(db: sqlite3.Connection) -> int:
    """Give up the manifest's jobs in doubt, as the user said; their credits stay at risk. Return how many."""
    return db.execute(
        "UPDATE jobs SET state = ? WHERE state = 'in_doubt' AND position IS NOT NULL",
        (after(JobState.IN_DOUBT, Event.GIVE_UP),),
    ).rowcount
