"""Single files, by folder descriptor: made exclusively, written whole, named without overwriting.

Rule 1: no symlink is followed and nothing is overwritten, whatever stands in the folder.
Rule 2: an error of fsync is final for its file (after EIO the pages may be marked clean): the part is removed.
Rule 3: a part lies in `images/` itself, so that what a crash leaves is found without a walk over a million files.
"""

import errno
import hashlib
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from banana_batch.models import KEPT_FREE_BYTES

from .names import numbered, part_name
from .verify import WINDOW_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FILE_MODE = 0o600
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO under our name must not block us
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_advise = getattr(os, "posix_fadvise", None)  # on Linux
_NOT_OURS = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR})


def create_part(images: int, index: int) -> int:
    """Create an image's part and return its descriptor.

    A part of the same index is ours and stale (one fetch of an image at a time, one run in a batch): it goes.
    """
    name = part_name(index)
    try:
        return os.open(name, _CREATE, FILE_MODE, dir_fd=images)
    except FileExistsError:
        os.unlink(name, dir_fd=images)
        return os.open(name, _CREATE, FILE_MODE, dir_fd=images)


def write_all(fd: int, data: "ReadableBuffer") -> None:
    """Write all of it; a short write is followed up, so that the next one names the reason.

    Raises:
        OSError: the disk does not take it.
    """
    rest = memoryview(data)
    while rest:
        written = os.write(fd, rest)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest = rest[written:]


def require_room(fd: int, size: int) -> None:
    """Leave the last of the disk to the ledger: an answer comes once, an image can be fetched again.

    Raises:
        OSError: so many bytes do not fit beside it.
    """
    try:
        found = os.fstatvfs(fd)
    except OSError:
        return  # left to the write that fails
    if found.f_blocks and found.f_bavail * found.f_frsize < size + KEPT_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_part(images: int, index: int, body: bytes) -> int:
    """Write a small image's part, ask the disk to begin, and return its descriptor: not durable before its fsync.

    With the writing of a whole group begun, the first fsync commits the journal for all of them, and the others
    find nothing left to do but wait. Where it can't be asked, each fsync writes for itself.

    Raises:
        OSError: it can't be written; nothing is left of it.
    """
    require_room(images, len(body))
    fd = create_part(images, index)
    try:
        write_all(fd, body)
        _spare_memory(fd)
    except OSError:
        os.close(fd)
        remove_part(images, index)
        raise
    return fd


def sync_part(fd: int) -> None:
    """Make what is in a part durable, and let its memory go: nobody reads it again soon.

    The next image takes the same memory: fresh memory for each was a tenth of a job's CPU, and a night's images would
    push out whatever else the system holds there.

    Raises:
        OSError: the disk is full or broken.
    """
    os.fsync(fd)
    _spare_memory(fd)


def _spare_memory(fd: int) -> None:
    """Say that what is in a file is not read soon: the system begins to write it, and lets go of what is written."""
    if _advise is not None:
        try:  # noqa: SIM105  # quicker than `suppress`, twice an image
            _advise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # an advice, which a system may not take


def remove_part(images: int, index: int) -> None:
    """Remove an image's part, if it is there."""
    with suppress(OSError):  # what can't be removed now is removed at the next start
        os.unlink(part_name(index), dir_fd=images)


def move(source: int, name: str, target: int, new_name: str) -> None:
    """Give a file another name, never over anything.

    Raises:
        FileExistsError: the new name is taken; nothing was changed.
        OSError: the disk does not take it.
    """
    try:
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except OSError as failure:
        if failure.errno == errno.EXDEV:
            _copy_over(source, name, target, new_name)
            return
        if failure.errno not in _NO_LINKS:
            raise
    else:
        os.unlink(name, dir_fd=source)
        return
    # A file system without hard links (exFAT and the like): an empty file holds the name against others.
    os.close(os.open(new_name, _CREATE, FILE_MODE, dir_fd=target))
    try:
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
    except OSError:
        os.unlink(new_name, dir_fd=target)
        raise


def _copy_over(source: int, name: str, target: int, new_name: str) -> None:
    """Move a file to another file system: `images/` may be a disk of its own. A cut leaves both."""
    opened = open_file(source, name)
    if opened is None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    fd, size = opened
    try:
        copy = os.open(new_name, _CREATE, FILE_MODE, dir_fd=target)
        try:
            for offset in range(0, size, WINDOW_BYTES):
                write_all(copy, os.pread(fd, WINDOW_BYTES, offset))
            os.fsync(copy)
        except OSError:
            os.unlink(new_name, dir_fd=target)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(fd)
    os.unlink(name, dir_fd=source)


def set_aside(source: int, name: str, conflicts: int, file: str) -> str:
    """Move a file to `conflicts/` as `file`, or `cat~2.png` …; return its name there.

    Raises:
        OSError: the disk does not take it.
    """
    count = 1
    while True:
        free = numbered(file, count)
        with suppress(FileExistsError):
            move(source, name, conflicts, free)
            return free
        count += 1


def open_file(folder: int, name: str) -> tuple[int, int] | None:
    """Open a file that may be an image of ours; return its descriptor and size, None if there is no plain file.

    Raises:
        OSError: the disk can't read it.
    """
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except OSError as failure:
        if failure.errno in _NOT_OURS:
            return None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    return fd, status.st_size


def hash_open(fd: int, size: int) -> str:
    """Return the SHA-256 of an open file's first `size` bytes, hexadecimal."""
    digest = hashlib.sha256()
    for offset in range(0, size, WINDOW_BYTES):
        digest.update(os.pread(fd, min(WINDOW_BYTES, size - offset), offset))
    return digest.hexdigest()
