"""A batch before its first plan is whole, and one that is never to be."""

import contextlib
import os
import sqlite3
from pathlib import Path

from . import database
from .paths import STATE_NAME, state_path, sync_file, sync_folder, telling_disk
from .shape import schema_script


class Unborn:
    """A batch on its way into the world: its state file has another name until its first plan is whole.

    So a bad manifest leaves nothing behind, and a state file that is empty or half made is never ours.

    Each of its methods but `discard` raises:
        OutputError: the folder or the file can't be made.
        SettingsError: the file system can't hold a durable SQLite file.
        DiskError: full, or broken.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._file = out / f".{STATE_NAME}.new"

    def open(self) -> sqlite3.Connection:
        """Return a connection to the new state, to be planned into."""
        database.refuse_old_sqlite()
        database.refuse_remote(self._out)
        with telling_disk(self._out):
            for leftover in self._files():
                leftover.unlink(missing_ok=True)
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            db = database.connect(self._file)
            try:
                # Until it has its name, nothing of it has to outlast a crash: the plan is written once, and to no log.
                db.execute("PRAGMA journal_mode = MEMORY")
                db.execute("PRAGMA synchronous = OFF")
                _make_schema(db)
            except BaseException:
                self.discard(db)
                raise
            return db

    def prove(self, db: sqlite3.Connection) -> None:
        """See that the state can be kept here durably, while it has no name yet."""
        with telling_disk(self._out):
            database.make_durable(db, self._out)
            # The log is opened by what needs it first, and may turn out only then not to be had.
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")

    def publish(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Give the state, once proven, its name, durably; return the connection that goes on with it."""
        with telling_disk(self._out):
            db.close()
            sync_file(self._file)
            self._file.rename(state_path(self._out))
            # SQLite ignores a failed sync of a directory, so the names are made durable here.
            sync_folder(self._out)
            return database.trusted(self._out)

    def discard(self, db: sqlite3.Connection) -> None:
        """Forget it. What can't be removed now is removed at the next start."""
        db.close()
        for leftover in self._files():
            with contextlib.suppress(OSError):
                leftover.unlink()

    def _files(self) -> list[Path]:
        return [self._file.with_name(self._file.name + ending) for ending in ("", "-wal", "-shm")]


def nowhere() -> sqlite3.Connection:
    """Return an empty state without a name: what a plan is held against where there is no batch yet.

    What outgrows a little memory lies in a file of SQLite's own, which goes with the connection.

    Raises:
        SettingsError: SQLite is too old.
    """
    database.refuse_old_sqlite()
    db = sqlite3.connect("", isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA temp_store = FILE")
    _make_schema(db)
    return db


def _make_schema(db: sqlite3.Connection) -> None:
    db.executescript(f"BEGIN IMMEDIATE; {schema_script()} COMMIT;")
