"""What an earlier run left in the output folder, and the hashes that `verify` compares.

Rule 1: parts are removed: what they held is fetched again, for free.
Rule 2: a final name without DONE is examined and adopted, or moved to `conflicts/`; it is never deleted.
Rule 3: nothing here opens a network connection or imports one. All of it blocks.
"""

import errno
import os
import stat
from pathlib import Path

from banana_batch.errors import DiskError
from banana_batch.models import PaidImage, StoredImage

from . import names
from .files import hash_open, open_file, set_aside
from .folders import Folders, open_below, open_out
from .oddities import oddities
from .verify import Whole, examine_open


def remove_parts(out: Path) -> int:
    """Delete what a crash left of images on their way; return how many. No walk over finished folders.

    Raises:
        OutputError: the output folder can't be used safely.
        DiskError: it can't be read or changed.
    """
    folders = Folders(out)
    try:
        with os.scandir(folders.images) as entries:
            stale = [entry.name for entry in entries if names.PART.fullmatch(entry.name)]
        for name in stale:
            os.unlink(name, dir_fd=folders.images)
    except OSError as failure:
        raise _unusable(out / names.IMAGES, failure) from None
    finally:
        folders.close()
    return len(stale)


def adopt(out: Path, image: PaidImage, known_sha256: str | None = None) -> StoredImage | None:
    """Take over an image that lies under its final name although its job is only `paid`.

    A run that was killed between the last sync and its commit leaves such a file. It was given its name only after
    it was whole and synced, so a whole image under the job's own name is its image; what is not whole is somebody
    else's and goes to `conflicts/`.

    Args:
        known_sha256: Of the job's image when it was done, hexadecimal: where a repair was cut off, only that is its
            image.

    Raises:
        OutputError: the output folder can't be used safely, or the image's stem is no file name.
        DiskError: the disk can't be read or changed.
    """
    place, stem = names.split_stem(image.index, image.stem)
    folders = Folders(out)
    try:
        folder = _existing(folders.out, place)
        if folder is None:
            return None
        try:
            return _adopt_from(folders, folder, place, stem, image, known_sha256)
        finally:
            os.close(folder)
    except OSError as failure:
        raise _unusable(out / "/".join(place), failure) from None
    finally:
        folders.close()


def _adopt_from(
    folders: Folders, folder: int, place: tuple[str, ...], stem: str, image: PaidImage, known_sha256: str | None
) -> StoredImage | None:
    adopted: StoredImage | None = None
    for content_type in names.EXTENSIONS:
        file = names.file_name(stem, content_type)
        if not _exists(folder, file):
            continue
        found = _stored(folder, file) if adopted is None else None
        if found is None or found[0].content_type != content_type or known_sha256 not in (None, found[1]):
            conflicts = folders.below((names.CONFLICTS,))
            set_aside(folder, file, conflicts, file)
            os.fsync(conflicts)
        else:
            finding, sha256, size = found
            warning = "; ".join(oddities(image, finding, None)) or None
            path = "/".join((*place, file))
            adopted = StoredImage(path, size, sha256, finding.width, finding.height, content_type, warning)
        os.fsync(folder)
    return adopted


def _stored(folder: int, file: str) -> tuple[Whole, str, int] | None:
    """Return what a file holds, made durable; None if it is no whole image."""
    opened = open_file(folder, file)
    if opened is None:
        return None
    fd, size = opened
    try:
        finding = examine_open(fd, size)
        if not isinstance(finding, Whole):
            return None
        os.fsync(fd)
        return finding, hash_open(fd, size), size
    finally:
        os.close(fd)


def rehash(out: Path, path: str) -> tuple[str, int] | None:
    """Return SHA-256 (hexadecimal) and size of a stored image; None if there is no plain file under that path.

    Args:
        path: Relative to `out`, with forward slashes, as in StoredImage; no symlink in it is followed.

    Raises:
        OutputError: the output folder can't be used safely.
        DiskError: the disk can't read the file.
    """
    *place, file = path.split("/")
    root = open_out(out)
    try:
        folder = _existing(root, tuple(place))
        if folder is None:
            return None
        try:
            opened = open_file(folder, file)
        finally:
            os.close(folder)
        if opened is None:
            return None
        fd, size = opened
        try:
            return hash_open(fd, size), size
        finally:
            os.close(fd)
    except OSError as failure:
        raise _unusable(out / path, failure) from None
    finally:
        os.close(root)


def set_changed_aside(out: Path, path: str) -> None:
    """Move a file that is not the image it was to `conflicts/`, so that the image can be fetched again.

    Args:
        path: Relative to `out`, as in StoredImage.

    Raises:
        OutputError, DiskError: as `rehash`.
    """
    *place, file = path.split("/")
    folders = Folders(out)
    try:
        folder = folders.below(tuple(place))
        conflicts = folders.below((names.CONFLICTS,))
        set_aside(folder, file, conflicts, file)
        for changed in (conflicts, folder):
            os.fsync(changed)
    except OSError as failure:
        raise _unusable(out / path, failure) from None
    finally:
        folders.close()


def _existing(root: int, place: tuple[str, ...]) -> int | None:
    """Return a new descriptor of a folder below `root`; None if it is missing, or a symlink on the way."""
    folder = os.dup(root)
    for name in place:
        try:
            below = open_below(folder, name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as failure:
            if failure.errno == errno.ELOOP:
                return None
            raise
        finally:
            os.close(folder)
        folder = below
    return folder


def _exists(folder: int, file: str) -> bool:
    try:
        mode = os.stat(file, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISDIR(mode)


def _unusable(path: Path, failure: OSError) -> DiskError:
    return DiskError(f"{path}: {failure.strerror or type(failure).__name__}", "mend the disk, then run again")
