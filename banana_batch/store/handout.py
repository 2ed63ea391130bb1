"""What the state hands out: jobs to send, images to fetch."""

import json
import sqlite3
from collections.abc import Callable, Iterator

from banana_batch.capabilities import pixels
from banana_batch.models import Kind, PaidImage, QueuedJob

_QUEUED = """
SELECT jobs.job, id, kinds.model, kinds.image_size, request, refs, attempts, stem, unsent, position AS place
FROM jobs JOIN kinds USING (kind)
"""
_PAID = """
SELECT jobs.job, id, kinds.model, kinds.image_size, request, unsent, stem, image_url, tries_, damaged_sha256, failed_us,
  sha256, ifnull(position, 0) AS place
FROM jobs JOIN kinds USING (kind)
JOIN (SELECT job, image_url, tries AS tries_, damaged_sha256, failed_us, sha256 FROM images) USING (job)
"""

# The manifest's order, and the index where two are at one place.
Place = tuple[int, int]
START: Place = (-1, 0)

Page = Callable[[sqlite3.Connection], list[sqlite3.Row]]


def pending(after: Place, limit: int, *, known_only: bool) -> Page:
    """Return a read of pending jobs behind a place; `known_only`: only such as were sent before."""
    also = " AND twin IS NULL" + (" AND attempts > 0" if known_only else "")
    return _page("pending", _QUEUED, also, after, limit)


def in_doubt(after: Place, limit: int, run: int) -> Page:
    """Return a read of jobs behind a place that are in doubt since before this run."""
    return _page("in_doubt", _QUEUED, _of_earlier_runs(run), after, limit)


def paid(after: Place, limit: int, run: int) -> Page:
    """Return a read of paid jobs behind a place that earlier runs left.

    What this run buys is handed on as it is bought: taken up here too, it would be fetched twice at once.
    """
    return _page("paid", _PAID, _of_earlier_runs(run), after, limit)


def _of_earlier_runs(run: int) -> str:
    # A job that shares another's image has no attempt of its own.
    return f" AND ifnull((SELECT run FROM attempts WHERE attempts.attempt = jobs.attempt), 0) < {int(run)}"


def _page(state: str, select: str, also: str, after: Place, limit: int) -> Page:
    # Paid jobs are fetched whether or not their row is still in the manifest.
    order = "ifnull(position, 0)" if state == "paid" else "position"
    sql = f"{select} WHERE state = ? AND ({order}, jobs.job) > (?, ?){also} ORDER BY {order}, jobs.job LIMIT ?"

    def read(db: sqlite3.Connection) -> list[sqlite3.Row]:
        return db.execute(sql, (state, *after, limit)).fetchall()

    return read


def place_of(row: sqlite3.Row) -> Place:
    """Return where a row stands."""
    return row["place"], row["job"]


def queued(row: sqlite3.Row, *, resend: bool = False) -> QueuedJob:
    """Return a row as a job to send."""
    kind = Kind(row["model"], row["image_size"])
    # Tries are this run's: a storm that several runs began in must not use them up.
    return QueuedJob(
        row["job"], row["id"], kind, row["request"], row["refs"], row["attempts"], 0, resend,
        stem=row["stem"], unsent=row["unsent"],
    )  # fmt: skip


def bought(job: QueuedJob, url: str) -> PaidImage:
    """Return the image of a call that was just answered. Nothing of it has to be read again: its row is new."""
    return PaidImage(job.index, job.id, url, job.stem, _expected_pixels(job.kind, job.request, job.unsent))


def paid_image(row: sqlite3.Row) -> PaidImage:
    """Return a row as an image to fetch."""
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


def paid_images(db: sqlite3.Connection) -> Iterator[tuple[PaidImage, str | None]]:
    """Yield each image that is paid for and not on disk, with its sum (hexadecimal) if it was there once."""
    for row in db.execute(f"{_PAID} WHERE state = 'paid'").fetchall():
        yield paid_image(row), row["sha256"].hex() if row["sha256"] else None


def _expected_pixels(kind: Kind, request: str, unsent: str | None) -> tuple[int, int] | None:
    ratio = json.loads(request).get("aspect_ratio") or json.loads(unsent or "{}").get("aspect_ratio")
    return pixels(kind.model, ratio, kind.image_size)
