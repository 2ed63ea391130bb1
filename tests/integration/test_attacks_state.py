"""State files and folders that somebody else prepared: triggers, views, symlinks, pipes, modes (S8, S12)."""

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from banana_batch.cli import app
from banana_batch.store import database, paths
from banana_batch.store.lock import holder
from tests.integration.whole_runs import scratch

MANIFEST = '{"prompt": "a", "id": "a"}\n{"prompt": "b", "id": "b"}\n{"prompt": "c", "id": "c"}\n'
PRIVATE = 0o077


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder with a manifest, and be in it."""
    with scratch() as made, monkeypatch.context() as within:
        (made / "p.jsonl").write_text(MANIFEST)
        within.chdir(made)
        yield made


@pytest.fixture(scope="module")
def begun() -> Iterator[Path]:
    """Make a batch, once, with one of its jobs done."""
    with scratch() as made:
        (made / "p.jsonl").write_text(MANIFEST)
        assert app.main(["run", str(made / "p.jsonl"), "--sandbox", "-q", "-o", str(made / "out"), "--limit", "1"]) == 0
        yield made / "out"


def run(*more: str) -> int:
    """Run the manifest in the sandbox."""
    return app.main(["run", "p.jsonl", "--sandbox", "-q", "-o", "out", *more])


@contextmanager
def tampering(state: Path) -> Iterator[sqlite3.Connection]:
    """Open a state file as an attacker does: nothing holds him back."""
    with closing(sqlite3.connect(state, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        yield db


TAMPERED: dict[str, str] = {
    "a trigger that buys again": "CREATE TRIGGER evil AFTER UPDATE OF state ON jobs WHEN NEW.state = 'done'"
    " BEGIN UPDATE jobs SET request = 'x'; END",
    "a trigger that calls a function": "CREATE TRIGGER evil AFTER INSERT ON attempts BEGIN SELECT load_extension('/x'); END",
    "a view in a table's place": "ALTER TABLE images RENAME TO real; CREATE VIEW images AS SELECT *, writefile('/tmp/x','y') FROM real",
    "a view that hides spending": "DROP VIEW ledger; CREATE VIEW ledger AS SELECT run, kind, 0 AS attempts, 0 AS reserved,"
    " 0 AS spent, 0 AS at_risk, 0 AS wasted FROM attempts",
    "a further view": "CREATE VIEW evil AS SELECT randomblob(1000000000)",
    "a further table": "CREATE TABLE evil (x)",
    "a virtual table": "CREATE VIRTUAL TABLE evil USING fts5(x)",
    "an index that computes": "CREATE INDEX evil ON jobs (hex(id))",
    "no guard of transitions": "DROP TRIGGER jobs_move_along_the_table",
    "no guard of settlements": "DROP TRIGGER attempts_settle_once",
    "no guard of deletions": "DROP TRIGGER attempts_stay",
    "a guard of nothing": "UPDATE sqlite_schema SET sql = replace(sql, 'an attempt is never deleted', 'fine') WHERE name = 'attempts_stay'",
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_state_with_foreign_parts_is_refused(
    folder: Path, begun: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """65 and nothing sent: what a state file does by itself is ours, or it is not used."""
    shutil.copytree(begun, folder / "out")
    state = folder / "out" / paths.STATE_NAME
    with tampering(state) as db:
        db.executescript(TAMPERED[name])
    before = state.read_bytes()
    for command in (
        ("run", "p.jsonl", "--sandbox", "-o", "out"),
        ("status", "out"),
        ("verify", "out"),
        ("export", "out"),
    ):
        assert app.main([*command]) == 65
        assert "damaged (not as it was made: " in capfd.readouterr().err
    assert state.read_bytes() == before


FORBIDDEN_WRITES = [
    "UPDATE attempts SET outcome = 'refused' WHERE outcome = 'paid'",
    "UPDATE attempts SET outcome = 'doubt' WHERE outcome = 'paid'",
    "UPDATE attempts SET outcome = 'sending'",
    "UPDATE attempts SET credits = 1",
    "UPDATE attempts SET credits = NULL",
    "UPDATE attempts SET job = job + 1",
    "UPDATE attempts SET run = run + 1",
    "UPDATE attempts SET sent_us = 0",
    "DELETE FROM attempts",
    "DELETE FROM jobs",
    "UPDATE jobs SET state = 'pending' WHERE state = 'done'",
    "UPDATE jobs SET state = 'sending' WHERE state = 'done'",
    "INSERT INTO attempts (job, run, kind, outcome, reserved, ceiling, sent_us) VALUES (1, 1, 1, 'refused', 0, 0, 0)",
    "INSERT OR REPLACE INTO attempts SELECT * FROM attempts LIMIT 1",
    "REPLACE INTO jobs SELECT * FROM jobs LIMIT 1",
]


@pytest.mark.parametrize("statement", FORBIDDEN_WRITES)
def test_no_statement_of_ours_can_rewrite_the_ledger(begun: Path, statement: str) -> None:
    """A second settlement, a deletion, a way back from a paid job: the file itself refuses, whoever asks."""
    with closing(database.open_writer(begun)) as db:
        db.execute("PRAGMA foreign_keys = OFF")  # the triggers alone
        before = [tuple(row) for table in ("jobs", "attempts") for row in db.execute(f"SELECT * FROM {table}")]
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(statement)
        after = [tuple(row) for table in ("jobs", "attempts") for row in db.execute(f"SELECT * FROM {table}")]
    assert after == before


def test_no_function_is_called_for_a_state_file(begun: Path) -> None:
    """The schema is not trusted, and no extension can be loaded."""
    for opened in (database.open_writer(begun), database.open_reader(begun)):
        with closing(opened) as db:
            assert db.execute("PRAGMA trusted_schema").fetchone()[0] == 0
            with pytest.raises(sqlite3.OperationalError):
                db.execute("SELECT load_extension('/nowhere')")


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "pipe", "folder"])
def test_a_state_file_is_a_plain_file(folder: Path, begun: Path, ending: str, kind: str) -> None:
    """A link would lead SQLite to somebody's file, a pipe would hold it up; neither is touched."""
    shutil.copytree(begun, folder / "out")
    victim = folder / "victim"
    if kind == "symlink":
        victim.write_bytes(b"precious")
    place = folder / "out" / (paths.STATE_NAME + ending)
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(victim)
    for command in (("run", "p.jsonl", "--sandbox", "-o", "out"), ("status", "out"), ("download", "out")):
        assert app.main([*command]) in (65, 66, 73, 74)
    assert (victim.read_bytes() if victim.exists() else b"precious") == b"precious"
    assert victim.exists() == (kind == "symlink")


@pytest.mark.parametrize("name", [".lock", "run.log", "results.jsonl", "summary.md", "images", "sandbox/charges.jsonl"])
@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_nothing_that_was_put_in_our_places_is_followed(folder: Path, name: str, kind: str) -> None:
    """A file of somebody else keeps its bytes, whatever stands where we write; no pipe is waited for."""
    victim = folder / "victim"
    victim.write_bytes(b"precious\n")
    place = folder / "out" / name
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "hard link" and name in (".lock", "results.jsonl", "summary.md"):
        place.hardlink_to(victim)
    else:
        place.symlink_to(victim)
    code = run()
    assert code in (0, 73, 78)
    assert holder(folder / "out") is None
    assert victim.read_bytes() == b"precious\n"
    if code == 0 and name in ("results.jsonl", "summary.md"):
        assert place.is_file()
        assert not place.is_symlink()


def test_everything_is_private_whatever_the_umask(folder: Path) -> None:
    """Folders 0700, files 0600, also with a umask of 0 and while the run is live."""
    seen: dict[str, int] = {}

    def look() -> None:
        for path in (folder / "out").rglob("*"):
            seen[path.name] = seen.get(path.name, 0) | stat.S_IMODE(path.lstat().st_mode)

    before = os.umask(0)
    try:
        _watched(look)
    finally:
        os.umask(before)
    look()
    assert stat.S_IMODE((folder / "out").stat().st_mode) == 0o700
    assert {"state.sqlite3", "state.sqlite3-wal", "state.sqlite3-shm", "run.log", "results.jsonl", "summary.md",
            "sandbox", "charges.jsonl", "images", ".lock"} <= set(seen)  # fmt: skip
    assert {name: oct(mode) for name, mode in seen.items() if mode & PRIVATE} == {}


def _watched(look: Callable[[], None]) -> None:
    """Run with a look at each commit of an image."""
    from banana_batch.images.committer import Committer

    commit = Committer.commit

    def seen(self: Committer, group: object) -> object:
        look()
        return commit(self, group)  # type: ignore[arg-type]  # handed through

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Committer, "commit", seen)
        assert run() == 0


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o702, 0o722])
@pytest.mark.parametrize("which", ["out", "out/images"])
def test_a_folder_that_anybody_may_change_is_refused(
    folder: Path, capfd: pytest.CaptureFixture[str], which: str, mode: int
) -> None:
    """73 before anything is sent, and for OUT itself before anything is written; the sticky bit makes it fine."""
    (folder / which).mkdir(parents=True)
    (folder / which).chmod(mode)
    assert run() == 73
    assert "chmod o-w" in capfd.readouterr().err
    if which == "out":
        assert list((folder / "out").iterdir()) == []
    (folder / which).chmod(mode | stat.S_ISVTX)
    assert run() == 0
