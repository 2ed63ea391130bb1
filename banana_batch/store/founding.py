"""The first manifest of a batch: its rows are the jobs, so they are written where they stay, and once.

Rule 1: what is refused leaves nothing behind: the batch has no name yet, and its maker forgets it (`unborn.Unborn`).
"""

import sqlite3
from collections.abc import Iterable

from banana_batch.errors import Problem
from banana_batch.models import PlannedJob

from .difference import Difference, KindCount
from .listed import Listed, stem_sql

_BY_ID = "jobs_by_id"
_LIFTED = (_BY_ID, "jobs_by_state", "jobs_are_born_pending")


class Founder(Listed):
    """Fills a batch that has no job yet: a row's place is its index.

    Args:
        db: A connection to an empty state that nobody else uses.
        index_width: Digits of the index in file names.
    """

    def __init__(self, db: sqlite3.Connection, index_width: int) -> None:
        super().__init__(
            db,
            "jobs",
            "kinds",
            "INSERT INTO jobs (job, id, position, key, kind, stem, request, refs, unsent, meta) VALUES"
            f" (?1, ?2, ?1, ?3, ?4, {stem_sql('?5', '?1', index_width)}, ?6, nullif(?7, ''), nullif(?8, ''),"
            " nullif(?9, ''))",
        )

    def stage(self, jobs: Iterable[PlannedJob], *, default_names: bool) -> list[Problem]:
        """See Listed. With problems, nothing of the rows is kept."""
        self._db.execute("BEGIN IMMEDIATE")
        lifted = self._lift()
        self._take(jobs)
        problems = self._identify(lifted.pop(_BY_ID))
        if not problems and (not default_names or self._named):
            problems = list(self._collisions("SELECT folded(stem) AS name, job AS row FROM jobs"))
        if problems:
            self._db.execute("ROLLBACK")
            return problems
        for statement in lifted.values():
            self._db.execute(statement)
        self._db.execute("COMMIT")
        return []

    def _lift(self) -> dict[str, str]:
        """Drop what makes the insertion slow; return the statements that put it back, by name.

        Sorted at the end, an index costs a fifth of a million insertions at random places. The trigger would look at
        each row for a state that the insertion does not set.
        """
        marks = ", ".join("?" * len(_LIFTED))
        found = self._db.execute(f"SELECT type, name, sql FROM sqlite_schema WHERE name IN ({marks})", _LIFTED)
        lifted = found.fetchall()
        for part in lifted:
            self._db.execute(f"DROP {part['type']} {part['name']}")
        return {part["name"]: part["sql"] for part in lifted}

    def _identify(self, index: str) -> list[Problem]:
        """Make sure that each row has an id of its own."""
        # Ids that the requests give are the same where the requests are; those that rows give hide that.
        self._repeats = self._given
        try:
            self._db.execute(index)
        except sqlite3.IntegrityError:
            self._repeats = True
            self._number_repeated()
            try:
                self._db.execute(index)
            except sqlite3.IntegrityError:
                return list(self._repeated_ids())
        return []

    def difference(self) -> Difference:
        """See Listed: all is new."""
        rows = self._rows.total()
        kinds = [KindCount(kind, self._rows[number], {}) for kind, number in self._kinds.items()]
        kinds.sort(key=lambda found: (found.kind.model, found.kind.image_size))
        return Difference(rows=rows, new=rows, duplicates=self._duplicates(), kinds=kinds, columns=self._columns())

    def apply(self, *, reuse: bool = False) -> None:
        """See Listed: what is left to be done is to tie those together that share a paid call."""
        if reuse:
            # Kept in memory, to be undone, this would be most of the state; a state without a name needs no undoing.
            self._db.execute("PRAGMA journal_mode = OFF")
            self._twin()
