"""Replacing a file whole or not at all.

Order: hidden temporary file in the same folder, fsync, rename, fsync of the folder.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from banana_batch.errors import DiskError

_SUFFIX = ".part"
_STALE_S = 3600.0
_BUFFER_BYTES = 256 * 1024


@contextmanager
def replaced(folder: Path | int, name: str) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `name` when the block ends well, and vanishes when not.

    Args:
        folder: The folder, or an open descriptor of it; it must exist.
        name: File name in it.

    Raises:
        DiskError: it could not be written; the old file is as it was.
    """
    try:
        with _opened(folder) as folder_fd:
            _sweep(folder_fd, name)
            temporary = f".{name}.{secrets.token_hex(4)}{_SUFFIX}"
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
                with open(fd, "wb", buffering=_BUFFER_BYTES) as file:
                    yield file
                    file.flush()
                    os.fsync(fd)
                os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder_fd)
                raise
            os.fsync(folder_fd)
    except OSError as error:
        raise DiskError(
            f"{name} can't be written: {error.strerror}",
            "Free some space; the state file has it all, and the next run writes it again",
        ) from error


@contextmanager
def _opened(folder: Path | int) -> Iterator[int]:
    if isinstance(folder, int):
        yield folder
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _sweep(folder_fd: int, name: str) -> None:
    """Remove what killed writers left; a living one touches its file all the time."""
    limit_s = time.time() - _STALE_S
    for entry in os.listdir(folder_fd):
        if entry.startswith(f".{name}.") and entry.endswith(_SUFFIX):
            with suppress(OSError):
                if os.stat(entry, dir_fd=folder_fd, follow_symlinks=False).st_mtime < limit_s:
                    os.unlink(entry, dir_fd=folder_fd)
