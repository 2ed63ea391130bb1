"""What is written between runs: all of it or nothing."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from banana_batch.errors import DiskError, Exit
from banana_batch.store import queries, runs
from banana_batch.store.unborn import Unborn


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = Unborn(tmp_path).open()
    yield opened
    opened.close()


def remember_and_fail(db: sqlite3.Connection, failure: Exception) -> None:
    with runs.transaction(db):
        runs.remember(db, "side", "live")
        raise failure


def test_a_full_disk_leaves_nothing_half_done(db: sqlite3.Connection) -> None:
    """The step is told to have failed, and none of it is there."""
    with pytest.raises(DiskError, match="can't be written"):
        remember_and_fail(db, sqlite3.OperationalError("database or disk is full"))
    assert runs.recall(db, "side") is None
    assert not db.in_transaction


def test_a_bug_leaves_nothing_half_done(db: sqlite3.Connection) -> None:
    """What is raised inside goes on its way, and the step is undone."""
    with pytest.raises(KeyError):
        remember_and_fail(db, KeyError())
    assert runs.recall(db, "side") is None


def test_a_step_that_can_not_even_begin_is_told(db: sqlite3.Connection) -> None:
    """There is nothing to undo then."""
    db.execute("PRAGMA query_only = ON")
    with pytest.raises(DiskError), runs.transaction(db):
        runs.remember(db, "side", "live")
    assert not db.in_transaction


def test_outside_a_step_a_broken_disk_is_told_too() -> None:
    """Whatever SQLite can't read or write in a run is the disk's fault, and no bug."""
    with pytest.raises(DiskError, match="can't be read or written"), runs.telling_disk():
        raise sqlite3.OperationalError("disk I/O error")
    with runs.telling_disk():
        pass


def test_a_run_is_remembered_with_its_end(db: sqlite3.Connection) -> None:
    """`status` tells the last run's exit code and reason."""
    run = runs.begin_run(db, 5, budget=None)
    runs.end_run(db, run, 9, Exit.BUDGET)
    row = db.execute("SELECT started_us, ended_us, exit, reason FROM runs WHERE run = ?", (run,)).fetchone()
    assert tuple(row) == (5, 9, 5, "budget")
    assert queries.totals(db).committed == 0


def test_only_doubts_of_the_manifest_are_dropped(db: sqlite3.Connection) -> None:
    """`--in-doubt drop` gives up what was asked for; jobs that left the manifest stay in doubt, at risk both."""
    db.execute("INSERT INTO kinds (model, image_size) VALUES ('m', '1K')")
    db.executemany(
        "INSERT INTO jobs (id, position, key, kind, stem, request) VALUES (?1, ?2, x'00', 1, ?1, '{}')",
        [("in", 1), ("out", None)],
    )
    for state in ("sending", "in_doubt"):
        db.execute("UPDATE jobs SET state = ?", (state,))
    assert runs.drop_doubts(db) == 1
    assert dict(db.execute("SELECT id, state FROM jobs").fetchall()) == {"in": "dropped", "out": "in_doubt"}
