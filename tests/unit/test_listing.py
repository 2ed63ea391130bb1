"""results.jsonl, begun while the last calls are out: always the same file as one that is written at the end."""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from banana_batch.errors import DiskError
from banana_batch.lifecycle import Event, Settlement
from banana_batch.listing import Listing
from banana_batch.models import Reserve, Settled, StoredImage
from banana_batch.pacing.clock import SystemClock
from banana_batch.report.results import FILE_NAME, add_results, result_dict, write_results
from banana_batch.store import queries, runs
from banana_batch.store.state import StateStore
from tests.torture.virtual import Inline
from tests.unit.store.small import CREDIT, Flaky, opened, paid

JOBS = 6
REFUSED = Settled(Event.REFUSED, Settlement.REFUSED, "refused_400", "no")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    with opened(tmp_path, JOBS) as flaky:
        yield flaky


@pytest.fixture
def store(db: Flaky, tmp_path: Path) -> StateStore:
    return StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 0, None), tmp_path)


@pytest.fixture
def listing(tmp_path: Path) -> Iterator[Listing]:
    with ThreadPoolExecutor(1) as executor:
        made = Listing(tmp_path, executor)
        yield made
        made.close()


async def settle(store: StateStore, settled: Settled) -> None:
    """Send the next job, and let it end like this; its image is stored."""
    (job,) = await store.next_pending(1)
    attempt = await store.begin(job, Reserve(13 * CREDIT, ceiling=True))
    image = await store.settle(attempt, job, settled)
    if image is not None:
        await store.finish(job.index, StoredImage(f"images/{job.index}.png", 9, "00" * 32, 1, 1, "image/png"))


def early_rows(listing: Listing) -> int:
    assert listing._early is not None
    early = listing._early.result()
    assert early is not None
    return early.rows


def hear(listing: Listing, calls: int) -> None:
    for _ in range(calls):
        listing.emit("sent")


def whole(db: Flaky, folder: Path) -> bytes:
    """Return what the results are when they are written at once; nothing else lies there."""
    (folder / "expected").mkdir()
    write_results(folder / "expected", map(result_dict, queries.results(db)))
    return (folder / "expected" / FILE_NAME).read_bytes()


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(f".{FILE_NAME}")]


def assert_written_whole(listing: Listing, db: Flaky, folder: Path) -> None:
    """Write the results: they are as if written at once, and nothing else stays behind."""
    listing.write(db)
    assert (folder / FILE_NAME).read_bytes() == whole(db, folder)
    assert not leftovers(folder)


async def test_the_head_is_written_when_the_last_call_leaves(
    db: Flaky, store: StateStore, listing: Listing, tmp_path: Path
) -> None:
    """Rows that are done or refused for good, up to the first that may still change; the rest at the end."""
    for settled in (paid(), REFUSED, paid()):
        await settle(store, settled)
    listing.calls = JOBS
    hear(listing, JOBS - 1)
    assert listing._early is None
    hear(listing, 1)
    assert early_rows(listing) == 3
    assert not (tmp_path / FILE_NAME).exists()
    hear(listing, 2)  # calls that are repeated
    for _ in range(JOBS - 3):
        await settle(store, paid())
    assert_written_whole(listing, db, tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes().count(b"\n") == JOBS


async def test_more_is_written_as_the_last_images_come(
    db: Flaky, store: StateStore, listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end finds only the last images' rows unwritten."""
    monkeypatch.setattr(listing, "_part", 1)
    listing.calls = JOBS
    for _ in range(2):
        await settle(store, paid())
        listing.emit("stored")  # while calls still leave
    hear(listing, JOBS)
    for rows in (2, 3, 3, 5):  # after one, and after two more
        assert early_rows(listing) == rows
        await settle(store, paid())
        listing.emit("stored")
    assert early_rows(listing) == JOBS - 1
    assert_written_whole(listing, db, tmp_path)


async def test_a_second_part_that_breaks_off_is_no_part_of_the_results(
    db: Flaky, store: StateStore, listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is in the file by then: all is written anew."""
    monkeypatch.setattr(listing, "_part", 1)
    await settle(store, paid())
    listing.calls = JOBS
    hear(listing, JOBS)
    assert early_rows(listing) == 1
    for _ in range(JOBS - 1):
        await settle(store, paid())

    def breaks(file: BinaryIO, rows: Iterable[Mapping[str, Any]]) -> int:
        add_results(file, islice(rows, 2))
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr("banana_batch.listing.add_results", breaks)
        listing.emit("stored")
        assert listing._early is not None
        assert listing._early.result() is None
    assert not leftovers(tmp_path)  # a disk that was full has its room back at once
    listing.emit("stored")
    listing.emit("stored")
    assert listing._early.result() is None
    assert_written_whole(listing, db, tmp_path)


async def test_no_part_waits_for_another(
    db: Flaky, store: StateStore, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of earlier runs may come by the thousand: the end waits for one part at most."""
    monkeypatch.setattr(listing, "_part", 1)
    may, begun = threading.Event(), []

    def slow(file: BinaryIO, rows: Iterable[Mapping[str, Any]]) -> int:
        begun.append(1)
        assert may.wait(20)
        return add_results(file, rows)

    monkeypatch.setattr("banana_batch.listing.add_results", slow)
    await settle(store, paid())
    listing.calls = 1
    hear(listing, 1)
    for _ in range(1000):
        listing.emit("stored")
    may.set()
    assert early_rows(listing) == 1
    assert begun == [1]


@pytest.mark.parametrize("open_end", ["pending", "paid", "in doubt"])
async def test_what_may_change_is_not_written_early(
    db: Flaky, store: StateStore, listing: Listing, tmp_path: Path, open_end: str
) -> None:
    """Nor what comes after it in the manifest."""
    if open_end == "paid":
        (job,) = await store.next_pending(1)
        await store.settle(await store.begin(job, Reserve(CREDIT, ceiling=True)), job, paid())
    elif open_end == "in doubt":
        await settle(store, Settled(Event.UNANSWERED, Settlement.DOUBT, "cut", "cut"))
    if open_end != "pending":
        await settle(store, paid())
    listing.calls = 1
    hear(listing, 1)
    assert early_rows(listing) == 0
    listing.write(db)
    assert (tmp_path / FILE_NAME).read_bytes() == whole(db, tmp_path)


def _taken_away(_listing: Listing, folder: Path) -> None:
    for name in leftovers(folder):
        (folder / name).unlink()


def _without_a_state(_listing: Listing, folder: Path) -> None:
    (folder / "state.sqlite3").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("before", "after"),
    [(_without_a_state, None), (None, _taken_away)],
    ids=["it can't begin", "another writer takes it for a dead one's"],
)
async def test_without_an_early_part_all_is_written_at_the_end(
    db: Flaky,
    store: StateStore,
    listing: Listing,
    tmp_path: Path,
    before: Callable[[Listing, Path], None] | None,
    after: Callable[[Listing, Path], None] | None,
) -> None:
    """Whatever went wrong with it."""
    await settle(store, paid())
    listing.calls = 1
    if before is not None:
        before(listing, tmp_path)
    hear(listing, 1)
    assert listing._early is not None
    listing._early.result()
    if after is not None:
        after(listing, tmp_path)
    assert_written_whole(listing, db, tmp_path)


async def test_the_last_room_of_a_disk_is_for_images(
    db: Flaky, store: StateStore, listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results can be written again at any time."""
    monkeypatch.setattr("banana_batch.listing.ROOM_BYTES", 1 << 62)
    await settle(store, paid())
    listing.calls = 1
    hear(listing, 1)
    assert listing._early is not None
    assert listing._early.result() is None
    listing.write(db)
    assert (tmp_path / FILE_NAME).read_bytes() == whole(db, tmp_path)


async def test_a_run_that_fails_leaves_no_early_part(store: StateStore, listing: Listing, tmp_path: Path) -> None:
    """And the results of the run before as they were."""
    (tmp_path / FILE_NAME).write_bytes(b"old\n")
    await settle(store, paid())
    listing.calls = 1
    hear(listing, 1)
    assert early_rows(listing) == 1
    assert leftovers(tmp_path)
    listing.close()
    assert not leftovers(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == b"old\n"


async def test_a_disk_that_fills_up_at_the_end_is_told(
    db: Flaky, store: StateStore, listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old results are as they were, and nothing of the early part is left."""
    (tmp_path / FILE_NAME).write_bytes(b"old\n")
    await settle(store, paid())
    listing.calls = 1
    hear(listing, 1)
    assert early_rows(listing) == 1

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        listing.write(db)
    monkeypatch.undo()
    assert not leftovers(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == b"old\n"
