"""Where a batch lies: the names of its files, folders that are there to stay, and what hinders it told apart.

SQLite ignores a failed sync of a folder, so names are made durable here.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from banana_batch.errors import DiskError, ManifestError, OutputError

STATE_NAME = "state.sqlite3"
IMAGES_NAME = "images"
_LOGS = ("-wal", "-journal")  # what SQLite names them


def state_path(out: Path) -> Path:
    """Return where the batch in `out` keeps its state."""
    return out / STATE_NAME


def exists(out: Path) -> bool:
    """Tell whether there is a batch in `out`.

    Raises:
        ManifestError: images, or a part of a state, without it: starting over would pay for what they stand for again.
    """
    if state_path(out).exists():
        return True
    with contextlib.suppress(OSError), os.scandir(out / IMAGES_NAME) as entries:
        if any(not entry.name.startswith(".") for entry in entries):
            raise ManifestError(
                f"{out}: there are images but no {STATE_NAME}: their jobs and what they cost are not known",
                f"put {STATE_NAME} back from a backup, or move {out / IMAGES_NAME} away to start over and pay again",
            )
    for ending in _LOGS:
        log = out / f"{STATE_NAME}{ending}"
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size:  # SQLite would play it back into whatever state comes to lie beside it
                raise ManifestError(
                    f"{out}: there is {log.name} but no {STATE_NAME}: what was paid last may stand there alone",
                    f"put {STATE_NAME} back from a backup, or remove {log} too to start over and pay again",
                )
    return False


def wal_path(out: Path) -> Path:
    """Return where SQLite keeps what was committed and is not in the state itself yet."""
    return out / f"{STATE_NAME}-wal"


def in_use(out: Path) -> bool:
    """Tell whether some of the state stands in its log: a run is at work, or was cut off."""
    return wal_path(out).exists()


@contextlib.contextmanager
def telling_disk(out: Path) -> Iterator[None]:
    """Tell what the system says of an output folder as what it is to the user: DiskError or OutputError."""
    try:
        yield
    except OSError as failed:
        if failed.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise DiskError(f"{out}: {failed.strerror}", "free some space, then run again") from failed
        raise OutputError(f"{out}: can't be used as an output folder: {failed.strerror}") from failed
    except sqlite3.OperationalError as failed:
        raise DiskError(f"{state_path(out)}: {failed}", "free some space or mend the disk, then run again") from failed


def make_folder(out: Path) -> list[Path]:
    """Make a private folder (0700), its parents too, all durable; return those that were made, outermost first.

    Raises:
        OutputError: it can't be made, or is no folder.
        DiskError: full, or broken.
    """
    made = []
    with telling_disk(out):
        for folder in (*reversed(out.absolute().parents), out.absolute()):
            if not folder.exists():
                with contextlib.suppress(FileExistsError):  # another run may begin just now
                    folder.mkdir(mode=0o700)
                    made.append(folder)
                sync_folder(folder.parent)
        if not out.is_dir():
            raise OutputError(f"{out}: is no folder")
    return made


def sync_file(file: Path) -> None:
    """Make what is in a file durable. Raises OSError."""
    _sync(file, os.O_NOFOLLOW)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    _sync(folder, os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
