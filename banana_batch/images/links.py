"""One image under several names: rows that ask for the same, bought once.

Rule: the same care as for a bought image: a name never overwrites another, and it is durable before anyone says so.
"""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from banana_batch.errors import DiskError, OutputError

from . import names
from .folders import Folders


def link_images(out: Path, wanted: Iterable[tuple[int, str, str]]) -> dict[int, str]:
    """Link stored images under the names of further jobs; return each job's path relative to `out`. Blocks.

    Args:
        wanted: Index and stem of a job, and the path of the image that it shares.

    Raises:
        OutputError: the output folder can't be used safely.
        DiskError: it can't be written.
    """
    folders = Folders(out)
    made: dict[int, str] = {}
    touched: set[int] = set()
    try:
        for index, stem, shared in wanted:
            place, name = names.split_stem(index, stem)
            *from_place, from_name = shared.split("/")
            source, target = folders.below(tuple(from_place)), folders.below(place)
            file = _linked(source, from_name, target, name + PurePosixPath(from_name).suffix)
            touched.add(target)
            made[index] = "/".join((*place, file))
        for folder in touched:
            os.fsync(folder)
    except FileNotFoundError as failed:
        raise OutputError(f"{out}: an image is missing: {failed.filename}", "banana-batch verify --repair") from None
    except OSError as failed:
        raise DiskError(f"{out}: {failed.strerror}", "free some space or mend the disk, then run again") from None
    finally:
        folders.close()
    return made


def _linked(source: int, name: str, target: int, file: str) -> str:
    """Link under the first free name, `cat.png`, `cat~2.png` …; a link that a killed run left is this very image."""
    count = 1
    while True:
        free = names.numbered(file, count)
        try:
            os.link(name, free, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            mine = os.stat(name, dir_fd=source, follow_symlinks=False)
            if not os.path.samestat(mine, os.stat(free, dir_fd=target, follow_symlinks=False)):
                count += 1
                continue
        return free
