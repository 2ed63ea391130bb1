"""A small state on a real file, for tests of what changes it."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from banana_batch.lifecycle import Event, Settlement
from banana_batch.models import Answer, Kind, Reserve, Settled
from banana_batch.store.unborn import Unborn

PRO = Kind("gemini-3-pro-image-preview", "1K")
CREDIT = 1_000_000
HELD = Reserve(50 * CREDIT, ceiling=True)
DOUBT = Settled(Event.UNANSWERED, Settlement.DOUBT, "timeout")


def paid(price: int | None = 13 * CREDIT) -> Settled:
    """Return the settlement of an answer with a price, or with none that is usable."""
    how = Settlement.UNPRICED if price is None else Settlement.PAID
    return Settled(Event.ANSWERED, how, "ok", answer=Answer("https://example.test/x.png", price))


class Flaky(sqlite3.Connection):
    """A state file on a disk that may be full.

    Attributes:
        full: Tells, for each statement, whether the disk is full.
        said: Statements so far.
    """

    full: Callable[[str], bool] = staticmethod(lambda _sql: False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.said: list[str] = []

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self.said.append(sql)
        if self.full(sql):
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(sql, parameters)


@contextmanager
def opened(folder: Path, jobs: int = 8) -> Iterator[Flaky]:
    """Make a state with so many pending jobs of one kind, and open it."""
    unborn = Unborn(folder)
    new = unborn.open()
    new.execute("INSERT INTO kinds (model, image_size) VALUES (?, ?)", (PRO.model, PRO.image_size))
    new.executemany(
        "INSERT INTO jobs (job, id, position, key, kind, stem, request) VALUES (?1, ?1, ?1, x'00', 1, ?1, ?2)",
        [(number, '{"prompt": "x"}') for number in range(1, jobs + 1)],
    )
    unborn.publish(new).close()
    flaky = sqlite3.connect(folder / "state.sqlite3", isolation_level=None, check_same_thread=False, factory=Flaky)
    flaky.row_factory = sqlite3.Row
    flaky.execute("PRAGMA foreign_keys = ON")
    try:
        yield flaky
    finally:
        flaky.close()


def outcomes(db: sqlite3.Connection) -> list[str]:
    """Return what became of each attempt."""
    return [row[0] for row in db.execute("SELECT outcome FROM attempts ORDER BY attempt")]


def states(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many jobs are in each state."""
    return dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
