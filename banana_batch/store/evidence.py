"""Whether a state file is the one that its folder and its log tell of. One that fell behind would buy again.

Rule 1: a file that lost commits is refused, however whole it looks: SQLite passes over the rest of a damaged `-wal`
        in silence, and without its `-wal` a file is whole and old.
Rule 2: what a power cut may leave is no damage: only the last, never synced commit can be torn.
Rule 3: evidence is looked for, never demanded: a folder without images and log proves nothing.
"""

import contextlib
import json
import os
import sqlite3
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from banana_batch.errors import ManifestError

from .ballast import BALLAST_NAME
from .paths import IMAGES_NAME

LOG_NAME = "run.log"
_WAL_HEADER, _FRAME_HEADER = 32, 24
_PAGE_BYTES = 4096
_WAL_MAGIC = 0x377F0682  # the lowest bit tells the byte order of the checksums
_LARGEST_BYTES = 64 << 20
_TAIL_BYTES = 256 << 10
_SHOWN = 3
_FOLDER_SIZE = 10_000  # from this index on images lie in numbered folders (images/names.py; a test holds the two equal)

# An image has its name only after its job was made `paid`: any other state has forgotten that.
_NO_IMAGE_YET = "('pending', 'sending', 'in_doubt', 'failed', 'dropped')"


def lost_commits(wal: Path) -> int:
    """Return how many commits lie behind damage in a `-wal`, so that SQLite would pass over them; 0 where it is whole.

    One alone is no damage: the last commit before a power cut may be on disk in part.
    """
    try:
        # Larger only by the one commit that takes a huge manifest in, before anything is sent (16 MB are folded away).
        if wal.stat().st_size > _LARGEST_BYTES:
            return 0
        with wal.open("rb") as file:
            return _lost_commits(file.read())
    except OSError:
        return 0


def _lost_commits(wal: bytes) -> int:
    if len(wal) < _WAL_HEADER:
        return 0
    magic, _, page_bytes, _ = struct.unpack(">4I", wal[:16])
    swapped = bool(magic & 1) == (sys.byteorder == "little")
    sums = _checksum(wal[:24], (0, 0), swapped=swapped)
    whole = magic & ~1 == _WAL_MAGIC and sums == struct.unpack(">2I", wal[24:_WAL_HEADER])
    size = _FRAME_HEADER + (page_bytes if whole else _PAGE_BYTES)
    frames = [wal[start : start + size] for start in range(_WAL_HEADER, len(wal) - size + 1, size)]
    mark = wal[16:24]
    if not whole and frames:
        mark = Counter(frame[8:16] for frame in frames).most_common(1)[0][0]
    good = _good_frames(frames, mark, sums, swapped=swapped) if whole else 0
    # What lies behind a damaged frame goes on from there. What commits left that failed does not, as each was written
    # over the one before, at the same place: each such remainder is one commit at most.
    lost = remainder = 0
    for at in range(good, len(frames)):
        goes_on = not whole or (at > good and _follows(frames, at, sums, swapped=swapped))
        # A frame that ends a commit states the size of the file; one of an earlier time has another mark.
        remainder = (remainder if goes_on else 0) + (frames[at][4:8] != bytes(4) and frames[at][8:16] == mark)
        lost = max(lost, remainder)
    return lost if lost > 1 else 0


def _follows(frames: list[bytes], at: int, head: tuple[int, int], *, swapped: bool) -> bool:
    """Tell whether a frame was written after the one before it, whose own check sum may be what is damaged."""
    stated = _stated(frames[at - 1])
    before = _stated(frames[at - 2]) if at > 1 else head
    return any(
        _sums(frames[at], start, swapped=swapped) == _stated(frames[at])
        for start in (stated, _sums(frames[at - 1], before, swapped=swapped))
    )


def _stated(frame: bytes) -> tuple[int, int]:
    return struct.unpack(">2I", frame[16:_FRAME_HEADER])


def _sums(frame: bytes, start: tuple[int, int], *, swapped: bool) -> tuple[int, int]:
    return _checksum(frame[:8] + frame[_FRAME_HEADER:], start, swapped=swapped)


def _good_frames(frames: list[bytes], mark: bytes, sums: tuple[int, int], *, swapped: bool) -> int:
    """Return how many frames SQLite would read: until the first that is of another time, or damaged."""
    for number, frame in enumerate(frames):
        sums = _sums(frame, sums, swapped=swapped)
        if frame[8:16] != mark or sums != _stated(frame):
            return number
    return len(frames)


def _checksum(data: bytes, sums: tuple[int, int], *, swapped: bool) -> tuple[int, int]:
    """Go on with SQLite's checksum of a `-wal`."""
    words = array("I", data)
    if swapped:
        words.byteswap()
    first, second = sums
    numbers = iter(words)
    for one, other in zip(numbers, numbers, strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def refuse_the_past(db: sqlite3.Connection, out: Path) -> None:
    """Refuse a state that fell behind its folder.

    The images are looked through after a run that died, and where no log tells of any request.

    Raises:
        ManifestError: the log tells of requests, or the folder holds images, that the state does not know.
    """
    known = db.execute("SELECT ifnull(max(attempt), 0) FROM attempts").fetchone()[0]
    told = _last_attempt(out / LOG_NAME)
    if told > known:
        raise ManifestError(
            f"{out}: the state file is older than run.log: it knows of {known:,} requests, the log of {told:,};"
            " nothing was sent",
            "put the newer state file back, with its -wal; to go on with this one, and to pay again for what it does"
            f" not know, move {out / LOG_NAME} away",
        )
    if not db.execute(f"SELECT EXISTS (SELECT 1 FROM jobs WHERE state IN {_NO_IMAGE_YET})").fetchone()[0]:
        return
    # The ballast is given back at the end of each run, and no lost commit brings it back.
    unended = db.execute("SELECT ended_us IS NULL FROM runs ORDER BY run DESC LIMIT 1").fetchone()
    died = (out / BALLAST_NAME).exists() or (unended and unended[0])
    if died or not told:
        _refuse_unknown_images(db, out)


def set_log_aside(out: Path) -> None:
    """Give the log of a batch that was here before another name: it tells nothing of the one that begins."""
    log = out / LOG_NAME
    if _last_attempt(log):
        with contextlib.suppress(OSError):
            log.replace(out / f"{LOG_NAME}.old")


def _plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _last_attempt(log: Path) -> int:
    """Return the number of the last request that the log tells of; 0 where it tells of none."""
    # Nothing that was put in the log's place is followed or waited for; a pipe ends at the seek.
    with contextlib.suppress(OSError), open(log, "rb", opener=_plainly) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(line)
                attempt = found.get("attempt") if isinstance(found, dict) else None
                if type(attempt) is int:
                    return attempt
    return 0


def _refuse_unknown_images(db: sqlite3.Connection, out: Path) -> None:
    db.execute("CREATE TEMP TABLE found (stem TEXT PRIMARY KEY) WITHOUT ROWID")
    db.executemany("INSERT OR IGNORE INTO found VALUES (?)", ((stem,) for stem in _stems(out / IMAGES_NAME, "")))
    rows = db.execute(
        f"SELECT place AS stem, count(*) OVER () AS count FROM ("
        f" SELECT iif(job < {_FOLDER_SIZE}, '', job / {_FOLDER_SIZE} || '/') || stem AS place FROM jobs"
        f" WHERE state IN {_NO_IMAGE_YET} AND twin IS NULL)"
        f" WHERE place IN (SELECT stem FROM found) LIMIT {_SHOWN}"
    ).fetchall()
    db.execute("DROP TABLE found")
    if rows:
        names = ", ".join(f"images/{row['stem']}" for row in rows)
        more = f" and {rows[0]['count'] - len(rows):,} more" if rows[0]["count"] > len(rows) else ""
        raise ManifestError(
            f"{out}: the state file is older than its images: there are {names}{more}, and it does not know that"
            " they were paid for; nothing was sent",
            "put the newer state file back, with its -wal; to go on with this one, and to pay for these again,"
            " move them away",
        )


def _stems(folder: Path, prefix: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _stems(folder / entry.name, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name.rpartition(".")[0]
