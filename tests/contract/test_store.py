"""What the state file promises, on a thread of its own as in a run and on the caller's as in simulated nights."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from banana_batch.errors import DiskError
from banana_batch.models import Backoff, FetchFailed, PaidImage, StoredImage
from banana_batch.pacing.clock import SystemClock
from banana_batch.store import queries, runs
from banana_batch.store.state import StateStore
from tests.torture.virtual import Inline
from tests.unit.store.small import CREDIT, DOUBT, HELD, PRO, Flaky, opened, paid, states

IMAGE = StoredImage("images/1.png", 3, "ab" * 32, 1, 1, "image/png")
GONE = FetchFailed("image_gone", "HTTP 404", 6, Backoff(1.0, 2.0), lost=True, gone=True)
JOBS = 8


@pytest.fixture(params=[Inline, lambda: ThreadPoolExecutor(1)], ids=["inline", "thread"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made: Callable[[], Executor] = request.param
    with made() as executor:
        yield executor


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    with opened(tmp_path, JOBS) as flaky:
        yield flaky


@pytest.fixture
def store(db: Flaky, executor: Executor, tmp_path: Path) -> StateStore:
    return StateStore(db, executor, SystemClock(), runs.begin_run(db, 0, None), tmp_path)


@pytest.fixture
def seen(db: Flaky, tmp_path: Path) -> Callable[[], dict[str, int]]:
    """Tell what somebody else sees in the file: what is committed, and nothing else."""

    def look() -> dict[str, int]:
        with closing(sqlite3.connect(tmp_path / "state.sqlite3")) as other:
            found: dict[str, Any] = states(other)
            return found

    return look


Seen = Callable[[], dict[str, int]]


async def buy(store: StateStore) -> PaidImage:
    """Buy one image."""
    (job,) = await store.next_pending(1)
    image = await store.settle(await store.begin(job, HELD), job, paid())
    assert image is not None
    return image


async def test_a_begin_is_durable_when_it_returns(store: StateStore, seen: Seen) -> None:
    """Only then may a byte leave."""
    (job,) = await store.next_pending(1)
    await store.begin(job, HELD)
    assert seen() == {"sending": 1, "pending": JOBS - 1}


async def test_a_settlement_is_durable_no_later_than_what_is_begun_after_it(store: StateStore, seen: Seen) -> None:
    """Nobody need wait for it."""
    first, second = await store.next_pending(2)
    settling = store.settle(await store.begin(first, HELD), first, DOUBT)
    await store.begin(second, HELD)
    assert seen() == {"in_doubt": 1, "sending": 1, "pending": JOBS - 2}
    assert await settling is None


async def test_an_image_is_done_or_lost_when_that_returns(store: StateStore, seen: Seen) -> None:
    """And no other has changed."""
    bought = [await buy(store) for _ in range(3)]
    await store.finish(bought[0].index, IMAGE)
    await store.unfetched(bought[1].index, GONE, lost=True)
    assert seen() == {"done": 1, "lost": 1, "paid": 1, "pending": JOBS - 3}


async def test_each_job_is_handed_out_once_in_the_manifest_s_order(store: StateStore) -> None:
    """Whatever the page."""
    taken = [job.index for limit in (3, 1, 100, 5) for job in await store.next_pending(limit)]
    assert taken == list(range(1, JOBS + 1))


async def test_the_sums_are_those_of_the_last_commit(db: Flaky, store: StateStore) -> None:
    """What is set aside, at risk and spent; and the price."""
    assert store.price_micro(PRO) is None
    await buy(store)
    (job,) = await store.next_pending(1)
    await store.settle(await store.begin(job, HELD), job, DOUBT)
    assert store.price_micro(PRO) == 13 * CREDIT
    assert store.totals.spent == 13 * CREDIT
    assert store.run_totals == store.totals
    await store.flush()
    assert store.totals == await store.do(queries.totals)


async def test_many_changes_at_once_are_all_made(store: StateStore, seen: Seen) -> None:
    """Each caller has its own result."""
    jobs = await store.next_pending(JOBS)
    attempts = await asyncio.gather(*(store.begin(job, HELD) for job in jobs))
    assert sorted(attempts) == list(range(1, JOBS + 1))
    images = await asyncio.gather(
        *(store.settle(attempt, job, paid()) for attempt, job in zip(attempts, jobs, strict=True))
    )
    assert [image.index for image in images if image] == [job.index for job in jobs]
    assert seen() == {"paid": JOBS}


async def test_where_the_disk_takes_nothing_it_is_told_and_nothing_is_begun(
    db: Flaky, store: StateStore, seen: Seen
) -> None:
    """What is not durable has raised; later too."""
    first, second = await store.next_pending(2)
    db.full = lambda sql: sql == "COMMIT"
    with pytest.raises(DiskError):
        await store.begin(first, HELD)
    db.full = lambda _sql: False
    with pytest.raises(DiskError):
        await store.begin(second, HELD)
    assert seen() == {"pending": JOBS}
