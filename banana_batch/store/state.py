"""The state file as the engine sees it: every change durable before the caller goes on.

Rule 1: one thread owns the writing connection; concurrent changes share a commit (grouping.py).
Rule 2: an attempt and its job move in the same transaction, each along the tables of lifecycle.py.
Rule 3: after the first failed commit no further attempt is begun; what was paid for is still recorded if it can be.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from banana_batch.capabilities import pixels
from banana_batch.errors import DiskError
from banana_batch.grouping import GroupCommit
from banana_batch.lifecycle import SETTLEMENTS, Event, JobState, Settlement, after
from banana_batch.models import FetchFailed, Kind, PaidImage, QueuedJob, Reserve, Settled, StoredImage, Totals
from banana_batch.ports import Clock

BALLAST_NAME = ".ballast"
BALLAST_BYTES = 4 << 20
MAX_RAW_BYTES = 64 << 10

_QUEUED = """
SELECT jobs.job, id, kinds.model, kinds.image_size, request, refs, attempts, stem, unsent, position AS place
FROM jobs JOIN kinds USING (kind)
"""
_PAID = """
SELECT jobs.job, id, kinds.model, kinds.image_size, request, unsent, stem, image_url, tries_, damaged_sha256, failed_us,
  ifnull(position, 0) AS place
FROM jobs JOIN kinds USING (kind)
JOIN (SELECT job, image_url, tries AS tries_, damaged_sha256, failed_us FROM images) USING (job)
"""
_SUMS = "SELECT sum(reserved), sum(spent), sum(at_risk), sum(wasted) FROM runs"


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
        self._ballast = out / BALLAST_NAME
        self._group: GroupCommit[Callable[[sqlite3.Connection], Any], Any] = GroupCommit(executor, self._commit)
        self._broken: str | None = None
        self._prices_changed = True
        self._prices: dict[Kind, int] = {}
        self._kinds: dict[Kind, int] = {}
        self._taken: dict[str, tuple[int, int]] = {}
        self.totals = Totals()
        self.run_totals = Totals()
        self._keep_ballast()
        self._refresh()

    # Reads that need no turn of the database's thread.

    def price_micro(self, kind: Kind) -> int | None:
        """See ports.Store."""
        return self._prices.get(kind)

    # Changes. Each is one closed function that runs inside a transaction on the database's thread.

    async def next_pending(self, limit: int, *, known_only: bool = False) -> Sequence[QueuedJob]:
        """See ports.Store. One call at a time."""
        also = " AND twin IS NULL" + (" AND attempts > 0" if known_only else "")
        return [_queued(row) for row in await self._take("pending", _QUEUED, also, limit)]

    async def next_resend(self, limit: int) -> Sequence[QueuedJob]:
        """See ports.Store. One call at a time."""
        found = await self._take("in_doubt", _QUEUED, self._of_earlier_runs(), limit)
        return [_queued(row, resend=True) for row in found]

    async def next_paid(self, limit: int) -> Sequence[PaidImage]:
        """See ports.Store. One call at a time."""
        # What this run buys is handed on as it is bought: taken up here too, it would be fetched twice at once.
        return [_paid(row) for row in await self._take("paid", _PAID, self._of_earlier_runs(), limit)]

    def _of_earlier_runs(self) -> str:
        return f" AND (SELECT run FROM attempts WHERE attempts.attempt = jobs.attempt) < {int(self._run)}"

    async def _take(self, state: str, select: str, also: str, limit: int) -> list[sqlite3.Row]:
        """Read on from where the last call for this state ended.

        The place is moved here and not in the operation, which may be run twice.
        """
        place = self._taken.get(state, (-1, 0))
        # Paid jobs are fetched whether or not their row is still in the manifest.
        order = "ifnull(position, 0)" if state == "paid" else "position"

        def read(db: sqlite3.Connection) -> list[sqlite3.Row]:
            return db.execute(
                f"{select} WHERE state = ? AND ({order}, jobs.job) > (?, ?){also} ORDER BY {order}, jobs.job LIMIT ?",
                (state, *place, limit),
            ).fetchall()

        rows: list[sqlite3.Row] = await self.do(read)
        if rows:
            self._taken[state] = (rows[-1]["place"], rows[-1]["job"])
        return rows

    async def begin(self, job: QueuedJob, reserve: Reserve) -> int:
        """See ports.Store."""

        def write(db: sqlite3.Connection) -> int:
            if self._broken:
                raise DiskError(self._broken, "free some space or mend the disk, then run again")
            if job.resend:
                _move(db, job.index, JobState.IN_DOUBT, Event.RESEND)
            attempt = db.execute(
                "INSERT INTO attempts (job, run, kind, reserved, ceiling, sent_us) VALUES (?, ?, ?, ?, ?, ?)",
                (job.index, self._run, self._kind(db, job.kind), reserve.micro, reserve.ceiling, self._clock.wall_us()),
            ).lastrowid
            _move(db, job.index, JobState.PENDING, Event.SEND, "attempts = attempts + 1, attempt = ?", attempt)
            return int(attempt or 0)

        written = self.do(write)
        try:
            return await asyncio.shield(written)
        except asyncio.CancelledError:
            # The row will be durable, its request never sent: said in the group after it.
            written.add_done_callback(lambda ended: self._take_back(ended, job))
            raise

    def _take_back(self, begun: "asyncio.Future[int]", job: QueuedJob) -> None:
        if not begun.cancelled() and begun.exception() is None:
            attempt = begun.result()
            self.do(lambda db: _settle_unsent(db, attempt, job.index))

    async def settle(self, attempt: int, job: QueuedJob, settled: Settled) -> PaidImage | None:
        """See ports.Store."""

        def write(db: sqlite3.Connection) -> PaidImage | None:
            _close(db, attempt, settled)
            _move(db, job.index, JobState.SENDING, settled.event, "tries = tries + ?", int(settled.counts))
            if settled.answer is None:
                return None
            db.execute(
                "INSERT OR REPLACE INTO images (job, attempt, image_url) VALUES (?, ?, ?)",
                (job.index, attempt, settled.answer.image_url),
            )
            if settled.settlement is Settlement.PAID:
                self._see_price(db, job.kind, settled.answer.credits_micro or 0)
            return _bought(job, settled.answer.image_url)

        return await self.do(write)  # type: ignore[no-any-return]

    async def finish(self, index: int, image: StoredImage) -> None:
        """See ports.Store."""
        done_us = self._clock.wall_us()

        def write(db: sqlite3.Connection) -> None:
            record_image(db, index, image, done_us)

        await self.do(write)

    async def unfetched(self, index: int, failure: FetchFailed, lost: bool) -> None:
        """See ports.Store."""
        now_us = self._clock.wall_us()

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE images SET tries = tries + 1, failed_us = ifnull(failed_us, ?), error_class = ?,"
                " error_message = ?, damaged_sha256 = ifnull(?, damaged_sha256) WHERE job = ?",
                (now_us, failure.name, failure.message, failure.sha256, index),
            )
            if lost:
                _move(db, index, JobState.PAID, Event.IMAGE_LOST)
                db.execute(
                    "UPDATE attempts SET wasted = 1 WHERE attempt = (SELECT attempt FROM images WHERE job = ?)",
                    (index,),
                )

        await self.do(write)

    def do(self, operation: Callable[[sqlite3.Connection], Any]) -> "asyncio.Future[Any]":
        """Run any other change, or read, in a group of its turn; durable when the future ends."""
        return self._group.put(operation)

    def release(self) -> None:
        """Give the ballast back. The connection stays its opener's."""
        with contextlib.suppress(OSError):
            self._ballast.unlink(missing_ok=True)

    # The database's thread.

    def _commit(self, operations: Sequence[Callable[[sqlite3.Connection], Any]]) -> Sequence[Any]:
        try:
            return self._transaction(operations)
        except sqlite3.OperationalError as failed:
            return self._after_disk_error(operations, failed)
        except Exception:  # noqa: BLE001  # one bad operation must not take its neighbours' commit down: each alone
            return [self._alone(operation) for operation in operations]

    def _transaction(self, operations: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            results = [operation(db) for operation in operations]
            db.execute("COMMIT")
        except BaseException:
            self._kinds.clear()
            self._prices_changed = True
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._refresh()
        return results

    def _alone(self, operation: Callable[[sqlite3.Connection], Any]) -> Any:
        try:
            return self._transaction([operation])[0]
        except sqlite3.OperationalError as failed:
            return self._after_disk_error([operation], failed)[0]
        except Exception as failed:  # noqa: BLE001  # handed to the one caller it belongs to
            return failed

    def _after_disk_error(
        self, operations: Sequence[Callable[[sqlite3.Connection], Any]], failed: sqlite3.OperationalError
    ) -> Sequence[Any]:
        """Make room and try once more, without beginning anything new: paid answers must not be lost."""
        first = self._broken is None
        self._broken = f"{self._ballast.parent}: the state file can't be written: {failed}"
        error = DiskError(self._broken, "free some space or mend the disk, then run again")
        if not first and len(operations) == 1:
            return [error]
        with contextlib.suppress(OSError):
            self._ballast.unlink(missing_ok=True)
        results = []
        for operation in operations:
            try:
                results.append(self._transaction([operation])[0])
            except sqlite3.OperationalError:
                results.append(error)
            except Exception as other:  # noqa: BLE001  # handed to the one caller it belongs to
                results.append(other)
        return results

    def _refresh(self) -> None:
        db = self._db
        self.totals = Totals(*(value or 0 for value in db.execute(_SUMS).fetchone()))
        mine = db.execute(f"{_SUMS} WHERE run = ?", (self._run,)).fetchone()
        self.run_totals = Totals(*(value or 0 for value in mine))
        if self._prices_changed:
            self._prices_changed = False
            known = db.execute("SELECT model, image_size, highest FROM kinds WHERE highest IS NOT NULL").fetchall()
            self._prices = {Kind(row["model"], row["image_size"]): row["highest"] for row in known}

    def _kind(self, db: sqlite3.Connection, kind: Kind) -> int:
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = kind_number(db, kind)
        return found

    def _see_price(self, db: sqlite3.Connection, kind: Kind, price: int) -> None:
        known = self._prices.get(kind)
        if known is None:
            db.execute(
                "UPDATE attempts SET reserved = min(reserved, ?), ceiling = 0"
                " WHERE kind = ? AND ceiling = 1 AND outcome IN ('sending', 'doubt', 'unpriced')",
                (price, self._kind(db, kind)),
            )
        if known is None or price > known:
            self._prices_changed = True

    def _keep_ballast(self) -> None:
        """Keep 4 MiB to give up when the disk is full, so that what was paid for can still be recorded."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            except (OSError, AttributeError):
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)


def share_image(db: sqlite3.Connection, index: int, path: str, done_us: int) -> None:
    """Record that a twin's own name is linked, durably, to the image of the job it shares. Nothing is paid."""
    db.execute(
        "INSERT INTO images"
        " (job, attempt, image_url, path, bytes, sha256, width, height, content_type, warning, done_us)"
        " SELECT twins.job, images.attempt, image_url, ?, bytes, sha256, width, height, content_type, warning, ?"
        " FROM jobs AS twins JOIN images ON images.job = twins.twin WHERE twins.job = ?",
        (path, done_us, index),
    )
    _move(db, index, JobState.PENDING, Event.SEND)
    _move(db, index, JobState.SENDING, Event.ANSWERED)
    _move(db, index, JobState.PAID, Event.STORED)


def kind_number(db: sqlite3.Connection, kind: Kind) -> int:
    """Return the number of a model × size, making it known."""
    db.execute("INSERT OR IGNORE INTO kinds (model, image_size) VALUES (?, ?)", (kind.model, kind.image_size))
    row = db.execute("SELECT kind FROM kinds WHERE model = ? AND image_size = ?", (kind.model, kind.image_size))
    return int(row.fetchone()[0])


def _move(db: sqlite3.Connection, index: int, was: JobState, event: Event, also: str = "", *values: object) -> None:
    """Move one job along the table; `was` guards against a job that is elsewhere than its caller believes."""
    becomes = after(was, event)
    changed = db.execute(
        f"UPDATE jobs SET state = ?{', ' + also if also else ''} WHERE job = ? AND state = ?",
        (becomes, *values, index, was),
    ).rowcount
    if changed != 1:
        raise sqlite3.IntegrityError(f"job {index} is not {was}")


def _settle_unsent(db: sqlite3.Connection, attempt: int, index: int) -> None:
    _close(db, attempt, Settled(Event.NOT_SENT, Settlement.NOT_SENT, "stopped", "stopped before it was sent"))
    _move(db, index, JobState.SENDING, Event.NOT_SENT)


def _close(db: sqlite3.Connection, attempt: int, settled: Settled) -> None:
    if settled.settlement not in SETTLEMENTS[Settlement.SENDING]:
        raise sqlite3.IntegrityError(f"an attempt can't end as {settled.settlement}")
    answer = settled.answer
    changed = db.execute(
        "UPDATE attempts SET outcome = ?, credits = ?, latency_s = ?, status = ?, class = ?, message = ?,"
        " answer = ?, settled_by = 'answer' WHERE attempt = ?",
        (
            settled.settlement, answer.credits_micro if answer and settled.settlement is Settlement.PAID else None,
            settled.latency_s, settled.status, settled.verdict, settled.message, settled.raw[:MAX_RAW_BYTES] or None,
            attempt,
        ),
    ).rowcount  # fmt: skip
    if changed != 1:
        raise sqlite3.IntegrityError(f"there is no attempt {attempt}")


def _queued(row: sqlite3.Row, *, resend: bool = False) -> QueuedJob:
    kind = Kind(row["model"], row["image_size"])
    # Tries are this run's: a storm that several runs began in must not use them up.
    return QueuedJob(
        row["job"], row["id"], kind, row["request"], row["refs"], row["attempts"], 0, resend,
        stem=row["stem"], unsent=row["unsent"],
    )  # fmt: skip


def _bought(job: QueuedJob, url: str) -> PaidImage:
    """Return the image of a call that was just answered. Nothing of it has to be read again: its row is new."""
    return PaidImage(job.index, job.id, url, job.stem, _expected_pixels(job.kind, job.request, job.unsent))


def paid_images(db: sqlite3.Connection) -> Iterator[PaidImage]:
    """Yield each image that is paid for and not on disk."""
    for row in db.execute(f"{_PAID} WHERE state = 'paid'").fetchall():
        yield _paid(row)


def record_image(db: sqlite3.Connection, index: int, image: StoredImage, done_us: int) -> None:
    """Record an image that lies durable under its name, and its job as done."""
    db.execute(
        "UPDATE images SET path = ?, bytes = ?, sha256 = ?, width = ?, height = ?, content_type = ?,"
        " warning = ?, done_us = ?, error_class = NULL, error_message = NULL WHERE job = ?",
        (
            image.path, image.bytes, bytes.fromhex(image.sha256), image.width, image.height,
            image.content_type, image.warning, done_us, index,
        ),
    )  # fmt: skip
    _move(db, index, JobState.PAID, Event.STORED)


def _expected_pixels(kind: Kind, request: str, unsent: str | None) -> tuple[int, int] | None:
    ratio = json.loads(request).get("aspect_ratio") or json.loads(unsent or "{}").get("aspect_ratio")
    return pixels(kind.model, ratio, kind.image_size)


def _paid(row: sqlite3.Row) -> PaidImage:
    return PaidImage(
        index=row["job"],
        id=row["id"],
        url=row["image_url"],
        stem=row["stem"],
        expected_pixels=_expected_pixels(Kind(row["model"], row["image_size"]), row["request"], row["unsent"]),
        tries=row["tries_"],
        damaged_sha256=row["damaged_sha256"],
        failed_earlier=row["failed_us"] is not None,
    )
