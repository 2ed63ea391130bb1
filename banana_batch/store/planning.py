"""Holding a manifest against the batch, as sets: a million rows are a statement, not a loop.

Rule 1: the rows are staged in a temporary table first; so `plan` changes nothing, and `run` all at once or nothing.
Rule 2: a known id keeps its index, its file name and its money. Only a changed request makes a job new.
Rule 3: nothing here grows with the manifest in memory: sorting and grouping are SQLite's, on disk.
"""

import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from banana_batch.errors import Problem
from banana_batch.models import INDEX_MARK, Kind, PlannedJob
from banana_batch.text import printable

from .difference import ChangedRow, Difference, KindCount, differences

# In `refs`, `unsent` and `meta` an empty text stands for none: binding NULL takes longer than the text.
_STAGE = """
CREATE TEMP TABLE planned (
  row INTEGER PRIMARY KEY, id TEXT NOT NULL, given INTEGER NOT NULL, key BLOB NOT NULL, kind INTEGER NOT NULL,
  request TEXT NOT NULL, refs TEXT NOT NULL, unsent TEXT NOT NULL, meta TEXT NOT NULL, stem TEXT NOT NULL,
  file INTEGER NOT NULL, line INTEGER NOT NULL, job INTEGER);
CREATE TEMP TABLE planned_kinds (
  kind INTEGER PRIMARY KEY, model TEXT NOT NULL, image_size TEXT NOT NULL, known INTEGER);
"""

# A job whose request was never bought, or was refused for good, takes a changed row as it is. One that shares another's
# image was never sent either, and is done.
_FREE = "(jobs.state = 'pending' AND jobs.attempts = 0 OR jobs.state = 'failed')"
_SAMPLE = 10
_SAMPLED_ROWS = 1000


class Planner:
    """Stages a manifest beside a batch's jobs.

    Args:
        db: The batch's connection, writing or read-only; or one to an empty schema where there is no batch yet.
        index_width: Digits of the index in file names.
    """

    def __init__(self, db: sqlite3.Connection, index_width: int) -> None:
        self._db = db
        self._width = index_width
        self._files: dict[str, int] = {}
        self._kinds: dict[Kind, int] = {}
        self._rows: Counter[int] = Counter()
        self._given = False
        self._named = False
        self._repeats = False
        self._own = False
        # With no job known, each row is new and its place is its index.
        self._fresh = self._count("SELECT NOT EXISTS (SELECT 1 FROM jobs)") == 1
        db.create_function("folded", 1, _folded, deterministic=True)
        db.executescript(_STAGE)

    def stage(self, jobs: Iterable[PlannedJob], *, default_names: bool) -> list[Problem]:
        """Take the rows in; return what only the whole can tell: ids given twice, file names that collide.

        Args:
            jobs: Validated rows.
            default_names: The file-name template is the default one, whose names never collide.
        """
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO planned VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", self._records(jobs))
        for kind, number in self._kinds.items():
            self._db.execute("INSERT INTO planned_kinds VALUES (?, ?, ?, NULL)", (number, kind.model, kind.image_size))
        try:
            self._db.execute("CREATE UNIQUE INDEX temp.planned_by_key ON planned (key)")
        except sqlite3.IntegrityError:
            # Who has the same request as whom is looked up only where somebody has.
            self._repeats = True
            self._db.execute("CREATE INDEX temp.planned_by_key ON planned (key)")
            self._number_repeated()
        problems = []
        try:
            # Ids that the requests give are numbered where they repeat; only given ones can meet, or a known one.
            if self._given or not self._fresh:
                self._db.execute("CREATE UNIQUE INDEX temp.planned_by_id ON planned (id)")
        except sqlite3.IntegrityError:
            problems = list(self._repeated_ids())
        else:
            if not self._fresh:
                self._match()
            if not default_names or self._named:
                problems += self._collisions()
        self._db.execute("COMMIT")
        return problems

    def _records(self, jobs: Iterable[PlannedJob]) -> Iterator[tuple[object, ...]]:
        """Turn planned jobs into rows of the staging table: a million times, so each look-up counts."""
        files, fresh = self._files, self._fresh
        last, number, first, row = None, 0, 1, 0
        for row, (name, key, kind, request, refs, unsent, meta, stem, file, line) in enumerate(jobs, 1):
            if kind is not last:
                self._rows[number] += row - first
                last, number, first = kind, self._kinds.setdefault(kind, len(self._kinds) + 1), row
            place = files.get(file)
            if place is None:
                place = files[file] = len(files)
            if INDEX_MARK not in stem:
                self._named = True
            if name is not None:
                self._given = True
            if meta:
                self._own = True
            # Only whole numbers, texts and bytearrays are bound as they are; for others sqlite3 looks for an adapter.
            yield (
                row, key.hex()[:20] if name is None else name, 0 if name is None else 1, bytearray(key), number,
                request, refs or "", unsent or "", meta or "", stem, place, line, -row if fresh else None,
            )  # fmt: skip
        self._rows[number] += row + 1 - first

    def _number_repeated(self) -> None:
        """Name the second, third … row with the same request `~2`, `~3` …, in the manifest's order."""
        self._db.execute(
            """
            WITH repeated AS (
              SELECT key FROM planned WHERE NOT given GROUP BY key HAVING count(*) > 1),
            numbered AS (
              SELECT row, row_number() OVER (PARTITION BY key ORDER BY row) AS nth
              FROM planned WHERE NOT given AND key IN (SELECT key FROM repeated))
            UPDATE planned SET id = planned.id || '~' || nth FROM numbered
            WHERE planned.row = numbered.row AND nth > 1
            """
        )

    def _repeated_ids(self) -> Iterator[Problem]:
        for row in self._db.execute(
            """
            SELECT later.file, later.line, later.id, min(first.line) AS first_line, first.file AS first_file
            FROM (SELECT id FROM planned GROUP BY id HAVING count(*) > 1) AS twice
            JOIN planned AS first USING (id) JOIN planned AS later USING (id)
            WHERE later.row > first.row GROUP BY later.row ORDER BY later.row
            """
        ):
            first = f"{self._file(row['first_file'])}:{row['first_line']}"
            yield Problem(
                self._file(row["file"]), row["line"], "id", f'"{printable(row["id"], 80)}"', f"unique; first at {first}"
            )

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

    def _collisions(self) -> Iterator[Problem]:
        """Find file names that are one where a file system folds case or Unicode forms."""
        self._db.execute(
            f"""
            CREATE TEMP TABLE names AS
            SELECT folded({self._stem("planned.stem", "abs(planned.job)")}) AS name, file, line, row
            FROM planned WHERE job < 0
            """
        )
        self._db.execute("INSERT INTO names SELECT folded(stem), NULL, NULL, 0 FROM jobs")
        self._db.execute("CREATE INDEX temp.names_by_name ON names (name, row)")
        for row in self._db.execute(
            """
            SELECT later.name, later.file, later.line,
              (SELECT first.line FROM names AS first WHERE first.name = later.name ORDER BY row LIMIT 1) AS first_line
            FROM names AS later
            WHERE later.row > 0 AND EXISTS (
              SELECT 1 FROM names AS first WHERE first.name = later.name AND first.row < later.row)
            ORDER BY later.row
            """
        ):
            other = f"line {row['first_line']} has it" if row["first_line"] else "an image of this batch has it"
            yield Problem(
                self._file(row["file"]), row["line"], "filename", f'"{printable(row["name"], 80)}"',
                f"a name of its own ({other}); put {{index}} into --filename",
            )  # fmt: skip

    def _stem(self, stem: str, job: str) -> str:
        return f"replace({stem}, char({ord(INDEX_MARK)}), printf('%0{self._width}d', {job}))"

    def _file(self, number: int) -> str:
        return next(name for name, known in self._files.items() if known == number)

    def difference(self) -> Difference:
        """Tell what the staged manifest means for the batch. Changes nothing."""
        one = self._count
        duplicates = one("SELECT count(*) - count(DISTINCT key) FROM planned") if self._repeats else 0
        if self._fresh:
            return self._all_new(duplicates)
        found = Difference(
            rows=one("SELECT count(*) FROM planned"),
            changed=one("SELECT count(*) FROM planned JOIN jobs USING (id) WHERE planned.job < 0"),
            updated=one(
                "SELECT count(*) FROM planned JOIN jobs ON jobs.job = planned.job WHERE jobs.key <> planned.key"
            ),
            known=one("SELECT count(*) FROM jobs WHERE position IS NOT NULL AND origin IS NULL"),
            duplicates=duplicates,
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

    def _all_new(self, duplicates: int) -> Difference:
        rows = self._rows.total()
        kinds = [KindCount(kind, self._rows[number], {}) for kind, number in self._kinds.items()]
        kinds.sort(key=lambda found: (found.kind.model, found.kind.image_size))
        return Difference(rows=rows, new=rows, duplicates=duplicates, kinds=kinds, columns=self._columns())

    def _columns(self) -> list[str]:
        if not self._own:
            return []
        found = self._db.execute(
            "SELECT DISTINCT key FROM (SELECT meta FROM planned WHERE meta <> '' LIMIT ?), json_each(meta) LIMIT ?",
            (_SAMPLED_ROWS, _SAMPLE),
        )
        return [row["key"] for row in found]

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
            "SELECT planned.id, file, line, jobs.request AS was, planned.request AS now,"
            " jobs.refs AS was_refs, nullif(planned.refs, '') AS now_refs"
            " FROM planned JOIN jobs USING (id) WHERE planned.job < 0 ORDER BY row LIMIT ?",
            (_SAMPLE,),
        ):
            yield ChangedRow(
                row["id"], self._file(row["file"]), row["line"],
                tuple(differences(row["was"], row["now"], row["was_refs"], row["now_refs"])),
            )  # fmt: skip

    def _count(self, sql: str) -> int:
        return int(self._db.execute(sql).fetchone()[0] or 0)

    def apply(self, *, reuse: bool = False) -> None:
        """Make the staged manifest the batch's own, in one transaction. Changed rows become new jobs.

        Args:
            reuse: Rows with the same request share one paid call: the later ones are twins of the first.

        Raises:
            sqlite3.Error: nothing was changed.
        """
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
        if not self._fresh:
            self._update(kind)
        lifted = self._lift() if self._fresh else ()
        db.execute(
            f"""
            INSERT INTO jobs (job, id, position, key, kind, stem, request, refs, unsent, meta)
            SELECT -job, id, row, key, {kind}, {self._stem("stem", "-job")}, request,
              nullif(refs, ''), nullif(unsent, ''), nullif(meta, '')
            FROM planned WHERE job < 0 ORDER BY row
            """
        )
        for statement in lifted:
            db.execute(statement)
        if not self._fresh:
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

    def _lift(self) -> list[str]:
        """Drop what makes the first jobs' insertion slow; return the statements that put it back.

        Sorted at the end, an index costs a fifth of a million insertions at random places. The trigger would look at
        each row for a state that the insertion does not set.
        """
        lifted = self._db.execute(
            "SELECT type, name, sql FROM sqlite_schema WHERE name IN ('jobs_by_id', 'jobs_are_born_pending')"
        ).fetchall()
        for row in lifted:
            self._db.execute(f"DROP {row['type']} {row['name']}")
        return [row["sql"] for row in lifted]

    def _twin(self) -> None:
        """Tie each unsent row to the first job with the same request."""
        self._db.execute(
            """
            WITH first AS (
              SELECT key, min(job) AS job FROM jobs WHERE position IS NOT NULL AND twin IS NULL GROUP BY key)
            UPDATE jobs SET twin = first.job FROM first
            WHERE first.key = jobs.key AND first.job <> jobs.job AND jobs.state = 'pending' AND jobs.attempts = 0
              AND jobs.origin IS NULL
            """
        )


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
