"""Whether a state file can be trusted: ours, of a version that is known, whole, and with sums that agree."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from banana_batch.errors import DiskError, ManifestError
from banana_batch.text import printable

from .paths import STATE_NAME, state_path
from .queries import sums_agree
from .shape import foreign_parts, is_known, odd_file

APPLICATION_ID = 0x42414E42
VERSION = 2

# A whole check reads the whole file: above this size only after a run that did not end by itself.
CHECKED_ALWAYS_BYTES = 64 << 20


def check(db: sqlite3.Connection, out: Path) -> None:
    """Raise ManifestError unless the state can be written on: whole, and of one piece."""
    check_version(db, out)
    unclean = db.execute("SELECT 1 FROM runs WHERE ended_us IS NULL ORDER BY run DESC LIMIT 1").fetchone()
    if unclean or state_path(out).stat().st_size <= CHECKED_ALWAYS_BYTES:
        # The full check: the quick one passes over an id that its index has otherwise, and such a job is bought again.
        found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise damaged(out, str(found))
        if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise damaged(out, "its tables do not fit together")
        if not sums_agree(db):
            raise damaged(out, "its sums are not those of its requests")


def check_version(db: sqlite3.Connection, out: Path) -> None:
    """Raise ManifestError unless the state was made by this program, as it makes them, and not by a newer one."""
    ours = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if ours != APPLICATION_ID:
        raise damaged(out, "it is no state file of this program")
    if version > VERSION:
        raise ManifestError(
            f"{state_path(out)}: written by a newer version (state version {version}, this one knows up to {VERSION})",
            "use that version, or a newer one; nothing was changed",
        )
    if version < VERSION and not is_known(version):
        raise damaged(out, f"state version {version} is not known")
    foreign = foreign_parts(db, version)
    if foreign:
        raise damaged(out, f"not as it was made: {printable(', '.join(foreign), 200)}")


def refuse_odd(out: Path) -> None:
    """Raise ManifestError where the state, or a file beside it, is no plain file."""
    odd = odd_file(state_path(out))
    if odd is not None:
        raise damaged(out, odd)


def damaged(out: Path, found: str) -> ManifestError:
    """Return the refusal of a state file that can't be trusted."""
    path = state_path(out)
    return ManifestError(
        f"{path}: damaged ({found}); nothing was sent and nothing was changed",
        f"put back a copy of it; or save what is readable: sqlite3 {path} .recover; a new batch needs another folder",
    )


def damaged_somewhere(failed: sqlite3.DatabaseError) -> ManifestError:
    """Return the same where the damage shows only while the file is read."""
    return ManifestError(
        f"the batch's {STATE_NAME} is damaged ({failed}); nothing was changed",
        f"put back a copy of it; or save what is readable: sqlite3 {STATE_NAME} .recover",
    )


@contextlib.contextmanager
def refusing_damage(out: Path) -> Iterator[None]:
    """Tell what SQLite says of a state as what it is to the user: ManifestError or DiskError."""
    try:
        yield
    except sqlite3.OperationalError as failed:
        if "no such" in str(failed) or "decode" in str(failed):
            raise damaged(out, str(failed)) from failed
        raise DiskError(f"{state_path(out)}: {failed}", "mend the disk or the permissions, then run again") from failed
    except (sqlite3.DatabaseError, UnicodeDecodeError) as failed:
        raise damaged(out, str(failed)) from failed
