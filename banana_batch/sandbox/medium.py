"""Where the charge log lies: in a file, or in memory, as bytes that only grow at the end."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Protocol

from banana_batch.errors import BatchLocked, SettingsError

_CHUNK_BYTES = 16 * 1024


class Medium(Protocol):
    """Bytes that only grow at the end."""

    def append(self, data: bytes, offset: int) -> None:
        """Write at the end, durably; after an OSError nothing of it is left."""

    def read(self, count: int, offset: int) -> bytes:
        """Return up to `count` bytes."""

    def close(self) -> None:
        """Let go of it."""


class _Memory:
    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, data: bytes, offset: int) -> None:  # noqa: ARG002  # its end is the offset
        self._data += data

    def read(self, count: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + count])

    def close(self) -> None:
        pass  # stays readable for whoever counts afterwards


class _File:
    def __init__(self, path: Path) -> None:
        folder = path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, f"{path.name} is no regular file")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise BatchLocked(
                f"another sandbox serves {folder}", "End it, or give this one a folder of its own."
            ) from None
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(parent)
        os.close(parent)

    def trim(self) -> int:
        """Cut off a torn last line; return the length that is left."""
        end = os.fstat(self._fd).st_size
        whole = line_start(self, end)
        if whole != end:
            os.ftruncate(self._fd, whole)
        return whole

    def append(self, data: bytes, offset: int) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], offset + written)
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, offset)
            raise

    def read(self, count: int, offset: int) -> bytes:
        return os.pread(self._fd, count, offset)

    def close(self) -> None:
        os.close(self._fd)


def line_start(medium: Medium, end: int) -> int:
    """Return the offset after the last line end before `end`, 0 where there is none."""
    while end > 0:
        start = max(0, end - _CHUNK_BYTES)
        found = medium.read(end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def line_at(medium: Medium, offset: int) -> bytes:
    """Return the line that starts at `offset`, without its end; empty past the log's end."""
    parts: list[bytes] = []
    while True:
        part = medium.read(_CHUNK_BYTES, offset)
        found = part.find(b"\n")
        if found >= 0 or not part:
            parts.append(part[: max(found, 0)])
            return b"".join(parts)
        parts.append(part)
        offset += len(part)


def open_medium(path: Path | None) -> tuple[Medium, int]:
    """Open the file, without a torn last line, or memory for None; return it with its length.

    Raises:
        BatchLocked: another sandbox has it open.
        SettingsError: it can't be made or used.
    """
    if path is None:
        return _Memory(), 0
    try:
        file = _File(path)
        return file, file.trim()
    except OSError as failed:
        raise SettingsError(f"the sandbox can't use {path.parent}: {failed.strerror}") from failed
