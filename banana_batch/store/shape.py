"""The state file's own tables, indexes, triggers and views: ours, and nothing beside them.

A file from elsewhere may bring a trigger that rewrites a request, or lack the one that refuses a second settlement:
`trusted_schema` keeps foreign functions from being called, not foreign statements from being run.
"""

import os
import re
import sqlite3
import stat
from functools import lru_cache
from pathlib import Path

from banana_batch.errors import DiskError

_COMMENT = re.compile(r"--[^\n]*")
_SPACE = re.compile(r"\s+")


def schema_script() -> str:
    """Return the statements that make an empty state.

    Raises:
        DiskError: this program's own file can't be read.
    """
    try:
        return Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
    except OSError as failed:
        raise DiskError(f"schema.sql of this program can't be read: {failed.strerror}", "install it anew") from failed


@lru_cache(maxsize=1)
def _ours() -> frozenset[tuple[str, str, str]]:
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(schema_script())
        return _shape(db)
    finally:
        db.close()


def _shape(db: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    rows = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    # Comments and spaces may change between versions; what is said may not, without a migration.
    return frozenset((kind, name, _SPACE.sub(" ", _COMMENT.sub("", sql or "")).strip()) for kind, name, sql in rows)


def foreign_parts(db: sqlite3.Connection) -> list[str]:
    """Return what a state file has that ours has not, lacks, or has otherwise: `trigger attempts_stay` …"""
    return sorted({f"{kind} {name}" for kind, name, _ in _shape(db) ^ _ours()})


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
