"""One statement for many rows: what a group of changes costs does not grow with each change in it.

Python's sqlite3 lets go of the interpreter two or three times a statement, and has to win it back from a busy event
loop each time. Inside a statement SQLite works without it, however many rows there are.

Rule 1: the rows stand in the text as `(VALUES …)`, filled up with rows of NULL to a power of two: a handful of texts
        exist, and sqlite3 keeps each of them prepared.
Rule 2: a row of NULL changes nothing: a key that is NULL matches no row, and an INSERT leaves it out.
Rule 3: a row of the table is changed at most once by a statement; the count that is returned tells.
"""

import sqlite3
from collections.abc import Sequence
from itertools import chain

# Rows a statement takes: times nine columns, fewer parameters than the 999 that every SQLite allows.
MOST_ROWS = 64


class ForRows:
    """A statement over rows of values.

    Args:
        sql: The text; `{rows}` in it stands for them: a table with `column1`, `column2` …
        width: Columns of a row.
    """

    def __init__(self, sql: str, width: int) -> None:
        self._sql = sql
        self._width = width
        self._texts: dict[int, str] = {}

    def text(self, size: int) -> str:
        """Return the statement for so many rows. The same object each time: sqlite3 looks it up by its hash."""
        known = self._texts.get(size)
        if known is None:
            row = f"({', '.join('?' * self._width)})"
            known = self._texts[size] = self._sql.format(rows=f"(VALUES {', '.join([row] * size)})")
        return known

    def run(self, db: sqlite3.Connection, rows: Sequence[Sequence[object]], *fixed: object) -> int:
        """Run it for all rows, in as few statements as MOST_ROWS allows; return how many rows it changed.

        Args:
            fixed: Values of the text's own parameters; these stand before the rows in it.
        """
        changed = 0
        for start in range(0, len(rows), MOST_ROWS):
            part = rows[start : start + MOST_ROWS]
            size = 1 << (len(part) - 1).bit_length()
            empty = (None,) * (self._width * (size - len(part)))
            changed += db.execute(self.text(size), (*fixed, *chain.from_iterable(part), *empty)).rowcount
        return changed
