"""Whether an image is bought depends on the room for it, not on when somebody looked last."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from banana_batch.models import KEPT_FREE_BYTES
from banana_batch.store.room import FIRST_GUESS_BYTES, MOST_UNLOOKED, Room


class Disk:
    """A disk of which a test says how much is free; counts who looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 0
        self.looks = 0
        monkeypatch.setattr(os, "statvfs", self._statvfs)

    def _statvfs(self, _path: Path) -> SimpleNamespace:
        self.looks += 1
        return SimpleNamespace(f_bavail=self.free, f_frsize=1)


def test_the_last_image_that_fits_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are asked for one after the other, no more are allowed than fit."""
    disk, room = Disk(monkeypatch), Room(tmp_path)
    fits = 100
    disk.free = KEPT_FREE_BYTES + fits * FIRST_GUESS_BYTES
    bought = 0
    for _ in range(10 * fits):
        if not room.has_room(1):
            break
        bought += 1
        disk.free -= FIRST_GUESS_BYTES
    assert bought == fits


def test_with_plenty_of_room_looks_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call a job is for disks that fill."""
    disk, room = Disk(monkeypatch), Room(tmp_path)
    disk.free = 1 << 40
    assert all(room.has_room(64) for _ in range(10 * (MOST_UNLOOKED + 1)))
    assert disk.looks == 10


def test_larger_images_are_looked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image larger than all before it changes what fits."""
    disk, room = Disk(monkeypatch), Room(tmp_path)
    disk.free = KEPT_FREE_BYTES + 200 * FIRST_GUESS_BYTES
    assert room.has_room(1)
    room.emit("stored", bytes=201 * FIRST_GUESS_BYTES)
    assert not room.has_room(1)
