"""A state file is born whole: nothing of it has its name before all of it is on the disk."""

import contextlib
import os
from pathlib import Path

import pytest

from banana_batch.store import database


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

    unborn = database.Unborn(tmp_path)
    db = unborn.open()
    db.execute("INSERT INTO batch VALUES ('side', 'live')")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with contextlib.closing(unborn.publish(db)) as born:
        state = database.state_path(tmp_path).stat().st_ino
        assert steps == [("sync", state), ("rename", state), ("sync", tmp_path.stat().st_ino)]
        assert [born.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")] == ["wal", 2]
        assert born.execute("SELECT value FROM batch").fetchone()[0] == "live"
    assert sorted(path.name for path in tmp_path.iterdir()) == [database.STATE_NAME]
