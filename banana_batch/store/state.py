"""The state file as the engine sees it: every change durable before the caller goes on.

Rule 1: one thread owns the writing connection; concurrent changes share a commit (grouping.py, changes.py).
Rule 2: a change that can't be made takes no other down: its group is made one by one then.
Rule 3: after the first failed commit no further attempt is begun; what was paid for is still recorded if it can be, and
        what could not is tried again with each later change, the run's end included: a disk may have room again.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from banana_batch.errors import DiskError
from banana_batch.grouping import GroupCommit
from banana_batch.lifecycle import Event, Settlement
from banana_batch.models import FetchFailed, Kind, PaidImage, QueuedJob, Reserve, Settled, StoredImage, Totals
from banana_batch.ports import Clock

from . import ballast, handout
from .changes import Begin, Change, Finish, Settle, make, record_failure
from .known import Known

_UNSENT = Settled(Event.NOT_SENT, Settlement.NOT_SENT, "stopped", "stopped before it was sent")

# A commit costs as much as a dozen of the changes in it; beside a call of seconds nobody sees five milliseconds.
GATHER_S = 0.005
# A wave of 2,000 calls that ends settles as many and begins as many: in groups of 256 its last waits for sixteen.
MAX_GROUP = 1024


def _unsent(change: Change) -> bool:
    """A request that nobody waits to send any more need not be begun; all else has happened and is recorded."""
    return isinstance(change, Begin)


def _is_the_file_s(failed: Exception) -> bool:
    """Tell a disk or a file that takes nothing from a change that can't be made."""
    # A damaged file is the bare class; what a change violates is a class of its own below it.
    return isinstance(failed, sqlite3.OperationalError) or type(failed) is sqlite3.DatabaseError


class StateStore:
    """Implements `ports.Store` over one SQLite connection.

    Args:
        db: The writing connection; used on `executor` only from now on.
        executor: Runs one call at a time.
        run: The run's number, from `begin_run`.
        out: The output folder, for the ballast that makes room on a full disk.
    """

    def __init__(self, db: sqlite3.Connection, executor: Executor, clock: Clock, run: int, out: Path) -> None:
        self._db = db
        self._clock = clock
        self._run = run
        self._out = out
        self._group: GroupCommit[Change, Any] = GroupCommit(
            executor,
            self._commit,
            self._abandoned,
            droppable=_unsent,
            max_group=MAX_GROUP,
            gather_s=GATHER_S,
        )
        self._broken: str | None = None
        self._unrecorded: list[Settle] = []
        self._taken: dict[str, handout.Place] = {}
        self._known = Known(db, run)
        # A run goes through its rows once, in order: further pages are not wanted again (as fast, 1.5 MB less).
        db.execute("PRAGMA cache_size = -512")
        ballast.keep(out)

    # Reads that need no turn of the database's thread.

    @property
    def totals(self) -> Totals:
        """See ports.Store."""
        return self._known.totals

    @property
    def run_totals(self) -> Totals:
        """See ports.Store."""
        return self._known.run_totals

    @property
    def broken(self) -> DiskError | None:
        """See ports.Store."""
        return self._disk_error(self._broken) if self._broken else None

    def price_micro(self, kind: Kind) -> int | None:
        """See ports.Store."""
        return self._known.prices.get(kind)

    def held_micro(self, kind: Kind, reserve: Reserve) -> int:
        """See ports.Store."""
        lowered = self._known.lowered.get(kind) if reserve.ceiling else None
        return reserve.micro if lowered is None else min(reserve.micro, lowered)

    # Pages of what waits.

    async def next_pending(self, limit: int, *, known_only: bool = False) -> Sequence[QueuedJob]:
        """See ports.Store. One call at a time."""
        page = handout.pending(self._place("pending"), limit, known_only=known_only)
        return [handout.queued(row) for row in await self._take("pending", page)]

    async def next_resend(self, limit: int) -> Sequence[QueuedJob]:
        """See ports.Store. One call at a time."""
        page = handout.in_doubt(self._place("in_doubt"), limit, self._run)
        return [handout.queued(row, resend=True) for row in await self._take("in_doubt", page)]

    async def next_paid(self, limit: int) -> Sequence[PaidImage]:
        """See ports.Store. One call at a time."""
        page = handout.paid(self._place("paid"), limit, self._run)
        return [handout.paid_image(row) for row in await self._take("paid", page)]

    def _place(self, state: str) -> handout.Place:
        return self._taken.get(state, handout.START)

    async def _take(self, state: str, page: handout.Page) -> list[sqlite3.Row]:
        """Read on from where the last call for this state ended.

        The place is moved here and not in the operation, which may be run twice.
        """
        rows: list[sqlite3.Row] = await self.do(page)
        if rows:
            self._taken[state] = handout.place_of(rows[-1])
        return rows

    # Changes.

    async def begin(self, job: QueuedJob, reserve: Reserve) -> int:
        """See ports.Store."""
        begin = Begin(job, reserve)
        written: asyncio.Future[int] = self._group.put(begin)
        try:
            return await written
        except asyncio.CancelledError:
            # Cancelled in the very turn in which its group landed: nobody else tells of it.
            if not written.cancelled() and written.exception() is None:
                self._abandoned(begin, written.result())
            raise

    def _abandoned(self, change: Change, result: Any) -> None:
        """A change is durable and its caller gone. A begun row's request is never sent: said in the next group."""
        if isinstance(change, Begin):
            self._group.put(Settle(result, change.job, _UNSENT))

    def settle(self, attempt: int, job: QueuedJob, settled: Settled) -> "asyncio.Future[PaidImage | None]":
        """See ports.Store."""
        return self._group.put(Settle(attempt, job, settled))

    async def finish(self, index: int, image: StoredImage) -> None:
        """See ports.Store."""
        await self._group.put(Finish(index, image))

    async def unfetched(self, index: int, failure: FetchFailed, lost: bool) -> None:
        """See ports.Store."""
        now_us = self._clock.wall_us()
        await self.do(lambda db: record_failure(db, index, failure, now_us, lost=lost))

    def do(self, operation: Callable[[sqlite3.Connection], Any]) -> "asyncio.Future[Any]":
        """Run any other change, or read, in a group of its turn; durable when the future ends."""
        return self._group.put(operation)

    def alone(self) -> None:
        """From now on changes come one at a time: none waits for others that could share its commit."""
        self._group.gather_s = 0.0

    async def flush(self) -> None:
        """Wait for changes that nobody waits for any more: what was answered is recorded, however a run ends."""
        await self._group.idle()

    def release(self) -> None:
        """Give the ballast back. The connection stays its opener's."""
        ballast.give_up(self._out)

    # The database's thread.

    def _commit(self, changes: Sequence[Change]) -> Sequence[Any]:
        while self._unrecorded and self._recorded(self._unrecorded[0]):
            del self._unrecorded[0]
        try:
            return self._transaction(changes)
        except Exception as failed:  # noqa: BLE001  # handed to those it belongs to
            if _is_the_file_s(failed):
                return self._after_disk_error(changes, failed)
            # One bad change must not take its neighbours' commit down.
            return [self._alone(change) for change in changes]

    def _transaction(self, changes: Sequence[Change]) -> list[Any]:
        db, known = self._db, self._known
        if self._broken and any(isinstance(change, Begin) for change in changes):
            raise self._disk_error(self._broken)
        db.execute("BEGIN IMMEDIATE")
        try:
            results = make(db, changes, known, self._clock.wall_us())
            seen = known.read(db)
            db.execute("COMMIT")
        except BaseException:
            known.forget()
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        known.adopt(seen)
        return results

    def _recorded(self, settle: Settle) -> bool:
        """Try a settlement again; True: it need not be tried once more."""
        try:
            self._transaction([settle])
        except Exception as failed:  # noqa: BLE001  # whoever waited for it was told at the first time
            return not _is_the_file_s(failed)
        return True

    def _alone(self, change: Change) -> Any:
        try:
            return self._transaction([change])[0]
        except Exception as failed:  # noqa: BLE001  # handed to the one caller it belongs to
            return self._after_disk_error([change], failed)[0] if _is_the_file_s(failed) else failed

    def _after_disk_error(self, changes: Sequence[Change], failed: Exception) -> Sequence[Any]:
        """Make room and try once more, without beginning anything new: paid answers must not be lost."""
        self._broken = f"{self._out}: the state file can't be written: {failed}"
        error = self._disk_error(self._broken)
        ballast.give_up(self._out)
        results = []
        for change in changes:
            try:
                results.append(self._transaction([change])[0])
            except Exception as other:  # noqa: BLE001  # handed to the one caller it belongs to
                results.append(error if _is_the_file_s(other) else other)
                if results[-1] is error and isinstance(change, Settle):
                    self._unrecorded.append(change)
        return results

    @staticmethod
    def _disk_error(broken: str) -> DiskError:
        return DiskError(broken, "free some space or mend the disk, then run again")
