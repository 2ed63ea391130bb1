"""Opening the state file: checked, durable, never started over.

Rule 1: a file that is not ours, newer, too old, or damaged is refused; nothing is repaired in silence.
Rule 2: WAL and synchronous=FULL are read back: a pragma that failed leaves no trace but its answer.
Rule 3: one writing connection, and no checkpoint but its own: with two, SQLite up to 3.51.2 may lose commits. Readers
        open read-only and never take the lock.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from banana_batch.errors import DiskError, ManifestError, OutputError, SettingsError
from banana_batch.text import printable

from .evidence import lost_commits
from .mounts import remote_kind
from .queries import sums_agree
from .shape import foreign_parts, is_known, migrate, odd_file, schema_script

STATE_NAME = "state.sqlite3"
IMAGES_NAME = "images"
APPLICATION_ID = 0x42414E42
VERSION = 2
# Tables that are STRICT; UPDATE … FROM.
OLDEST_SQLITE = (3, 37)
BUSY_MS = 10_000
_LOGS = ("-wal", "-journal")  # what SQLite names them

# A whole check reads the whole file: above this size only after a run that did not end by itself.
CHECKED_ALWAYS_BYTES = 64 << 20


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
        _refuse_old_sqlite()
        _refuse_remote(self._out)
        with _telling_disk(self._out):
            for leftover in self._files():
                leftover.unlink(missing_ok=True)
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            db = _connect(self._file)
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
        with _telling_disk(self._out):
            _make_durable(db, self._out)
            # The log is opened by what needs it first, and may turn out only then not to be had.
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")

    def publish(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Give the state, once proven, its name, durably; return the connection that goes on with it."""
        with _telling_disk(self._out):
            db.close()
            sync_file(self._file)
            self._file.rename(state_path(self._out))
            # SQLite ignores a failed sync of a directory, so the names are made durable here.
            sync_folder(self._out)
            return _trusted(self._out)

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
    _refuse_old_sqlite()
    db = sqlite3.connect("", isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA temp_store = FILE")
    _make_schema(db)
    return db


def _make_schema(db: sqlite3.Connection) -> None:
    db.executescript(f"BEGIN IMMEDIATE; {schema_script()} COMMIT;")


@contextlib.contextmanager
def _telling_disk(out: Path) -> Iterator[None]:
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
    with _telling_disk(out):
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


def open_writer(out: Path) -> sqlite3.Connection:
    """Open the state for the one run that holds the lock; check and, if it is older, migrate it.

    The connection may be handed to another thread, which then is its only user.

    Raises:
        ManifestError: damaged, not ours, newer, or too old.
        DiskError: it can't be read.
    """
    _refuse_odd(out)
    lost = lost_commits(state_path(out).with_name(f"{STATE_NAME}-wal"))
    if lost:
        raise damaged(out, f"{lost:,} commits lie behind damage in {STATE_NAME}-wal")
    with _refusing_damage(out):
        db = _connect(state_path(out))
        try:
            _check(db, out)
            _make_durable(db, out)
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
    with _refusing_damage(out):
        return _trusted(out)


def _trusted(out: Path) -> sqlite3.Connection:
    """Open the state for writing. Nobody else had it since it was checked: it needs no look, of a tenth of a start."""
    db = _connect(state_path(out))
    try:
        _make_durable(db, out)
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
    _refuse_odd(out)
    with _refusing_damage(out):
        alone = not in_use(out)
        try:
            return _reader(out, "ro&immutable=1" if still and alone else "ro")
        except sqlite3.OperationalError:
            if not alone or os.access(out, os.W_OK):
                raise
            # A folder where nobody may write: an archive, or a disk that is mounted so.
            return _reader(out, "ro&immutable=1")


def in_use(out: Path) -> bool:
    """Tell whether some of the state stands in its log: a run is at work, or was cut off."""
    return state_path(out).with_name(f"{STATE_NAME}-wal").exists()


def _reader(out: Path, mode: str) -> sqlite3.Connection:
    db = _connect(state_path(out), mode)
    try:
        _check_version(db, out)
    except BaseException:
        db.close()
        raise
    return db


def _refuse_old_sqlite() -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise SettingsError(
            f"SQLite {sqlite3.sqlite_version} is too old: {oldest} or later is needed; nothing was changed",
            "use a Python that comes with a newer SQLite: python -c 'import sqlite3; print(sqlite3.sqlite_version)'",
        )


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    _refuse_old_sqlite()
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


def _refuse_remote(out: Path) -> None:
    remote = remote_kind(out)
    if remote is not None:
        raise SettingsError(
            f"{out}: lies on {remote}, another machine's disk, where a state file can't be kept safely",
            "choose an output folder on a local disk: -o DIR",
        )


def _make_durable(db: sqlite3.Connection, out: Path) -> None:
    _refuse_remote(out)
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


def _check(db: sqlite3.Connection, out: Path) -> None:
    _check_version(db, out)
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


def _check_version(db: sqlite3.Connection, out: Path) -> None:
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


def _refuse_odd(out: Path) -> None:
    odd = odd_file(state_path(out))
    if odd is not None:
        raise damaged(out, odd)


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
def _refusing_damage(out: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as failed:
        if "no such" in str(failed) or "decode" in str(failed):
            raise damaged(out, str(failed)) from failed
        raise DiskError(f"{state_path(out)}: {failed}", "mend the disk or the permissions, then run again") from failed
    except (sqlite3.DatabaseError, UnicodeDecodeError) as failed:
        raise damaged(out, str(failed)) from failed
