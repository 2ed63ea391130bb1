"""Who holds a batch keeps others out, and what a killed run left behind does not keep the next one out."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from banana_batch.errors import BatchLocked
from banana_batch.store import lock
from banana_batch.store.lock import LEFTOVER_S, LOCK_NAME, batch_lock

HERE = socket.gethostname()


class Clock:
    """Time that passes only where it is waited for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        """See time.monotonic."""
        return self.now_s

    def sleep(self, for_s: float) -> None:
        """See time.sleep."""
        self.waits.append(for_s)
        self.now_s += for_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock in the lock's place of one."""
    made = Clock()
    monkeypatch.setattr(lock, "time", made)
    return made


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """A lock that somebody holds."""
    descriptor = os.open(tmp_path / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


def _name(descriptor: int, pid: object, host: str = HERE) -> None:
    os.pwrite(descriptor, json.dumps({"pid": pid, "host": host}).encode(), 0)


def _ended() -> int:
    """Return the pid of a process that has ended."""
    made = subprocess.Popen([sys.executable, "-c", ""])
    made.wait()
    return made.pid


def test_what_a_killed_run_left_behind_is_waited_for(
    tmp_path: Path, held: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that planned for it may still be in a write to the disk: it ends by itself, and sends nothing."""
    _name(held, _ended())

    def ends(for_s: float) -> None:
        clock.waits.append(for_s)
        if len(clock.waits) == 3:
            fcntl.flock(held, fcntl.LOCK_UN)

    monkeypatch.setattr(clock, "sleep", ends)
    with batch_lock(tmp_path):
        assert len(clock.waits) == 3


def test_it_is_not_waited_for_without_end(tmp_path: Path, held: int, clock: Clock) -> None:
    """Then somebody else has to look."""
    _name(held, _ended())
    with pytest.raises(BatchLocked), batch_lock(tmp_path):
        pass
    assert LEFTOVER_S <= clock.now_s < LEFTOVER_S + 0.1


@pytest.mark.parametrize("who", ["alive", "on another machine", "not known"])
def test_a_holder_that_may_be_at_work_is_told_at_once(tmp_path: Path, held: int, clock: Clock, who: str) -> None:
    """A second run must not wait for the first: cron would start a third."""
    if who == "alive":
        _name(held, os.getpid())
    elif who == "on another machine":
        _name(held, _ended(), "another.example")
    with pytest.raises(BatchLocked), batch_lock(tmp_path):
        pass
    assert clock.waits == []


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"pid": 1e999, "host": "h"}', b"[" * 4000, b"\xff"])
def test_a_lock_file_may_hold_anything(tmp_path: Path, held: int, clock: Clock, text: bytes) -> None:
    """It is for people; who holds the lock is told as not known."""
    os.pwrite(held, text, 0)
    with pytest.raises(BatchLocked, match="its pid is not known"), batch_lock(tmp_path):
        pass
    assert clock.waits == []
