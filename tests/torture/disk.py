"""Small ext4 file systems in files of their own: to be cut off, copied and filled. Needs root and loop devices."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def missing() -> str | None:
    """Return why there can be none here. Where root and loop devices are there and do not work, suites fail."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    return None if shutil.which("mkfs.ext4") else "mkfs.ext4 is not installed"


def make(image: Path, megabytes: int) -> None:
    """Make an empty file system, with little room lost to its own tables."""
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    _do("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-N", "128", "-E", "lazy_itable_init=0", str(image))


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """Mount a file system beside its file; its journal is replayed as after a power cut."""
    place = image.with_suffix(".mounted")
    place.mkdir(exist_ok=True)
    _do("mount", "-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        _do("umount", str(place))


def fill(folder: Path, left: int) -> Path:
    """Take room away until `left` bytes are free; return the file that holds it."""
    filler = folder / "filler"
    found = os.statvfs(folder)
    take = found.f_bavail * found.f_frsize - left
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if take > 0:
            os.posix_fallocate(descriptor, 0, take)
        os.fsync(descriptor)
    except OSError:
        pass  # somebody else took some meanwhile: full is full
    finally:
        os.close(descriptor)
    return filler


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
