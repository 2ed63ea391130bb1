"""A run's beginning and end in the state file, and what the batch remembers between runs."""

import os
import socket
import sqlite3
from dataclasses import dataclass

from banana_batch.errors import REASONS, Exit
from banana_batch.lifecycle import Event, JobState, Settlement, after

INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an earlier run left that did not end by itself.

    Attributes:
        doubts: Requests that were on the wire when it died: now in doubt.
    """

    doubts: int


def remember(db: sqlite3.Connection, name: str, value: str) -> None:
    """Keep a fact of the batch: its side, its sandbox's port, its manifest's fingerprint."""
    db.execute("INSERT OR REPLACE INTO batch (name, value) VALUES (?, ?)", (name, value))


def recall(db: sqlite3.Connection, name: str) -> str | None:
    """Return a fact of the batch; None if it was never told."""
    row = db.execute("SELECT value FROM batch WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


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


def doubt_interrupted(db: sqlite3.Connection, why: str) -> Recovered:
    """Mark every request that is on the wire as in doubt: whoever sent it is gone, or has given up waiting.

    A row in `sending` says that a request may have left; nothing says what became of it. So it is never
    sent again without the user's word.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute(
            "UPDATE attempts SET outcome = ?, class = ?, message = ?, settled_by = 'start'"
            " WHERE outcome = 'sending' AND attempt IN (SELECT attempt FROM jobs WHERE state = 'sending')",
            (Settlement.DOUBT, INTERRUPTED, why),
        )
        doubts = db.execute(
            "UPDATE jobs SET state = ? WHERE state = 'sending'", (after(JobState.SENDING, Event.UNANSWERED),)
        ).rowcount
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return Recovered(doubts)
