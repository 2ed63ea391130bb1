"""results.jsonl, begun while the last calls are out: at the end only what the very last bring is left to be written.

Rule 1: early come only rows that nothing in a run changes any more, up to the first one that may change.
Rule 2: all or nothing: whatever goes wrong with an early part, the whole is written at the end.
"""

import os
import shutil
import sqlite3
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import BananaError
from .lifecycle import JobState
from .ports import Listener
from .report.atomic import replaced
from .report.results import FILE_NAME, add_results, result_dict, write_results
from .store import database, paths, queries

_CACHE = "PRAGMA cache_size = -256"  # KiB: a row is read once, and those beside it next
ROOM_BYTES = 1 << 30  # what is left of a disk is for the images that still come
PART = 128  # images that come before a second part is written; twice as many before each further one, as all are sorted

_SETTLED = frozenset({JobState.DONE, JobState.FAILED, JobState.DROPPED})


class _Early(NamedTuple):
    """The file on its way, and how many rows are in it."""

    file: BinaryIO
    rows: int


class _Unwanted(Exception):
    """An early part is not to become the results."""


class Listing:
    """Writes the results; hears when the last call leaves, and of each image from then on (`ports.Events`).

    Args:
        executor: Writes the early part; of one thread.

    Attributes:
        calls: Jobs that are to be sent, for the first time in this run; 0: not known.
    """

    def __init__(self, out: Path, executor: Executor) -> None:
        self.calls = 0
        self._out = out
        self._executor = executor
        self._sent = self._stored = 0
        self._part = PART
        self._over = False
        self._open = ExitStack()
        self._early: Future[_Early | None] | None = None

    def emit(self, event: str, /, **facts: object) -> None:
        """See ports.Events."""
        heard = self.listener(event)
        if heard is not None:
            heard(facts)

    def listener(self, event: str) -> Listener | None:
        """See ports.Events."""
        return {"sent": self._count_sent, "stored": self._count_stored}.get(event)

    def _count_sent(self, _facts: Mapping[str, object]) -> None:
        # A call that is repeated counts twice: then it begins a little sooner.
        self._sent += 1
        if self._sent == self.calls:
            self._early = self._executor.submit(self._begin)

    def _count_stored(self, _facts: Mapping[str, object]) -> None:
        if self._early is None:
            return
        self._stored += 1
        if self._stored >= self._part and self._early.done():
            self._stored, self._part = 0, self._part * 2
            self._early = self._executor.submit(self._go_on, self._early)

    def write(self, db: sqlite3.Connection) -> None:
        """Replace the results by those of the batch as it is now. Blocks.

        Raises:
            DiskError: they could not be written; the old file is as it was.
        """
        early = self._early.result() if self._early else None
        if early is None or not os.fstat(early.file.fileno()).st_nlink:  # a later writer took it for a dead one's
            self.close()
            write_results(self._out, map(result_dict, queries.results(db)))
            return
        with self._open.pop_all():
            add_results(early.file, map(result_dict, queries.results(db, skip=early.rows)))

    def close(self) -> None:
        """Leave no early part behind."""
        self._over = True
        if self._early is not None:
            self._early.result()
        self._discard()

    def _discard(self) -> None:
        with suppress(_Unwanted, BananaError), self._open.pop_all():
            raise _Unwanted

    def _begin(self) -> _Early | None:
        try:
            # A job's row is shorter than what the state holds of it.
            if shutil.disk_usage(self._out).free < ROOM_BYTES + paths.state_path(self._out).stat().st_size:
                return None
            return self._further(_Early(self._open.enter_context(replaced(self._out, FILE_NAME)), 0))
        except Exception:  # noqa: BLE001  # it comes to light, and is told, when all is written at the end
            self._discard()  # its room may be what an image needs
            return None

    def _go_on(self, begun: "Future[_Early | None]") -> _Early | None:
        early = begun.result()
        try:
            return early and self._further(early)
        except Exception:  # noqa: BLE001  # as above
            self._discard()
            return None

    def _further(self, early: _Early) -> _Early:
        with closing(database.open_reader(self._out)) as db, closing(queries.results(db, skip=early.rows)) as rows:
            db.execute(_CACHE)
            added = add_results(early.file, map(result_dict, takewhile(self._settled, rows)))
            return _Early(early.file, early.rows + added)

    def _settled(self, row: sqlite3.Row) -> bool:
        return row["state"] in _SETTLED and not self._over
