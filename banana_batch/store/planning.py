"""Holding a manifest against the batch, as sets: a million rows are a statement, not a loop.

Rule 1: the rows are staged in a temporary table first; so `plan` changes nothing, and `run` all at once or nothing.
Rule 2: a known id keeps its index, its file name and its money. Only a changed request makes a job new.
Rule 3: nothing here grows with the manifest in memory: sorting and grouping are SQLite's, on disk.
"""

import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from banana_batch.errors import Problem
from banana_batch.models import INDEX_MARK, Kind, PlannedJob
from banana_batch.text import printable

_STAGE = """
CREATE TEMP TABLE planned (
  row INTEGER PRIMARY KEY, id TEXT NOT NULL, given INTEGER NOT NULL, key BLOB NOT NULL, kind INTEGER NOT NULL,
  request TEXT NOT NULL, refs TEXT, unsent TEXT, meta TEXT, stem TEXT NOT NULL, file INTEGER NOT NULL,
  line INTEGER NOT NULL, job INTEGER);
CREATE TEMP TABLE planned_kinds (
  kind INTEGER PRIMARY KEY, model TEXT NOT NULL, image_size TEXT NOT NULL, known INTEGER);
"""

# A job whose request was never bought, or was refused for good, takes a changed row as it is.
_FREE = "(jobs.attempts = 0 OR jobs.state = 'failed')"
_SAMPLE = 10


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A known id with another request.

    Attributes:
        differences: `field: was → is`, printable.
    """

    id: str
    file: str
    line: int
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KindCount:
    """Jobs of one model × size.

    Attributes:
        new: Not bought under this request: changed rows among them.
        states: Known jobs of the manifest by state.
        removed: Jobs of the last manifest that this one does not have.
    """

    kind: Kind
    new: int
    states: Mapping[str, int]
    removed: int = 0


@dataclass(slots=True)
class Difference:
    """What a manifest means for a batch.

    Attributes:
        rows: Jobs in the manifest, after expansion.
        new: Not known to the batch, changed ones among them not counted.
        changed: Known ids with another request whose job was sent: refused unless accepted.
        updated: Known ids with another request whose job was never sent, or failed: they take it.
        removed: Jobs of the last manifest that this one does not have.
        known: Jobs of the last manifest.
        duplicates: Rows whose request another row has too.
        changes: The first few changed rows.
    """

    rows: int = 0
    new: int = 0
    changed: int = 0
    updated: int = 0
    removed: int = 0
    known: int = 0
    duplicates: int = 0
    kinds: list[KindCount] = field(default_factory=list)
    changes: list[ChangedRow] = field(default_factory=list)

    @property
    def mostly_gone(self) -> bool:
        """More than half of the known rows are missing: likely another manifest, or another default."""
        return self.removed * 2 > self.known


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
        self._named = False
        self._repeats = False
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
        self._db.execute("CREATE INDEX temp.planned_by_key ON planned (key)")
        # Out of the index alone; who has the same request as whom is looked up only where somebody has.
        self._repeats = self._count("SELECT EXISTS (SELECT 1 FROM planned GROUP BY key HAVING count(*) > 1)") == 1
        if self._repeats:
            self._number_repeated()
        problems = []
        try:
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
        files, kinds, fresh = self._files, self._kinds, self._fresh
        for row, job in enumerate(jobs, 1):
            kind = kinds.get(job.kind)
            if kind is None:
                kind = kinds[job.kind] = len(kinds) + 1
            file = files.get(job.file)
            if file is None:
                file = files[job.file] = len(files)
            if INDEX_MARK not in job.stem:
                self._named = True
            given = job.id is not None
            yield (
                row, job.id if given else job.key.hex()[:20], given, job.key, kind, job.request, job.references,
                job.unsent, job.meta, job.stem, file, job.line, -row if fresh else None,
            )  # fmt: skip

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
        found = Difference(
            rows=one("SELECT count(*) FROM planned"),
            changed=one("SELECT count(*) FROM planned JOIN jobs USING (id) WHERE planned.job < 0"),
            updated=one(
                "SELECT count(*) FROM planned JOIN jobs ON jobs.job = planned.job WHERE jobs.key <> planned.key"
            ),
            known=one("SELECT count(*) FROM jobs WHERE position IS NOT NULL AND origin IS NULL"),
            duplicates=one("SELECT count(*) - count(DISTINCT key) FROM planned") if self._repeats else 0,
        )
        found.new = one("SELECT count(*) FROM planned WHERE job < 0") - found.changed
        found.removed = one(
            "SELECT count(*) FROM jobs WHERE position IS NOT NULL AND origin IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM planned WHERE planned.id = jobs.id)"
        )
        found.kinds = self._kind_counts(any_removed=found.removed > 0)
        found.changes = list(self._changes()) if found.changed else []
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
            "SELECT planned.id, file, line, jobs.request AS was, planned.request AS now,"
            " jobs.refs AS was_refs, planned.refs AS now_refs"
            " FROM planned JOIN jobs USING (id) WHERE planned.job < 0 ORDER BY row LIMIT ?",
            (_SAMPLE,),
        ):
            yield ChangedRow(
                row["id"], self._file(row["file"]), row["line"],
                tuple(_differences(row["was"], row["now"], row["was_refs"], row["now_refs"])),
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
        # The old job of an accepted change keeps its image under an id that no manifest can hold.
        db.execute(
            "UPDATE jobs SET id = jobs.id || '~was-' || jobs.job, position = NULL FROM planned"
            " WHERE planned.id = jobs.id AND planned.job < 0"
        )
        db.execute("UPDATE jobs SET position = NULL WHERE position IS NOT NULL")
        if self._fresh:
            # Sorted at the end, an index costs a fifth of a million insertions at random places.
            db.execute("DROP INDEX jobs_by_id")
        taken = "position = planned.row, refs = planned.refs, meta = planned.meta, unsent = planned.unsent"
        db.execute(
            f"UPDATE jobs SET {taken}, request = planned.request, kind = {kind}, key = planned.key, tries = 0,"
            " state = 'pending' FROM planned"
            " WHERE planned.job = jobs.job AND jobs.key <> planned.key AND jobs.state = 'failed'"
        )
        db.execute(
            f"UPDATE jobs SET {taken}, request = iif(jobs.attempts = 0, planned.request, jobs.request),"
            f" kind = iif(jobs.attempts = 0, {kind}, jobs.kind), key = planned.key"
            " FROM planned WHERE planned.job = jobs.job AND jobs.position IS NULL"
        )
        db.execute(
            f"""
            INSERT INTO jobs (job, id, position, key, kind, stem, request, refs, unsent, meta)
            SELECT -job, id, row, key, {kind}, {self._stem("stem", "-job")}, request, refs, unsent, meta
            FROM planned WHERE job < 0 ORDER BY row
            """
        )
        if self._fresh:
            db.execute("CREATE UNIQUE INDEX jobs_by_id ON jobs (id)")
        db.execute(
            "UPDATE jobs SET position = (SELECT position FROM jobs AS first WHERE first.job = jobs.origin)"
            " WHERE origin IS NOT NULL AND position IS NULL"
        )
        db.execute("UPDATE jobs SET twin = NULL WHERE twin IS NOT NULL AND state = 'pending'")
        if reuse:
            self._twin()

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


def _differences(was: str, now: str, was_refs: str | None, now_refs: str | None) -> Iterator[str]:
    old, new = json.loads(was), json.loads(now)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield f"{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"
    if was_refs != now_refs:
        yield "refer_images: the content of a local file changed"


def _shown(value: object) -> str:
    return "not given" if value is None else printable(json.dumps(value, ensure_ascii=False), 60)
