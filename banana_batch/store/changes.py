"""The changes that every job makes, and their SQL: a group of them costs a handful of statements, not some each.

Rule 1: an attempt and its job move in the same transaction, each along the tables of lifecycle.py.
Rule 2: each change is guarded: its job is where its caller believes, its attempt is open. Where one of a group is
        not, none of the group is made: the caller rolls back and makes each alone.
Rule 3: a group holds at most one change of a job, as whoever makes one waits for it before the next. So changes of a
        group commute; a job that is in it twice is one change short, and falls under rule 2.
Rule 4: order in a group: begins, settlements, finished images, then all other operations as they were put.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from msgspec import Struct

from banana_batch.lifecycle import SETTLEMENTS, Event, JobState, Settlement, after
from banana_batch.models import FetchFailed, Kind, QueuedJob, Reserve, Settled, StoredImage

from .handout import bought
from .known import Known
from .rows import ForRows

MAX_RAW_BYTES = 64 << 10


class Begin(Struct):
    """An attempt with its reserve is written, and its job is `sending`; results in the attempt's number."""

    job: QueuedJob
    reserve: Reserve


class Settle(Struct):
    """An attempt is closed, and its job moved; results in the image to fetch, if there is one."""

    attempt: int
    job: QueuedJob
    settled: Settled


class Finish(Struct):
    """An image lies durable under its name, and its job is `done`."""

    job: int
    image: StoredImage


Operation = Callable[[sqlite3.Connection], Any]
Change = Begin | Settle | Finish | Operation

# A job's index, where it is believed to be, where it goes; the attempt that begins; tries that are used up; what is
# added to the requests that left, or may have left, this machine.
Move = tuple[int, str, str, int | None, int, int]

# The planner is kept off the index by state (`+`): it would walk all pending jobs for a few of them.
_MOVE = ForRows(
    "UPDATE jobs SET state = v.column3, attempts = attempts + v.column6,"
    " attempt = ifnull(v.column4, attempt), tries = tries + v.column5"
    " FROM {rows} AS v WHERE job = v.column1 AND +state = v.column2",
    6,
)
_BEGIN = ForRows(
    "INSERT INTO attempts (run, sent_us, attempt, job, kind, reserved, ceiling)"
    " SELECT ?, ?, v.* FROM {rows} AS v WHERE v.column1 IS NOT NULL",
    5,
)
_CLOSE = ForRows(
    "UPDATE attempts SET outcome = v.column2, credits = v.column3, latency_s = v.column4, status = v.column5,"
    " class = v.column6, message = v.column7, answer = v.column8, settled_by = 'answer'"
    " FROM {rows} AS v WHERE attempt = v.column1",
    8,
)
_BUY = ForRows(
    "INSERT OR REPLACE INTO images (job, attempt, image_url)"
    " SELECT v.* FROM {rows} AS v WHERE v.column1 IS NOT NULL",
    3,
)  # fmt: skip
_STORE = ForRows(
    "UPDATE images SET done_us = ?, path = v.column2, bytes = v.column3, sha256 = v.column4, width = v.column5,"
    " height = v.column6, content_type = v.column7, warning = v.column8, error_class = NULL, error_message = NULL"
    " FROM {rows} AS v WHERE job = v.column1",
    8,
)
STATEMENTS = (_MOVE, _BEGIN, _CLOSE, _BUY, _STORE)

# Plain strings: sqlite3 looks for an adapter for each value of any other type.
_IN_DOUBT, _PENDING, _SENDING, _PAID = (
    state.value for state in (JobState.IN_DOUBT, JobState.PENDING, JobState.SENDING, JobState.PAID)
)
_RESENT = after(JobState.IN_DOUBT, Event.RESEND).value
_SENT = after(JobState.PENDING, Event.SEND).value
_DONE = after(JobState.PAID, Event.STORED).value
_NOT_SENT = Settlement.NOT_SENT.value

# Which one is told when each is made alone.
_ONE_OF_THEM = "a change of this group can't be made"


def make(db: sqlite3.Connection, changes: Sequence[Change], known: Known, now_us: int) -> list[Any]:
    """Make a group of changes inside a transaction; return what each results in.

    Args:
        now_us: Their time, for the record: all of a group become durable at once.

    Raises:
        sqlite3.IntegrityError, IllegalTransition: one of them can't be made; nothing of the group may be kept.
        Exception: whatever an operation raises; likewise.
    """
    results: list[Any] = [None] * len(changes)
    begins, settles, finishes, others = _sorted(changes)
    moves: list[Move] = []
    stated = _highest_stated(change for _, change in settles)
    if begins:
        numbers = known.number(len(begins))
        moves += _begin(db, [change for _, change in begins], numbers, known, stated, now_us)
        for (place, _), number in zip(begins, numbers, strict=True):
            results[place] = number
    if settles:
        moves += _settle(db, [change for _, change in settles])
        for place, change in settles:
            answer = change.settled.answer
            if answer is not None:
                results[place] = bought(change.job, answer.image_url)
    if finishes:
        moves += _finish(db, finishes, now_us)
    move(db, moves)
    known.see_prices(db, stated)
    for place, operation in others:
        results[place] = operation(db)
    return results


def _sorted(
    changes: Sequence[Change],
) -> tuple[list[tuple[int, Begin]], list[tuple[int, Settle]], list[Finish], list[tuple[int, Operation]]]:
    begins: list[tuple[int, Begin]] = []
    settles: list[tuple[int, Settle]] = []
    finishes: list[Finish] = []
    others: list[tuple[int, Operation]] = []
    for place, change in enumerate(changes):
        if isinstance(change, Begin):
            begins.append((place, change))
        elif isinstance(change, Settle):
            settles.append((place, change))
        elif isinstance(change, Finish):
            finishes.append(change)
        else:
            others.append((place, change))
    return begins, settles, finishes, others


def _begin(
    db: sqlite3.Connection,
    begins: Sequence[Begin],
    numbers: range,
    known: Known,
    stated: Mapping[Kind, int],
    sent_us: int,
) -> list[Move]:
    move(db, [(begin.job.index, _IN_DOUBT, _RESENT, None, 0, 0) for begin in begins if begin.job.resend])
    rows = [
        (number, begin.job.index, known.kind(db, begin.job.kind), held.micro, int(held.ceiling))
        for number, begin in zip(numbers, begins, strict=True)
        for held in (known.written(begin.job.kind, begin.reserve, stated),)
    ]
    _BEGIN.run(db, rows, known.run, sent_us)
    return [(index, _PENDING, _SENT, number, 0, 1) for number, index, *_ in rows]


def _settle(db: sqlite3.Connection, settles: Sequence[Settle]) -> list[Move]:
    endings = [_ending(settle.settled.event, settle.settled.settlement) for settle in settles]
    rows = [
        _closing(settle.attempt, outcome, settle.settled) for settle, (_, outcome) in zip(settles, endings, strict=True)
    ]
    closed = _CLOSE.run(db, rows)
    if closed != len(settles):
        raise sqlite3.IntegrityError(f"there is no attempt {settles[0].attempt}" if len(settles) == 1 else _ONE_OF_THEM)
    _BUY.run(
        db,
        [
            (settle.job.index, settle.attempt, settle.settled.answer.image_url)
            for settle in settles
            if settle.settled.answer is not None
        ],
    )
    return [
        (settle.job.index, _SENDING, becomes, None, int(settle.settled.counts), -int(outcome == _NOT_SENT))
        for settle, (becomes, outcome) in zip(settles, endings, strict=True)
    ]


@cache
def _ending(event: Event, settlement: Settlement) -> tuple[str, str]:
    """Return what a settlement makes of the job and of its attempt."""
    if settlement not in SETTLEMENTS[Settlement.SENDING]:
        raise sqlite3.IntegrityError(f"an attempt can't end as {settlement}")
    return after(JobState.SENDING, event).value, settlement.value


def _closing(attempt: int, outcome: str, settled: Settled) -> tuple[object, ...]:
    answer = settled.answer
    return (
        attempt, outcome, answer.credits_micro if answer and settled.settlement is Settlement.PAID else None,
        settled.latency_s, settled.status, settled.verdict, settled.message, settled.raw[:MAX_RAW_BYTES] or None,
    )  # fmt: skip


def _highest_stated(settles: Iterable[Settle]) -> dict[Kind, int]:
    """Return the highest price that answers state, by kind; an image that was free states none."""
    highest: dict[Kind, int] = {}
    for settle in settles:
        answer, kind = settle.settled.answer, settle.job.kind
        if answer is not None and answer.credits_micro and settle.settled.settlement is Settlement.PAID:
            highest[kind] = max(answer.credits_micro, highest.get(kind, 0))
    return highest


def _finish(db: sqlite3.Connection, finishes: Sequence[Finish], done_us: int) -> list[Move]:
    rows = [
        (
            finish.job, image.path, image.bytes, bytes.fromhex(image.sha256), image.width, image.height,
            image.content_type, image.warning,
        )
        for finish in finishes
        for image in (finish.image,)
    ]  # fmt: skip
    _STORE.run(db, rows, done_us)
    return [(finish.job, _PAID, _DONE, None, 0, 0) for finish in finishes]


def move(db: sqlite3.Connection, moves: Sequence[Move]) -> None:
    """Move jobs along the table, each at most once.

    Raises:
        sqlite3.IntegrityError: a job is elsewhere than its caller believes.
    """
    if _MOVE.run(db, moves) != len(moves):
        index, was, *_ = moves[0]
        raise sqlite3.IntegrityError(f"job {index} is not {was}" if len(moves) == 1 else _ONE_OF_THEM)


def record_image(db: sqlite3.Connection, index: int, image: StoredImage, done_us: int) -> None:
    """Record an image that lies durable under its name, and its job as done."""
    move(db, _finish(db, [Finish(index, image)], done_us))


def record_failure(db: sqlite3.Connection, index: int, failure: FetchFailed, now_us: int, *, lost: bool) -> None:
    """Record a fetch that failed; `lost`: the image can no longer be had."""
    db.execute(
        "UPDATE images SET tries = tries + 1, failed_us = ifnull(failed_us, ?), error_class = ?,"
        " error_message = ?, damaged_sha256 = ifnull(?, damaged_sha256) WHERE job = ?",
        (now_us, failure.name, failure.message, failure.sha256, index),
    )
    if lost:
        _step(db, index, JobState.PAID, Event.IMAGE_LOST)
        db.execute(
            "UPDATE attempts SET wasted = 1 WHERE attempt = (SELECT attempt FROM images WHERE job = ?)", (index,)
        )


def share_image(db: sqlite3.Connection, index: int, path: str, done_us: int) -> None:
    """Record that a twin's own name is linked, durably, to the image of the job it shares. Nothing is paid."""
    db.execute(
        "INSERT INTO images"
        " (job, attempt, image_url, path, bytes, sha256, width, height, content_type, warning, done_us)"
        " SELECT twins.job, images.attempt, image_url, ?, bytes, sha256, width, height, content_type, warning, ?"
        " FROM jobs AS twins JOIN images ON images.job = twins.twin WHERE twins.job = ?",
        (path, done_us, index),
    )
    _step(db, index, JobState.PENDING, Event.SEND)
    _step(db, index, JobState.SENDING, Event.ANSWERED)
    _step(db, index, JobState.PAID, Event.STORED)


def _step(db: sqlite3.Connection, index: int, was: JobState, event: Event) -> None:
    move(db, [(index, was.value, after(was, event).value, None, 0, 0)])
