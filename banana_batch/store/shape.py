"""The state file's own tables, indexes, triggers and views: ours, and nothing beside them.

A file from elsewhere may bring a trigger that rewrites a request, or lack the one that refuses a second settlement:
`trusted_schema` keeps foreign functions from being called, not foreign statements from being run.
"""

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path

from banana_batch.errors import DiskError

# Triggers as an older version had them; the rest was the same.
_FORMER = {
    1: """
CREATE TRIGGER jobs_move_along_the_table BEFORE UPDATE OF state ON jobs
WHEN OLD.state || '>' || NEW.state NOT IN (
  'pending>sending',
  'sending>pending', 'sending>failed', 'sending>paid', 'sending>in_doubt',
  'paid>done', 'paid>lost',
  'in_doubt>pending', 'in_doubt>paid', 'in_doubt>dropped',
  'failed>pending', 'dropped>pending',
  'done>paid')
BEGIN SELECT RAISE(ABORT, 'no such transition'); END;

CREATE TRIGGER attempts_settle_once BEFORE UPDATE OF outcome ON attempts
WHEN OLD.outcome || '>' || NEW.outcome NOT IN (
  'sending>not_sent', 'sending>refused', 'sending>paid', 'sending>unpriced', 'sending>doubt',
  'doubt>charged', 'doubt>not_charged', 'doubt>paid')
BEGIN SELECT RAISE(ABORT, 'an attempt is settled once'); END;
"""
}

_COMMENT = re.compile(r"--[^\n]*")
_SPACE = re.compile(r"\s+")
_TRIGGER = re.compile(r"CREATE TRIGGER (\w+)")


def schema_script() -> str:
    """Return the statements that make an empty state.

    Raises:
        DiskError: this program's own file can't be read.
    """
    try:
        return Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
    except OSError as failed:
        raise DiskError(f"schema.sql of this program can't be read: {failed.strerror}", "install it anew") from failed


@contextmanager
def _made(version: int | None) -> Iterator[sqlite3.Connection]:
    """Yield an empty state as a version made it; None: this one."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema_script())
        former = _FORMER.get(version or 0, "")
        for name in _TRIGGER.findall(former):
            db.execute(f"DROP TRIGGER {name}")
        db.executescript(former)
        yield db


@lru_cache(maxsize=2)
def _shape_of(version: int | None) -> frozenset[tuple[str, str, str]]:
    with _made(version) as db:
        return _shape(db)


def migration(version: int) -> str:
    """Return the statements that lead from an older version to this one."""
    names = _TRIGGER.findall(_FORMER[version])
    with _made(None) as db:
        ours = [db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0] for name in names]
    return "".join(f"DROP TRIGGER {name}; {sql};\n" for name, sql in zip(names, ours, strict=True))


def _shape(db: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    rows = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    # Comments and spaces may change between versions; what is said may not, without a migration.
    return frozenset((kind, name, _SPACE.sub(" ", _COMMENT.sub("", sql or "")).strip()) for kind, name, sql in rows)


def is_known(version: int) -> bool:
    """Tell whether an older version's state can be taken over."""
    return version in _FORMER


def foreign_parts(db: sqlite3.Connection, version: int) -> list[str]:
    """Return what a state file has that ours of its version has not, lacks, or has otherwise: `trigger attempts_stay` …

    Args:
        version: An older one that is known; any other is this one.
    """
    known = _shape_of(version if is_known(version) else None)
    return sorted({f"{kind} {name}" for kind, name, _ in _shape(db) ^ known})


def odd_file(path: Path) -> str | None:
    """Return why a state file, or one beside it, can't be opened safely: SQLite would follow a symlink."""
    for ending in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + ending)
        try:
            mode = os.lstat(file).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            return f"{file.name} is {'a symlink' if stat.S_ISLNK(mode) else 'no regular file'}"
    return None
