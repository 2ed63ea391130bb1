"""One run at a time: a lock that the kernel frees when its holder dies.

`flock` on a file of its own: closing a second descriptor of a database file would drop SQLite's own locks.
"""

import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from banana_batch.errors import BatchLocked, OutputError

LOCK_NAME = ".lock"
_TRIES = 100
# What planned for a run that was killed holds its lock until it comes back from the disk: mostly some milliseconds.
LEFTOVER_S = 5.0
_LOOK_S = 0.01
# No symlink is followed, and a pipe in its place is not waited for.
_PLAIN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextlib.contextmanager
def batch_lock(out: Path, pid: int | None = None) -> Iterator[int]:
    """Hold the batch in `out` for as long as the context lasts, by the descriptor that is yielded.

    It waits for nobody but what a run that has ended already may have left behind, for LEFTOVER_S at most.

    Args:
        pid: Who is told to hold it; None: this process.

    Raises:
        BatchLocked: another process holds it; the message names its pid and host.
        OutputError: the lock file can't be made, or anybody may change the folder.
    """
    _refuse_public(out)
    descriptor = _locked(out)
    try:
        # The holder's name is for people only: the lock itself is the kernel's, so a full disk is no obstacle.
        with contextlib.suppress(OSError):
            # A file that has another name too is not ours alone: it must not be cut off.
            if os.fstat(descriptor).st_nlink == 1:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps({"pid": pid or os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def take_over(out: Path, descriptor: int) -> None:
    """Be the holder of a lock that another process took, and that holds still.

    The system tells of a lock (`holder`) by the process that took it, and in a container not at all once that ended.

    Raises:
        BatchLocked: somebody else took it meanwhile. The system's manual allows for that; its code does not.
    """
    try:
        for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):  # asked for as it is, it stays the other's
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked_by(out, _holder(descriptor)) from None


def _locked_by(out: Path, who: str) -> BatchLocked:
    return BatchLocked(
        f"{out}: another run holds this batch ({who}); nothing was sent",
        f"wait for it to end, or look at it: banana-batch status {out}",
    )


def _refuse_public(out: Path) -> None:
    """Refuse a folder in which any user may swap files while they are written (safety.md, S8)."""
    mode = out.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise OutputError(f"{out}: any user of this machine may change it", f"chmod o-w {out}")


def _locked(out: Path) -> int:
    path = out / LOCK_NAME
    for _ in range(_TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _PLAIN, 0o600)
        except OSError as failed:
            raise OutputError(f"{out}: can't make the lock file: {failed.strerror}") from failed
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            _lock(out, descriptor)
            # A starter whose manifest was bad removes its lock file again: a lock on a removed file locks nobody out.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    stack.pop_all()
                    return descriptor
    raise OutputError(f"{out}: its lock file does not stay")


def _lock(out: Path, descriptor: int) -> None:
    ends_s = time.monotonic() + LEFTOVER_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _runs(descriptor) is not False or time.monotonic() >= ends_s:
                raise _locked_by(out, _holder(descriptor)) from None
            time.sleep(_LOOK_S)
        else:
            return


def holder(out: Path) -> str | None:
    """Return who runs the batch, `pid 4711 on host`; None if nobody does. Takes no lock, not for an instant."""
    path = out / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | _PLAIN)
    except OSError:
        return None
    try:
        return _holder(descriptor) if _is_held(descriptor) else None
    finally:
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    """Look the lock up in the kernel's list; where there is none (macOS), ask the holder's pid."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            return any("FLOCK" in line and f" {device} " in line for line in locks)
    except OSError:
        return _runs(descriptor) is True


def _runs(descriptor: int) -> bool | None:
    """Tell whether the holder's process is there; None: it is not known, or another machine's."""
    named = _named(descriptor)
    if named is None or named[1] != socket.gethostname():
        return None
    try:
        os.kill(named[0], 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _named(descriptor: int) -> tuple[int, str] | None:
    """Return the pid and the host that stand in the lock file."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return int(found["pid"]), str(found["host"])[:100]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):  # it may hold anything
        return None


def _holder(descriptor: int) -> str:
    named = _named(descriptor)
    return "its pid is not known" if named is None else f"pid {named[0]} on {named[1]}"
