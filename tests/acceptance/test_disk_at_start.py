"""A disk that fails before anything is sent; `make torture` fails it at every call (T-err, T-full)."""

import sqlite3
from pathlib import Path

import pytest

from banana_batch.cli import app
from banana_batch.store import runs
from banana_batch.store.founding import Founder


def full(*arguments: object, **options: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(("where", "what"), [(runs, "begin_run"), (runs, "remember"), (Founder, "stage")])
def test_a_state_that_cannot_be_written_is_the_disk_and_no_bug(
    where: object, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Wherever in a run SQLite meets a full or broken disk: 74 with a message, not 70."""
    monkeypatch.setattr(where, what, full)
    manifest = tmp_path / "jobs.txt"
    manifest.write_text("a cat\n", encoding="utf-8")
    assert app.main(["run", str(manifest), "--sandbox", "-o", str(tmp_path / "out")]) == 74
    assert "database or disk is full" in capfd.readouterr().err


def test_a_plan_without_room_is_the_disk_and_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it compares lies in a file of SQLite's own: 74 where that can't grow."""
    monkeypatch.setattr(Founder, "stage", full)
    manifest = tmp_path / "jobs.txt"
    manifest.write_text("a cat\n", encoding="utf-8")
    assert app.main(["plan", str(manifest)]) == 74
    assert "database or disk is full" in capfd.readouterr().err


def test_a_new_state_that_cannot_be_removed_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """When a disk fails while the first plan is made, and its traces can't be removed either, the first is told: 74."""

    def stays(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    def fails(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(Path, "unlink", stays)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Founder, "stage", fails)
    manifest = tmp_path / "jobs.txt"
    manifest.write_text("a cat\n", encoding="utf-8")
    code = app.main(["run", str(manifest), "--sandbox", "-o", str(tmp_path / "out")])
    monkeypatch.undo()
    assert code == 74
    assert "disk I/O error" in capfd.readouterr().err
