"""A batch that an older version began: looked at as it is, taken over by the next run, refused where it was changed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from banana_batch.cli import app
from banana_batch.store import checks, paths, shape
from tests.integration.whole_runs import scratch

OLDER = shape.schema_script(1)
TABLES = ("batch", "runs", "kinds", "jobs", "attempts", "images")
MANIFEST = '{"prompt": "a", "id": "a"}\n{"prompt": "b", "id": "b"}\n'


@pytest.fixture
def older() -> Iterator[Path]:
    """Make a batch with one of two jobs done, as version 1 would have left it."""
    with scratch() as made:
        (made / "p.jsonl").write_text(MANIFEST)
        assert run(made, "--limit", "1") == 0
        with closing(sqlite3.connect(made / "out" / paths.STATE_NAME, isolation_level=None)) as db:
            rows = {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}
        (made / "out" / paths.STATE_NAME).unlink()
        with closing(sqlite3.connect(made / "out" / paths.STATE_NAME, isolation_level=None)) as db:
            db.executescript(OLDER)
            triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                db.execute(f"DROP TRIGGER {name}")
            for table in TABLES:
                marks = ", ".join("?" * len(rows[table][0]))
                db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows[table])
            for _, sql in triggers:
                db.execute(sql)
            db.executescript("PRAGMA journal_mode = WAL; PRAGMA user_version = 1")
        yield made


def run(folder: Path, *more: str) -> int:
    """Run the manifest in the sandbox."""
    return app.main(["run", str(folder / "p.jsonl"), "--sandbox", "-q", "-o", str(folder / "out"), *more])


def version_of(folder: Path) -> tuple[int, list[str]]:
    """Return a state's version, and what is not as that version made it."""
    with closing(sqlite3.connect(folder / "out" / paths.STATE_NAME)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        return version, shape.foreign_parts(db, version)


def test_a_look_leaves_it_as_it_is(older: Path) -> None:
    """`status` writes nothing, whatever the version."""
    assert app.main(["status", str(older / "out")]) == 0
    assert version_of(older) == (1, [])


def test_a_run_takes_it_over_and_goes_on(older: Path) -> None:
    """What was done stays done, and the state is this version's from then on."""
    assert run(older) == 0
    assert version_of(older) == (checks.VERSION, [])
    with closing(sqlite3.connect(older / "out" / paths.STATE_NAME)) as db:
        assert db.execute("SELECT count(*), sum(attempts) FROM jobs WHERE state = 'done'").fetchone() == (2, 2)


@pytest.mark.parametrize(
    "change",
    ["CREATE TRIGGER evil AFTER INSERT ON attempts BEGIN SELECT 1; END", "DROP TRIGGER jobs_move_along_the_table"],
)
def test_what_was_changed_is_not_taken_over(older: Path, change: str) -> None:
    """An older version is no way round the check: 65, and nothing of it is changed."""
    state = older / "out" / paths.STATE_NAME
    with closing(sqlite3.connect(state, isolation_level=None)) as db:
        db.execute(change)
    before = state.read_bytes()
    assert run(older) == 65
    assert state.read_bytes() == before
