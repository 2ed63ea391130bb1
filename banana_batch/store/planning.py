"""Holding a manifest against the batch, as sets: a million rows are a statement, not a loop.

Rule 1: the rows are staged in a temporary table first; so `plan` changes nothing, and `run` all at once or nothing.
Rule 2: a known id keeps its index, its file name and its money. Only a changed request makes a job new.
"""

import sqlite3
from collections.abc import Iterable, Iterator

from banana_batch.errors import Problem
from banana_batch.models import Kind, PlannedJob

from .difference import ChangedRow, Difference, KindCount, differences
from .listed import SAMPLE, Listed, stem_sql

_STAGE = """
CREATE TEMP TABLE planned (
  row INTEGER PRIMARY KEY, id TEXT NOT NULL, key BLOB NOT NULL, kind INTEGER NOT NULL, stem TEXT NOT NULL,
  request TEXT NOT NULL, refs TEXT NOT NULL, unsent TEXT NOT NULL, meta TEXT NOT NULL, job INTEGER);
CREATE TEMP TABLE planned_kinds (
  kind INTEGER PRIMARY KEY, model TEXT NOT NULL, image_size TEXT NOT NULL, known INTEGER);
"""

# A job whose request was never bought, or was refused for good, takes a changed row as it is. One that shares another's
# image was never sent either, and is done.
_FREE = "(jobs.state = 'pending' AND jobs.attempts = 0 OR jobs.state = 'failed')"


class Planner(Listed):
    """Stages a manifest beside a batch's jobs.

    Args:
        db: The batch's connection, writing or read-only.
        index_width: Digits of the index in file names.
    """

    def __init__(self, db: sqlite3.Connection, index_width: int) -> None:
        super().__init__(
            db,
            "planned",
            "planned_kinds",
            "INSERT INTO planned (row, id, key, kind, stem, request, refs, unsent, meta)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )
        self._width = index_width
        db.executescript(_STAGE)

    def stage(self, jobs: Iterable[PlannedJob], *, default_names: bool) -> list[Problem]:
        """See Listed."""
        self._db.execute("BEGIN")
        self._take(jobs)
        try:
            self._db.execute("CREATE UNIQUE INDEX temp.planned_by_key ON planned (key)")
        except sqlite3.IntegrityError:
            # Who has the same request as whom is looked up only where somebody has.
            self._repeats = True
            self._db.execute("CREATE INDEX temp.planned_by_key ON planned (key)")
            self._number_repeated()
        problems = []
        try:
            self._db.execute("CREATE UNIQUE INDEX temp.planned_by_id ON planned (id)")
        except sqlite3.IntegrityError:
            problems = list(self._repeated_ids())
        else:
            self._match()
            if not default_names or self._named:
                stem = stem_sql("planned.stem", "abs(planned.job)", self._width)
                problems = list(
                    self._collisions(
                        f"SELECT folded({stem}) AS name, row FROM planned WHERE job < 0"
                        " UNION ALL SELECT folded(stem), NULL FROM jobs"
                    )
                )
        self._db.execute("COMMIT")
        return problems

    def _match(self) -> None:
        """Give each row its job: the known one with its id, or the next free index."""
        self._db.execute("UPDATE planned SET job = jobs.job FROM jobs WHERE jobs.id = planned.id")
        last = self._db.execute("SELECT ifnull(max(job), 0) FROM jobs").fetchone()[0]
        self._db.execute(
            """
            WITH fresh AS (
              SELECT row, row_number() OVER (ORDER BY row) AS nth FROM planned
              WHERE job IS NULL OR EXISTS (
                SELECT 1 FROM jobs WHERE jobs.job = planned.job AND jobs.key <> planned.key AND NOT """
            + _FREE
            + """))
            UPDATE planned SET job = -(? + nth) FROM fresh WHERE fresh.row = planned.row
            """,
            (last,),
        )

    def difference(self) -> Difference:
        """See Listed."""
        one = self._count
        found = Difference(
            rows=one("SELECT count(*) FROM planned"),
            changed=one("SELECT count(*) FROM planned JOIN jobs USING (id) WHERE planned.job < 0"),
            updated=one(
                "SELECT count(*) FROM planned JOIN jobs ON jobs.job = planned.job WHERE jobs.key <> planned.key"
            ),
            known=one("SELECT count(*) FROM jobs WHERE position IS NOT NULL AND origin IS NULL"),
            duplicates=self._duplicates(),
        )
        found.new = one("SELECT count(*) FROM planned WHERE job < 0") - found.changed
        found.removed = one(
            "SELECT count(*) FROM jobs WHERE position IS NOT NULL AND origin IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM planned WHERE planned.id = jobs.id)"
        )
        found.kinds = self._kind_counts(any_removed=found.removed > 0)
        found.changes = list(self._changes()) if found.changed else []
        found.columns = self._columns()
        return found

    def _kind_counts(self, *, any_removed: bool) -> list[KindCount]:
        states: dict[Kind, dict[str, int]] = {}
        for row in self._db.execute(
            "SELECT model, image_size, ifnull(jobs.state, 'new') AS state, count(*) AS jobs FROM planned"
            " JOIN planned_kinds USING (kind) LEFT JOIN jobs ON jobs.job = planned.job"
            " GROUP BY planned.kind, jobs.state ORDER BY model, image_size"
        ):
            states.setdefault(Kind(row["model"], row["image_size"]), {})[row["state"]] = row["jobs"]
        removed: dict[Kind, int] = {}
        if any_removed:
            for row in self._db.execute(
                "SELECT model, image_size, count(*) AS jobs FROM jobs JOIN kinds USING (kind)"
                " WHERE position IS NOT NULL AND origin IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM planned WHERE planned.id = jobs.id) GROUP BY kind"
            ):
                removed[Kind(row["model"], row["image_size"])] = row["jobs"]
        return [
            KindCount(kind, found.pop("new", 0), found, removed.get(kind, 0))
            for kind in [*states, *(kind for kind in removed if kind not in states)]
            for found in [states.get(kind, {})]
        ]

    def _changes(self) -> Iterator[ChangedRow]:
        for row in self._db.execute(
            "SELECT planned.id, row, jobs.request AS was, planned.request AS now,"
            " jobs.refs AS was_refs, nullif(planned.refs, '') AS now_refs"
            " FROM planned JOIN jobs USING (id) WHERE planned.job < 0 ORDER BY row LIMIT ?",
            (SAMPLE,),
        ):
            found = differences(row["was"], row["now"], row["was_refs"], row["now_refs"])
            yield ChangedRow(row["id"], *self._place(row["row"]), tuple(found))

    def apply(self, *, reuse: bool = False) -> None:
        """See Listed."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            self._apply(reuse)
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def _apply(self, reuse: bool) -> None:
        db = self._db
        db.execute("INSERT OR IGNORE INTO kinds (model, image_size) SELECT model, image_size FROM planned_kinds")
        db.execute(
            "UPDATE planned_kinds SET known = kinds.kind FROM kinds"
            " WHERE kinds.model = planned_kinds.model AND kinds.image_size = planned_kinds.image_size"
        )
        kind = "(SELECT known FROM planned_kinds AS named WHERE named.kind = planned.kind)"
        self._update(kind)
        db.execute(
            f"""
            INSERT INTO jobs (job, id, position, key, kind, stem, request, refs, unsent, meta)
            SELECT -job, id, row, key, {kind}, {stem_sql("stem", "-job", self._width)}, request,
              nullif(refs, ''), nullif(unsent, ''), nullif(meta, '')
            FROM planned WHERE job < 0 ORDER BY row
            """
        )
        first = "FROM jobs AS first WHERE first.job = jobs.origin"
        same = ", ".join(
            f"{column} = (SELECT iif(first.key = jobs.key, first.{column}, jobs.{column}) {first})"
            for column in ("request", "refs")
        )
        db.execute(
            f"UPDATE jobs SET position = (SELECT position {first}), {same}"
            " WHERE origin IS NOT NULL AND position IS NULL"
        )
        db.execute("UPDATE jobs SET twin = NULL WHERE twin IS NOT NULL AND +state = 'pending'")
        if reuse:
            self._twin()

    def _update(self, kind: str) -> None:
        """Bring the known jobs in line with the manifest; `kind`: what is staged, as the batch numbers it."""
        db = self._db
        # The old job of an accepted change keeps its image under an id that no manifest can hold.
        db.execute(
            "UPDATE jobs SET id = jobs.id || '~was-' || jobs.job, position = NULL FROM planned"
            " WHERE planned.id = jobs.id AND planned.job < 0"
        )
        db.execute("UPDATE jobs SET position = NULL WHERE position IS NOT NULL")
        # The same request may name the same local file otherwise than before: its name and its place go together.
        taken = (
            f"position = planned.row, request = planned.request, refs = nullif(planned.refs, ''), kind = {kind},"
            " unsent = nullif(planned.unsent, ''), meta = nullif(planned.meta, ''), key = planned.key"
        )
        db.execute(
            f"UPDATE jobs SET {taken}, tries = 0, state = 'pending' FROM planned"
            " WHERE planned.job = jobs.job AND jobs.key <> planned.key AND jobs.state = 'failed'"
        )
        db.execute(f"UPDATE jobs SET {taken} FROM planned WHERE planned.job = jobs.job AND jobs.position IS NULL")
