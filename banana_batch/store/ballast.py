"""Room to give up when the disk is full, so that what was paid for can still be recorded."""

import contextlib
import os
from pathlib import Path

BALLAST_NAME = ".ballast"
BALLAST_BYTES = 4 << 20


def keep(out: Path) -> None:
    """Set 4 MiB aside. Where the disk has no room, or no folder takes it, there is none: a help, not a condition."""
    with contextlib.suppress(OSError):
        descriptor = os.open(out / BALLAST_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
        except (OSError, AttributeError):
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)


def give_up(out: Path) -> None:
    """Give the room back."""
    with contextlib.suppress(OSError):
        (out / BALLAST_NAME).unlink(missing_ok=True)
