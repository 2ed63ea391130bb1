"""What comes next, on a real state file: limits, what is put back, what comes again, doubts at the end."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from banana_batch.engine.feed import LOW_WATER, PAGE, Feed
from banana_batch.models import QueuedJob
from banana_batch.pacing.clock import SystemClock
from banana_batch.store import runs
from banana_batch.store.state import StateStore
from tests.torture.virtual import Inline
from tests.unit.store.small import DOUBT, HELD, Flaky, opened

JOBS = 6


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    with opened(tmp_path, JOBS) as flaky:
        yield flaky


def store_of(db: Flaky, folder: Path) -> StateStore:
    """Return the state as a new run sees it."""
    return StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 0, None), folder)


async def taken(feed: Feed) -> QueuedJob:
    """Return the next job; there is one."""
    async with asyncio.timeout(5):
        job = await feed.take()
    assert job is not None
    return job


async def test_what_is_put_back_is_the_next_and_counts_for_no_limit(db: Flaky, tmp_path: Path) -> None:
    """A job for which there were no credits was not sent: three may be sent, and three are handed out for good."""
    feed = Feed(store_of(db, tmp_path), SystemClock(), limit=3, resend=False)
    first = await taken(feed)
    for _ in range(5):
        again = feed.take_now()
        assert again is not None
        feed.put_back(again)
    assert not feed.limited
    rest = [await taken(feed), await taken(feed)]
    assert [job.index for job in (first, *rest)] == [1, 2, 3]
    assert feed.limited
    for _ in range(3):
        feed.closed()
    assert await feed.take() is None


async def test_what_comes_again_is_waited_for(db: Flaky, tmp_path: Path) -> None:
    """All others are out, and one of them may come back: who asks for a job waits until it is known."""
    feed = Feed(store_of(db, tmp_path), SystemClock(), limit=1, resend=False)
    job = await taken(feed)
    waiting = asyncio.create_task(feed.take())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    feed.again(replace(job, attempts=1), 0.01)
    async with asyncio.timeout(5):
        assert await waiting == replace(job, attempts=1)
    feed.closed()
    assert await feed.take() is None


async def test_doubts_come_once_and_after_all_else(db: Flaky, tmp_path: Path) -> None:
    """Two doubts of an earlier run: not before the last of the others is closed; none that this run leaves."""
    before = store_of(db, tmp_path)
    for job in (await before.next_pending(2))[:2]:
        await before.settle(await before.begin(job, HELD), job, DOUBT)
    now = store_of(db, tmp_path)
    feed = Feed(now, SystemClock(), limit=None, resend=True)
    others = [await taken(feed) for _ in range(JOBS - 2)]
    assert {job.index for job in others} == {3, 4, 5, 6}
    waiting = asyncio.create_task(feed.take())
    for job in others:
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        await now.settle(await now.begin(job, HELD), job, DOUBT)
        feed.closed()
    async with asyncio.timeout(5):
        resent = [await waiting, await feed.take()]
    assert [(job.index, job.resend) for job in resent if job] == [(1, True), (2, True)]
    for _ in resent:
        feed.closed()
    assert await feed.take() is None


async def test_the_next_page_is_there_before_the_last_one_is_used_up(tmp_path: Path) -> None:
    """A call that ends finds a job at hand, whichever it is; in memory are a few pages, and reading ends by itself."""
    jobs = 3 * (LOW_WATER + PAGE)
    with opened(tmp_path, jobs) as db:
        feed = Feed(store_of(db, tmp_path), SystemClock(), limit=None, resend=False)
        filling = asyncio.create_task(feed.keep_filled())
        handed_out = [(await taken(feed)).index]
        while (job := feed.take_now()) is not None:
            handed_out.append(job.index)
            assert feed.at_hand <= LOW_WATER + PAGE
            for _ in range(20):
                await asyncio.sleep(0)
        assert handed_out == list(range(1, jobs + 1))
        async with asyncio.timeout(5):
            await filling


async def test_a_stop_ends_the_reading(tmp_path: Path) -> None:
    """Thousands wait in the state: nobody reads on for nobody."""
    with opened(tmp_path, 2 * (LOW_WATER + PAGE)) as db:
        feed = Feed(store_of(db, tmp_path), SystemClock(), limit=None, resend=False)
        filling = asyncio.create_task(feed.keep_filled())
        await taken(feed)
        feed.stop()
        async with asyncio.timeout(5):
            await filling
        assert feed.take_now() is None
