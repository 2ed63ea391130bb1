"""The rows of a manifest in a table, and what only all of them together can tell.

Rule 1: nothing here grows with the manifest in memory: sorting and grouping are SQLite's, on disk.
Rule 2: where a row stands is written down where it does not follow from the row before: for most files once.
"""

import sqlite3
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator

from banana_batch.errors import Problem
from banana_batch.models import INDEX_MARK, Kind, PlannedJob
from banana_batch.text import printable

from .difference import Difference

SAMPLE = 10
_SAMPLED_ROWS = 1000
_PLACES_AT_ONCE = 1000

_PLACES = """
CREATE TEMP TABLE places (
  row INTEGER PRIMARY KEY, file TEXT NOT NULL, line INTEGER NOT NULL, given INTEGER NOT NULL);
"""


class Listed(ABC):
    """Takes a manifest's rows into a table of the batch's connection, `rowid` the place in the manifest.

    Args:
        db: The connection.
        table: Where they go; it has `id`, `key` and `meta`.
        kinds: Where the kinds are named that they have.
        insert: How: ?1 place, ?2 id, ?3 key, ?4 kind, ?5 stem, ?6 request, ?7 refs, ?8 unsent, ?9 meta. An empty text
            stands for none in the last three: binding NULL takes longer than the text.
    """

    def __init__(self, db: sqlite3.Connection, table: str, kinds: str, insert: str) -> None:
        self._db = db
        self._table = table
        self._name_kind = f"INSERT INTO {kinds} (kind, model, image_size) VALUES (?, ?, ?)"
        self._insert = insert
        self._kinds: dict[Kind, int] = {}
        self._rows: Counter[int] = Counter()
        self._given = False
        self._named = False
        self._repeats = False
        self._own = False
        db.create_function("folded", 1, _folded, deterministic=True)
        db.executescript(_PLACES)

    @abstractmethod
    def stage(self, jobs: Iterable[PlannedJob], *, default_names: bool) -> list[Problem]:
        """Take the rows in; return what only the whole can tell: ids given twice, file names that collide.

        Args:
            jobs: Validated rows.
            default_names: The file-name template is the default one, whose names never collide.
        """

    @abstractmethod
    def difference(self) -> Difference:
        """Tell what the manifest means for the batch. Changes nothing."""

    @abstractmethod
    def apply(self, *, reuse: bool = False) -> None:
        """Make the manifest the batch's own, in one transaction. Changed rows become new jobs.

        Args:
            reuse: Rows with the same request share one paid call: the later ones are twins of the first.

        Raises:
            sqlite3.Error: nothing was changed.
        """

    def _take(self, jobs: Iterable[PlannedJob]) -> None:
        self._db.executemany(self._insert, self._records(jobs))

    def _records(self, jobs: Iterable[PlannedJob]) -> Iterator[tuple[object, ...]]:
        """Turn planned jobs into what is bound for them: a million times, so each look-up counts."""
        places: list[tuple[int, str, int, bool]] = []
        last, number, first, row = None, 0, 1, 0
        told, told_given, next_line = "", False, -1
        for row, (name, key, kind, request, refs, unsent, meta, stem, file, line) in enumerate(jobs, 1):
            if kind is not last:
                self._rows[number] += row - first
                last, number, first = kind, self._number(kind), row
            given = name is not None
            if line != next_line or file is not told or given is not told_given:
                told, told_given = file, given
                places.append((row, file, line, given))
                if len(places) == _PLACES_AT_ONCE:
                    self._note(places)
            next_line = line + 1
            if given:
                self._given = True
            if INDEX_MARK not in stem:
                self._named = True
            if meta:
                self._own = True
            # Only whole numbers, texts and bytearrays are bound as they are; for others sqlite3 looks for an adapter.
            yield (
                row, name if given else key.hex()[:20], bytearray(key), number, stem, request, refs or "",
                unsent or "", meta or "",
            )  # fmt: skip
        self._rows[number] += row + 1 - first
        self._note(places)

    def _number(self, kind: Kind) -> int:
        number = self._kinds.get(kind)
        if number is None:
            number = self._kinds[kind] = len(self._kinds) + 1
            self._db.execute(self._name_kind, (number, kind.model, kind.image_size))
        return number

    def _note(self, places: list[tuple[int, str, int, bool]]) -> None:
        self._db.executemany("INSERT INTO places VALUES (?, ?, ?, ?)", places)
        places.clear()

    def _place(self, row: int) -> tuple[str, int]:
        """Return the file and the line of a row."""
        found = self._db.execute(
            "SELECT row, file, line FROM places WHERE row <= ? ORDER BY row DESC LIMIT 1", (row,)
        ).fetchone()
        return found["file"], found["line"] + row - found["row"]

    def _number_repeated(self) -> None:
        """Name the second, third … row with the same request `~2`, `~3` …, in the manifest's order.

        OR ROLLBACK: to undo this alone SQLite would keep every page that it touches, in memory for a new batch.
        """
        table = self._table
        self._db.execute(
            f"""
            WITH repeated AS (SELECT id FROM {table} GROUP BY id HAVING count(*) > 1),
            numbered AS (
              SELECT rowid AS row, row_number() OVER (PARTITION BY key ORDER BY rowid) AS nth FROM {table} AS named
              WHERE id IN (SELECT id FROM repeated) AND NOT (
                SELECT given FROM places WHERE places.row <= named.rowid ORDER BY places.row DESC LIMIT 1))
            UPDATE OR ROLLBACK {table} SET id = {table}.id || '~' || nth FROM numbered
            WHERE {table}.rowid = numbered.row AND nth > 1
            """
        )

    def _repeated_ids(self) -> Iterator[Problem]:
        table = self._table
        for found in self._db.execute(
            f"""
            WITH twice AS (SELECT id, min(rowid) AS first FROM {table} GROUP BY id HAVING count(*) > 1)
            SELECT later.rowid AS row, id, first FROM twice JOIN {table} AS later USING (id)
            WHERE later.rowid > first ORDER BY later.rowid
            """
        ):
            first_file, first_line = self._place(found["first"])
            yield Problem(
                *self._place(found["row"]), "id", f'"{printable(found["id"], 80)}"',
                f"unique; first at {first_file}:{first_line}",
            )  # fmt: skip

    def _collisions(self, names: str) -> Iterator[Problem]:
        """Find file names that are one where a file system folds case or Unicode forms.

        Args:
            names: Selects `name`, folded, and `row`: null where an image of the batch has it already.
        """
        self._db.execute(f"CREATE TEMP TABLE names AS {names}")
        self._db.execute("CREATE INDEX temp.names_by_name ON names (name, row)")
        for found in self._db.execute(
            """
            SELECT later.name, later.row,
              (SELECT first.row FROM names AS first WHERE first.name = later.name ORDER BY row LIMIT 1) AS first
            FROM names AS later
            WHERE later.row IS NOT NULL AND EXISTS (
              SELECT 1 FROM names AS first
              WHERE first.name = later.name AND (first.row IS NULL OR first.row < later.row))
            ORDER BY later.row
            """
        ):
            file, line = self._place(found["row"])
            first = found["first"]
            other = "an image of this batch has it" if first is None else f"line {self._place(first)[1]} has it"
            yield Problem(
                file, line, "filename", f'"{printable(found["name"], 80)}"',
                f"a name of its own ({other}); put {{index}} into --filename",
            )  # fmt: skip

    def _columns(self) -> list[str]:
        if not self._own:
            return []
        found = self._db.execute(
            f"SELECT DISTINCT key FROM (SELECT meta FROM {self._table} WHERE meta <> '' LIMIT ?), json_each(meta)"
            " LIMIT ?",
            (_SAMPLED_ROWS, SAMPLE),
        )
        return [row["key"] for row in found]

    def _duplicates(self) -> int:
        found = f"SELECT count(*) - count(DISTINCT key) FROM {self._table}"
        return self._count(found) if self._repeats else 0

    def _count(self, sql: str) -> int:
        return int(self._db.execute(sql).fetchone()[0] or 0)

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


def stem_sql(stem: str, job: str, width: int) -> str:
    """Return the SQL of a file name with the job's index in its place."""
    return f"replace({stem}, char({ord(INDEX_MARK)}), printf('%0{width}d', {job}))"


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()
