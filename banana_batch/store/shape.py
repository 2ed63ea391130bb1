"""The state file's own tables, indexes, triggers and views: ours, and nothing beside them.

A file from elsewhere may bring a trigger that rewrites a request, or lack the one that refuses a second settlement:
`trusted_schema` keeps foreign functions from being called, not foreign statements from being run.
"""

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from banana_batch.errors import DiskError

_COMMENT = re.compile(r"--[^\n]*")
_SPACE = re.compile(r"\s+")
_CREATES = re.compile(r"^CREATE (?:\w+ )?(?:TABLE|INDEX|TRIGGER|VIEW) (\w+)", re.MULTILINE)
_FORMER = frozenset({1})  # versions that can be taken over

Shape = frozenset[tuple[str, str, str]]


def is_known(version: int) -> bool:
    """Tell whether an older version's state can be taken over."""
    return version in _FORMER


def schema_script(version: int | None = None) -> str:
    """Return the statements that make an empty state, as a former version did or, with None, as this one does.

    Raises:
        DiskError: this program's own file can't be read.
    """
    ours = _file("schema.sql")
    if version is None:
        return ours
    former = {_name(statement): statement for statement in _statements(_file(f"schema_{version}.sql"))}
    return "".join(former.get(_name(statement), statement) for statement in _statements(ours))


def _file(name: str) -> str:
    try:
        return Path(__file__).with_name(name).read_text(encoding="utf-8")
    except OSError as failed:
        raise DiskError(f"{name} of this program can't be read: {failed.strerror}", "install it anew") from failed


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _name(statement: str) -> str:
    found = _CREATES.search(statement)
    return found[1] if found else statement


@lru_cache(maxsize=2)
def _shape_of(version: int | None) -> Shape:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema_script(version))
        return _shape(db)


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Give a former version's state, inside a transaction, the statements of this one.

    Its rows stay as they are: only what is asked of them is put otherwise. So a table's text is replaced, which is
    what SQLite's documentation advises for a CHECK (lang_altertable.html, section 7).
    """
    changed = {name for _, name, _ in _shape_of(version) ^ _shape_of(None)}
    db.execute("PRAGMA writable_schema = ON")
    for statement in _statements(schema_script()):
        name = _name(statement)
        if name not in changed:
            continue
        text = _COMMENT.sub("", statement).strip().removesuffix(";")
        if text.startswith("CREATE TRIGGER"):
            db.execute(f"DROP TRIGGER {name}")
            db.execute(text)
        else:
            db.execute("UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = ?", (text, name))
    # Every connection reads the tables anew.
    (known,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute(f"PRAGMA schema_version = {known + 1}")
    db.execute("PRAGMA writable_schema = OFF")


def _shape(db: sqlite3.Connection) -> Shape:
    rows = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    # Comments and spaces may change between versions; what is said may not, without a migration.
    return frozenset((kind, name, _SPACE.sub(" ", _COMMENT.sub("", sql or "")).strip()) for kind, name, sql in rows)


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
