"""A state file is born whole: nothing of it has its name before all of it is on the disk."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from banana_batch.errors import DiskError, ManifestError, SettingsError
from banana_batch.store import database, paths, unborn
from banana_batch.store.unborn import Unborn


def test_a_new_state_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it is written without syncs and without a log; from then on each commit is synced."""
    steps = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        steps.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def renamed(path: Path, to: Path) -> Path:
        steps.append(("rename", path.stat().st_ino))
        return rename(path, to)

    unborn = Unborn(tmp_path)
    db = unborn.open()
    db.execute("INSERT INTO batch VALUES ('side', 'live')")
    unborn.prove(db)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with contextlib.closing(unborn.publish(db)) as born:
        state = paths.state_path(tmp_path).stat().st_ino
        assert steps == [("sync", state), ("rename", state), ("sync", tmp_path.stat().st_ino)]
        pragmas = ("journal_mode", "synchronous", "wal_autocheckpoint")
        assert [born.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == ["wal", 2, 4000]
        assert born.execute("SELECT value FROM batch").fetchone()[0] == "live"
    assert sorted(path.name for path in tmp_path.iterdir()) == [paths.STATE_NAME]


def test_a_log_that_cannot_be_opened_shows_before_the_state_has_its_name(tmp_path: Path) -> None:
    """SQLite says that it will keep one, and opens it only when it is needed."""
    unborn = Unborn(tmp_path)
    db = unborn.open()
    in_its_way = tmp_path / f".{paths.STATE_NAME}.new-shm"
    in_its_way.mkdir()
    with pytest.raises(DiskError):
        unborn.prove(db)
    unborn.discard(db)
    assert list(tmp_path.iterdir()) == [in_its_way]


def test_a_state_that_cannot_even_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full from the start, or a SQLite that is too old."""

    def full(_db: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(unborn, "_make_schema", full)
        with pytest.raises(DiskError):
            Unborn(tmp_path).open()
    monkeypatch.setattr(database, "OLDEST_SQLITE", (99,))
    with pytest.raises(SettingsError):
        Unborn(tmp_path).open()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["-wal", "-journal"])
def test_a_log_without_its_state_is_not_played_into_a_new_one(tmp_path: Path, ending: str) -> None:
    """What it holds was paid; what is born beside it would take it in."""
    left = tmp_path / f"{paths.STATE_NAME}{ending}"
    left.write_bytes(b"")
    assert not paths.exists(tmp_path)
    left.write_bytes(b"frames")
    with pytest.raises(ManifestError, match=f"there is {left.name} but no {paths.STATE_NAME}"):
        paths.exists(tmp_path)
    assert left.read_bytes() == b"frames"


def test_a_folder_that_another_run_makes_just_then_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and not ours to take away again."""
    out, mkdir = tmp_path / "a" / "b", Path.mkdir

    def made_twice(path: Path, mode: int = 0o777) -> None:
        mkdir(path)
        mkdir(path, mode)

    monkeypatch.setattr(Path, "mkdir", made_twice)
    assert paths.make_folder(out) == []
    assert out.is_dir()
