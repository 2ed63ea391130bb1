"""The user's word: settling doubts, trying again, buying another copy. Each function runs inside a transaction.

Rule 1: only here, and in `begin` of a resend, does a job leave IN_DOUBT; only `redo` brings a job back to PENDING.
Rule 2: credits at risk leave that account only when the user says what became of them.
"""

import sqlite3
from collections.abc import Sequence

from msgspec import Struct

from banana_batch.errors import UsageError
from banana_batch.lifecycle import Event, JobState, Settlement, after
from banana_batch.text import printable

from .runs import lower_ceilings

_BY_USER = "user"


class Word(Struct, frozen=True):
    """What the user says of a job in doubt.

    Attributes:
        resend: Send it again.
        not_charged: The account was not charged: the credits come back.
        charged_micro: The account was charged this much, in millionths; None: nothing said of it.
        image_url: It was answered after all: here is the image.
    """

    resend: bool = False
    not_charged: bool = False
    charged_micro: int | None = None
    image_url: str | None = None


class Found(Struct, frozen=True):
    """A job by its id or index."""

    index: int
    id: str
    state: JobState


def find_jobs(db: sqlite3.Connection, names: Sequence[str]) -> list[Found]:
    """Return the jobs that the user named, by id or by index; one that is named twice, once.

    Raises:
        UsageError: there is no such job; the first few names that match nothing.
    """
    found, unknown = [], []
    # Where a manifest numbers its jobs itself, a number is an id, and one that is none is a slip.
    numbered = db.execute(
        "SELECT EXISTS (SELECT 1 FROM jobs WHERE length(id) < 16 AND id NOT GLOB '*[^0-9]*')"
    ).fetchone()[0]
    for name in names:
        row = db.execute("SELECT job, id, state FROM jobs WHERE id = ?", (name,)).fetchone()
        if row is None and not numbered and name.isascii() and name.isdigit() and len(name) < 16:
            row = db.execute("SELECT job, id, state FROM jobs WHERE job = ?", (int(name),)).fetchone()
        if row is None:
            unknown.append(printable(name, 80))
        else:
            found.append(Found(row["job"], row["id"], JobState(row["state"])))
    if unknown:
        raise UsageError(f"no such job: {', '.join(unknown[:10])}", "banana-batch status BATCH --jobs lists them")
    return list(dict.fromkeys(found))


def jobs_in(db: sqlite3.Connection, state: JobState) -> list[Found]:
    """Return the jobs in a state, in the manifest's order."""
    rows = db.execute(
        "SELECT job, id, state FROM jobs WHERE state = ? ORDER BY position IS NULL, position, job", (state,)
    )
    return [Found(row["job"], row["id"], state) for row in rows.fetchall()]


def lost_jobs(db: sqlite3.Connection) -> list[Found]:
    """Return the lost jobs of which no other copy was ordered yet, in the manifest's order."""
    copied = {row[0] for row in db.execute("SELECT origin FROM jobs WHERE origin IS NOT NULL")}
    return [job for job in jobs_in(db, JobState.LOST) if job.index not in copied]


def settle(db: sqlite3.Connection, job: Found, word: Word) -> None:
    """Settle one job's doubt as the user says; without any of the three, it is given up or sent again.

    Raises:
        UsageError: the job has no request without an answer.
    """
    doubts = db.execute(
        "SELECT attempt, reserved, ceiling FROM attempts WHERE job = ? AND outcome = 'doubt' ORDER BY attempt DESC",
        (job.index,),
    ).fetchall()
    money_only = job.state is not JobState.IN_DOUBT
    if not doubts or (money_only and (word.resend or word.image_url or not _says_money(word))):
        raise UsageError(f"{printable(job.id, 80)} is {job.state.value.replace('_', ' ')}: there is no doubt to settle")
    if word.not_charged:
        for doubt in doubts:
            _close(db, doubt["attempt"], Settlement.NOT_CHARGED, None)
    elif word.charged_micro is not None and not word.image_url:
        _close(db, doubts[0]["attempt"], Settlement.CHARGED, word.charged_micro)
    elif word.image_url:
        _found(db, job, doubts[0], word)
        return
    if not money_only:
        event = Event.RESEND if word.resend or word.not_charged else Event.GIVE_UP
        _move(db, job, event)


def _says_money(word: Word) -> bool:
    return word.not_charged or word.charged_micro is not None


def _found(db: sqlite3.Connection, job: Found, doubt: sqlite3.Row, word: Word) -> None:
    price = word.charged_micro
    if price is None and not doubt["ceiling"]:
        price = doubt["reserved"]
    if price is not None:
        _close(db, doubt["attempt"], Settlement.PAID, price)
        lower_ceilings(db)
    # Where no price is known the reserve stays at risk: nobody said what it cost.
    db.execute(
        "INSERT OR REPLACE INTO images (job, attempt, image_url) VALUES (?, ?, ?)",
        (job.index, doubt["attempt"], word.image_url),
    )
    _move(db, job, Event.FOUND)


def _close(db: sqlite3.Connection, attempt: int, outcome: Settlement, credits_micro: int | None) -> None:
    db.execute(
        "UPDATE attempts SET outcome = ?, credits = ?, wasted = ?, settled_by = ? WHERE attempt = ?",
        (outcome, credits_micro, int(outcome is Settlement.CHARGED), _BY_USER, attempt),
    )


def _move(db: sqlite3.Connection, job: Found, event: Event, also: str = "") -> None:
    db.execute(f"UPDATE jobs SET state = ?{also} WHERE job = ?", (after(job.state, event), job.index))


def redo(db: sqlite3.Connection, job: Found) -> str:
    """Let a job be bought again; return the id under which: its own, or that of a new copy.

    Raises:
        UsageError: the job is still under way, or in doubt.
    """
    if job.state in (JobState.FAILED, JobState.DROPPED):
        _move(db, job, Event.REDO, ", tries = 0")
        return job.id
    if job.state not in (JobState.DONE, JobState.LOST):
        hint = (
            "banana-batch resolve settles it" if job.state is JobState.IN_DOUBT else "banana-batch run goes on with it"
        )
        raise UsageError(f"{printable(job.id, 80)} is {job.state.value.replace('_', ' ')}: not to be redone", hint)
    base = job.id.partition("~")[0]
    number = 2
    while db.execute("SELECT 1 FROM jobs WHERE id = ?", (f"{base}~{number}",)).fetchone():
        number += 1
    db.execute(
        "INSERT INTO jobs (id, position, key, kind, stem, origin, request, refs, unsent, meta)"
        " SELECT ?, position, key, kind, stem || ?, job, request, refs, unsent, meta FROM jobs WHERE job = ?",
        (f"{base}~{number}", f"~{number}", job.index),
    )
    return f"{base}~{number}"


def fetch_again(db: sqlite3.Connection, index: int) -> None:
    """Take a done job back to paid: its file is gone or changed, its url is known."""
    db.execute(
        "UPDATE jobs SET state = ? WHERE job = ? AND state = 'done'", (after(JobState.DONE, Event.REPAIR), index)
    )
    db.execute("UPDATE images SET tries = 0, failed_us = NULL, damaged_sha256 = NULL WHERE job = ?", (index,))
