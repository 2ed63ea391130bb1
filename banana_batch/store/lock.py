"""One run at a time: a lock that the kernel frees when its holder dies.

`flock` on a file of its own: closing a second descriptor of a database file would drop SQLite's own locks.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from banana_batch.errors import BatchLocked, OutputError

LOCK_NAME = ".lock"


@contextlib.contextmanager
def batch_lock(out: Path) -> Iterator[None]:
    """Hold the batch in `out` for as long as the context lasts. Never waits.

    Raises:
        BatchLocked: another process holds it; the message names its pid and host.
        OutputError: the lock file can't be made.
    """
    try:
        descriptor = os.open(out / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as failed:
        raise OutputError(f"{out}: can't make the lock file: {failed.strerror}") from failed
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchLocked(
                f"{out}: another run holds this batch ({_holder(descriptor)}); nothing was sent",
                f"wait for it to end, or look at it: banana-batch status {out}",
            ) from None
        # The holder's name is for people only: the lock itself is the kernel's, so a full disk is no obstacle.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {int(found['pid'])} on {str(found['host'])[:100]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its pid is not known"
