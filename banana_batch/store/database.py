"""Opening the state file: checked, durable, never started over.

Rule 1: a file that is not ours, newer, too old, or damaged is refused; nothing is repaired in silence.
Rule 2: WAL and synchronous=FULL are read back: a pragma that failed leaves no trace but its answer.
Rule 3: one writing connection, and no checkpoint but its own: with two, SQLite up to 3.51.2 may lose commits. Readers
        open read-only and never take the lock.
"""

import os
import sqlite3
from pathlib import Path

from banana_batch.errors import SettingsError

from .checks import VERSION, check, check_version, damaged, refuse_odd, refusing_damage
from .evidence import lost_commits
from .mounts import remote_kind
from .paths import in_use, state_path, wal_path
from .shape import migrate

# Tables that are STRICT; UPDATE … FROM.
OLDEST_SQLITE = (3, 37)
BUSY_MS = 10_000


def open_writer(out: Path) -> sqlite3.Connection:
    """Open the state for the one run that holds the lock; check and, if it is older, migrate it.

    The connection may be handed to another thread, which then is its only user.

    Raises:
        ManifestError: damaged, not ours, newer, or too old.
        DiskError: it can't be read.
    """
    refuse_odd(out)
    wal = wal_path(out)
    lost = lost_commits(wal)
    if lost:
        raise damaged(out, f"{lost:,} commits lie behind damage in {wal.name}")
    with refusing_damage(out):
        db = connect(state_path(out))
        try:
            check(db, out)
            make_durable(db, out)
            _migrate(db)
        except BaseException:
            db.close()
            raise
        return db


def taken_over(out: Path) -> sqlite3.Connection:
    """Open the state that another process held, checked and closed, from which the lock was taken over.

    Raises:
        ManifestError, DiskError: as `open_writer`.
    """
    with refusing_damage(out):
        return trusted(out)


def trusted(out: Path) -> sqlite3.Connection:
    """Open the state for writing. Nobody else had it since it was checked: it needs no look, of a tenth of a start."""
    db = connect(state_path(out))
    try:
        make_durable(db, out)
    except BaseException:
        db.close()
        raise
    return db


def open_reader(out: Path, *, still: bool = False) -> sqlite3.Connection:
    """Open the state to look at it, also while a run is live; can't write.

    Args:
        still: Leave no file of SQLite's own beside it, if no run is at work. For a look during which one may begin,
            only where `in_use` is asked afterwards.

    Raises:
        ManifestError, DiskError: as `open_writer`.
    """
    refuse_odd(out)
    with refusing_damage(out):
        alone = not in_use(out)
        try:
            return _reader(out, "ro&immutable=1" if still and alone else "ro")
        except sqlite3.OperationalError:
            if not alone or os.access(out, os.W_OK):
                raise
            # A folder where nobody may write: an archive, or a disk that is mounted so.
            return _reader(out, "ro&immutable=1")


def _reader(out: Path, mode: str) -> sqlite3.Connection:
    db = connect(state_path(out), mode)
    try:
        check_version(db, out)
    except BaseException:
        db.close()
        raise
    return db


def refuse_old_sqlite() -> None:
    """Raise SettingsError where SQLite is too old for the state's tables."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise SettingsError(
            f"SQLite {sqlite3.sqlite_version} is too old: {oldest} or later is needed; nothing was changed",
            "use a Python that comes with a newer SQLite: python -c 'import sqlite3; print(sqlite3.sqlite_version)'",
        )


def connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    """Return a connection to a state file that is there, of whatever kind; any thread may use it, one at a time.

    Args:
        mode: SQLite's own words for how it is opened.

    Raises:
        SettingsError: SQLite is too old.
    """
    refuse_old_sqlite()
    uri = f"file:{_uri_path(path)}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    db.row_factory = sqlite3.Row
    # S12: a tampered file may carry views and triggers that call functions.
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA temp_store = FILE")
    return db


def _uri_path(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def refuse_remote(out: Path) -> None:
    """Raise SettingsError where a folder lies on another machine's disk."""
    remote = remote_kind(out)
    if remote is not None:
        raise SettingsError(
            f"{out}: lies on {remote}, another machine's disk, where a state file can't be kept safely",
            "choose an output folder on a local disk: -o DIR",
        )


def make_durable(db: sqlite3.Connection, out: Path) -> None:
    """Let each commit outlast a power cut.

    Raises:
        SettingsError: the file system can't do that.
    """
    refuse_remote(out)
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    db.execute("PRAGMA synchronous = FULL")
    level = db.execute("PRAGMA synchronous").fetchone()[0]
    if mode != "wal" or level != 2:
        raise SettingsError(
            f"{out}: this file system can't hold a durable state file (journal {mode}, synchronous {level})",
            "choose an output folder on a local disk: -o DIR",
        )
    # Fewer, larger checkpoints: each one syncs the whole file once more.
    db.execute("PRAGMA wal_autocheckpoint = 4000")


def _migrate(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        migrate(db, version)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
