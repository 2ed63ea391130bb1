"""What failed commits leave in a `-wal` is no damage; what lies behind damage is."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from banana_batch.store.evidence import lost_commits


def wal_after(folder: Path, name: str, *commits: int) -> bytes:
    """Return the log of a copy of the batch in `folder`, after commits of so many pages each."""
    copy = folder / name
    shutil.copytree(folder / "base", copy)
    with closing(sqlite3.connect(copy / "db", isolation_level=None)) as db:
        for pages in commits:
            db.execute("INSERT INTO kept VALUES (randomblob(?))", (pages * 4000,))
        return (copy / "db-wal").read_bytes()


@pytest.fixture
def after(tmp_path: Path) -> Callable[..., bytes]:
    """Give `wal_after` of a batch with two commits in its log."""
    base = tmp_path / "base"
    base.mkdir()
    with closing(sqlite3.connect(tmp_path / "live", isolation_level=None)) as db:
        assert db.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal"
        db.execute("CREATE TABLE kept (content)")
        db.execute("INSERT INTO kept VALUES (1)")
        for ending in ("", "-wal"):
            shutil.copy(tmp_path / f"live{ending}", base / f"db{ending}")
    return lambda *commits: wal_after(tmp_path, f"after {commits}", *commits)


def test_failed_commits_leave_no_damage(after: Callable[..., bytes], tmp_path: Path) -> None:
    """A disk that fails lets several commits be written at one place, one over the other; the last may be the shortest.

    SQLite passes over their remainders, rightly: nothing was sent for any of them.
    """
    short, middle, long = after(1), after(9), after(20)
    wal = tmp_path / "remainders"
    wal.write_bytes(short + middle[len(short) :] + long[len(middle) :])
    assert len(short) < len(middle) < len(long)
    assert lost_commits(wal) == 0


@pytest.mark.parametrize("at", [8, 20, 24, 4000], ids=["mark", "check sum", "content", "end of content"])
def test_commits_behind_damage_are_counted(after: Callable[..., bytes], tmp_path: Path, at: int) -> None:
    """One damaged byte, wherever in a frame: SQLite passes over the whole commits behind it, and they are told."""
    first = len(after())
    data = bytearray(after(1, 1, 1, 1))
    data[first + at] ^= 1
    wal = tmp_path / "damaged"
    wal.write_bytes(data)
    assert lost_commits(wal) >= 3
