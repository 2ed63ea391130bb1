"""What everything that is told of a run promises, and everything that is asked for room."""

from collections.abc import Callable
from pathlib import Path

import pytest

from banana_batch.pacing.clock import SystemClock
from banana_batch.ports import Disk, Events
from banana_batch.report.fanout import Fanout
from banana_batch.report.log import RunLog
from banana_batch.report.tally import Tally
from banana_batch.store.room import Room
from tests.contract.fakes import FakeDisk, Told

ODD: list[dict[str, object]] = [
    {},
    {"message": "\ud800 \x00 \x1b[2J", "bytes": -(10**400), "share": float("nan")},
    {"path": Path("x"), "raw": b"\xff", "error": ValueError("x"), "nothing": None, "jobs": {1: {2: {3: set()}}}},
]


def run_log(out: Path) -> Events:
    return RunLog(out / "run.log", wall_us=lambda: 1, trouble=pytest.fail)


LISTENERS: dict[str, Callable[[Path], Events]] = {
    "run.log": run_log,
    "tally": lambda _out: Tally(SystemClock()),
    "fan-out": lambda _out: Fanout([Told(), Told()]),
    "room": Room,
    "fake": lambda _out: Told(),
}


@pytest.mark.parametrize("facts", ODD, ids=["none", "odd texts and numbers", "odd things"])
@pytest.mark.parametrize("listener", LISTENERS)
def test_telling_never_raises(listener: str, facts: dict[str, object], tmp_path: Path) -> None:
    """Whatever the event, and whatever is told of it."""
    events = LISTENERS[listener](tmp_path)
    for event in ("note", "an event that nobody knows"):
        events.emit(event, **facts)
    if isinstance(events, RunLog):
        events.close()
        assert (tmp_path / "run.log").read_bytes().count(b"\n") == 2


DISKS: dict[str, Callable[[Path], Disk]] = {"of the folder": Room, "fake": lambda _out: FakeDisk()}


@pytest.mark.parametrize(("images", "fits"), [(1, True), (1000, True), (10**12, False)])
@pytest.mark.parametrize("disk", DISKS)
def test_room_is_told_before_it_is_used(disk: str, images: int, fits: bool, tmp_path: Path) -> None:
    """A million million images fit nowhere."""
    assert DISKS[disk](tmp_path).has_room(images) is fits
