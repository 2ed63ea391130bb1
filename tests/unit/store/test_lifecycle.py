"""The life of a job: one table in the code, the same in the state file."""

import sqlite3
from collections.abc import Iterator
from itertools import product

import pytest

from banana_batch.lifecycle import SETTLEMENTS, TRANSITIONS, Event, IllegalTransition, JobState, Settlement, after
from banana_batch.store.unborn import nowhere

USERS_WORD = {Event.RESEND, Event.FOUND, Event.GIVE_UP, Event.REDO, Event.REPAIR}


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    opened = nowhere()
    opened.execute("PRAGMA foreign_keys = OFF")
    opened.execute("INSERT INTO jobs (id, key, kind, stem, request) VALUES ('x', x'00', 1, 'x', '{}')")
    yield opened
    opened.close()


@pytest.mark.parametrize(("state", "event"), list(product(JobState, Event)))
def test_every_pair_is_in_the_table_or_refused(state: JobState, event: Event) -> None:
    """What the table does not say can't happen: it is a bug, and told as one."""
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
        return
    with pytest.raises(IllegalTransition, match=f"a {state} job can't take the event {event}") as raised:
        after(state, event)
    assert (raised.value.state, raised.value.event) == (state, event)


def test_nothing_that_was_paid_for_goes_back_to_pending() -> None:
    """The missing edges are the promise: no event leads there from paid, done or lost, and from in doubt the user's."""
    back = {(state, event) for (state, event), becomes in TRANSITIONS.items() if becomes is JobState.PENDING}
    assert {state for state, _ in back}.isdisjoint({JobState.PAID, JobState.DONE, JobState.LOST})
    assert {event for state, event in back if state is not JobState.SENDING} <= USERS_WORD


@pytest.mark.parametrize(("was", "becomes"), list(product(JobState, JobState)))
def test_the_state_file_takes_the_same_moves(db: sqlite3.Connection, was: JobState, becomes: JobState) -> None:
    """The trigger lets through what the table has, and nothing else."""
    (trigger,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'jobs_move_along_the_table'").fetchone()
    db.execute("DROP TRIGGER jobs_move_along_the_table")
    db.execute("UPDATE jobs SET state = ?", (was,))
    db.execute(trigger)
    if becomes in {TRANSITIONS[one] for one in TRANSITIONS if one[0] is was}:
        db.execute("UPDATE jobs SET state = ?", (becomes,))
    else:
        with pytest.raises(sqlite3.IntegrityError, match="no such transition"):
            db.execute("UPDATE jobs SET state = ?", (becomes,))


@pytest.mark.parametrize(("was", "becomes"), list(product(Settlement, Settlement)))
def test_the_state_file_settles_along_the_same_table(
    db: sqlite3.Connection, was: Settlement, becomes: Settlement
) -> None:
    """An attempt is settled once, but for a doubt that the user settles."""
    (trigger,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'attempts_settle_once'").fetchone()
    db.execute("INSERT INTO attempts (job, run, kind, reserved, ceiling, sent_us) VALUES (1, 1, 1, 0, 0, 0)")
    db.execute("DROP TRIGGER attempts_settle_once")
    db.execute("UPDATE attempts SET outcome = ?", (was,))
    db.execute(trigger)
    if becomes in SETTLEMENTS.get(was, ()):
        db.execute("UPDATE attempts SET outcome = ?", (becomes,))
    else:
        with pytest.raises(sqlite3.IntegrityError, match="settled once"):
            db.execute("UPDATE attempts SET outcome = ?", (becomes,))


@pytest.mark.parametrize("table", ["jobs", "attempts"])
def test_nothing_is_deleted(db: sqlite3.Connection, table: str) -> None:
    """Neither a job nor a paid request ever disappears from the books."""
    db.execute("INSERT INTO attempts (job, run, kind, reserved, ceiling, sent_us) VALUES (1, 1, 1, 0, 0, 0)")
    with pytest.raises(sqlite3.IntegrityError, match="is never deleted"):
        db.execute(f"DELETE FROM {table}")


@pytest.mark.parametrize(
    "change",
    ["job = 2", "run = 2", "kind = 2", "sent_us = 1", "credits = 7", "outcome = 'doubt'", "outcome = 'sending'"],
)
def test_a_settled_attempt_keeps_its_story(db: sqlite3.Connection, change: str) -> None:
    """Whose it was, when it was sent, how it ended and what it cost are written once."""
    db.execute("INSERT INTO attempts (job, run, kind, reserved, ceiling, sent_us) VALUES (1, 1, 1, 5, 0, 0)")
    db.execute("UPDATE attempts SET outcome = 'paid', credits = 5")
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(f"UPDATE attempts SET {change}")


def test_jobs_and_attempts_begin_at_the_beginning(db: sqlite3.Connection) -> None:
    """No row is born settled."""
    with pytest.raises(sqlite3.IntegrityError, match="starts as pending"):
        db.execute("INSERT INTO jobs (id, key, kind, stem, request, state) VALUES ('y', x'00', 1, 'y', '{}', 'done')")
    with pytest.raises(sqlite3.IntegrityError, match="starts as sending"):
        db.execute(
            "INSERT INTO attempts (job, run, kind, reserved, ceiling, sent_us, outcome) VALUES (1, 1, 1, 0, 0, 0, 'paid')"
        )
