"""The folders below the output folder, by descriptor.

Rule 1: OUT is opened once; everything below is reached by descriptor, no symlink followed: whoever swaps a
        folder for a symlink meanwhile leads us nowhere.
Rule 2: a new folder is durable before a file is in it.
Rule 3: one thread at a time asks for folders (the committer's); `images` may be used by any.
"""

import asyncio
import errno
import fcntl
import os
import stat
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from banana_batch.errors import BatchLocked, DiskError, OutputError

from .names import IMAGES

MAX_OPEN = 64  # descriptors of sub-folders kept open
FOLDER_MODE = 0o700
FORMER_S, FORMER_LOOK_S = 10.0, 0.05  # how long, and how often, an earlier run's last group is waited for
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_below(fd: int, name: str) -> int:
    """Open an existing folder in a folder, following no symlink."""
    return os.open(name, _OPEN_FOLDER, dir_fd=fd)


def open_out(out: Path) -> int:
    """Open the output folder itself; its own path may lead over symlinks, those are the user's.

    Raises:
        OutputError: it is missing or no folder, or anybody may rename files in it.
    """
    try:
        fd = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as failure:
        raise OutputError(f"{out}: can't be used as output folder: {failure.strerror}") from None
    return _private(fd, str(out))


def _private(fd: int, shown: str) -> int:
    mode = os.fstat(fd).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        os.close(fd)
        raise OutputError(f"{shown}: any user of this machine may change it", f"chmod o-w {shown}")
    return fd


class Folders:
    """Descriptors of OUT, of `images/`, and of what lies below, made as they are needed.

    Args:
        held: Those of OUT and of `images/`, from whoever opened them.

    Attributes:
        shown: OUT, for messages.

    Raises:
        OutputError: a folder is a symlink, is no folder, or any user may change it.
        DiskError: it can't be made durable.
    """

    def __init__(self, out: Path, held: tuple[int, int] | None = None) -> None:
        self.shown = out
        self._below: OrderedDict[tuple[str, ...], int] = OrderedDict()
        if held is not None:
            self.out, self.images = held
            return
        self.out = open_out(out)
        try:
            self.images = self._open_images()
        except BaseException:
            os.close(self.out)
            raise

    def _open_images(self) -> int:
        shown = f"{self.shown}/{IMAGES}"
        try:
            return _private(_make_below(self.out, IMAGES), shown)
        except (PermissionError, NotADirectoryError) as failure:
            # What O_NOFOLLOW says of a symlink to a folder differs between systems.
            if stat.S_ISLNK(_mode(self.out, IMAGES)):
                raise OutputError(f"{shown}: is a symlink, which is not followed", "use -o for the target") from None
            raise OutputError(f"{shown}: can't be used: {failure.strerror}") from None
        except OSError as failure:
            if failure.errno == errno.ELOOP:
                raise OutputError(f"{shown}: is a symlink, which is not followed", "use -o for the target") from None
            raise DiskError(f"{shown}: can't be made: {failure.strerror}") from None

    def below(self, path: tuple[str, ...]) -> int:
        """Return the descriptor of a folder below OUT, making what is missing. Good until the next `trim`.

        Raises:
            OSError: it can't be made, or is a symlink.
        """
        if path == (IMAGES,):
            return self.images
        known = self._below.get(path)
        if known is not None:
            self._below.move_to_end(path)
            return known
        fd = _make_below(self.below(path[:-1]) if len(path) > 1 else self.out, path[-1])
        self._below[path] = fd
        return fd

    def trim(self) -> None:
        """Close the descriptors least recently used, down to MAX_OPEN."""
        while len(self._below) > MAX_OPEN:
            os.close(self._below.popitem(last=False)[1])

    def close(self) -> None:
        """Close all of them."""
        known = [*self._below.values(), self.images, self.out]
        # Whoever comes late gets EBADF, and never a descriptor that means something else by then.
        self._below.clear()
        self.images = self.out = -1
        for fd in known:
            os.close(fd)


def lock_images(folders: Folders) -> bool:
    """Lock `images/` for as long as its descriptor is open, here or in a process that got it; tell whether it is."""
    try:
        fcntl.flock(folders.images, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where the batch's own could not be taken either
        pass
    return True


async def lock_after_former(folders: Folders) -> None:
    """Lock `images/`; wait for the process of a run that was killed: it may be at its last group still.

    Raises:
        BatchLocked: it does not end.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + FORMER_S
    while not lock_images(folders):
        if loop.time() >= end_s:
            raise BatchLocked(f"{folders.shown}: a process of an earlier run still writes images", "run again later")
        await asyncio.sleep(FORMER_LOOK_S)


def _make_below(parent: int, name: str) -> int:
    try:
        fd = open_below(parent, name)
    except FileNotFoundError:
        with suppress(FileExistsError):  # made meanwhile: a run and its process may need the same one
            os.mkdir(name, FOLDER_MODE, dir_fd=parent)
        fd = open_below(parent, name)
    try:
        os.fsync(parent)  # whoever made it may not have come to that yet
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mode(parent: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except OSError:
        return 0
