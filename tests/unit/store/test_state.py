"""Changes of the state: durable before they are told, each on its own, also where the disk fails."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from banana_batch.errors import DiskError
from banana_batch.lifecycle import Event, JobState, Settlement
from banana_batch.mending import recover
from banana_batch.models import Backoff, FetchFailed, QueuedJob, Settled, StoredImage, Totals
from banana_batch.pacing.clock import SystemClock
from banana_batch.store import queries, resolve, runs
from banana_batch.store.ballast import BALLAST_NAME
from banana_batch.store.changes import share_image
from banana_batch.store.handout import paid_images
from banana_batch.store.state import StateStore
from tests.contract.fakes import Told
from tests.torture.virtual import Inline
from tests.unit.store.small import CREDIT, DOUBT, HELD, PRO, Flaky, opened, outcomes, paid


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    with opened(tmp_path) as flaky:
        yield flaky


@pytest.fixture
def store(db: Flaky, tmp_path: Path) -> StateStore:
    return StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 0, None), tmp_path)


async def begun(store: StateStore) -> tuple[int, QueuedJob]:
    (job,) = await store.next_pending(1)
    return await store.begin(job, HELD), job


async def test_a_paid_answer_is_recorded_although_the_disk_is_full(
    db: Flaky, store: StateStore, tmp_path: Path
) -> None:
    """The ballast makes room for it, and from then on nothing is begun."""
    attempt, job = await begun(store)
    db.full = lambda _sql: (tmp_path / BALLAST_NAME).exists()
    image = await store.settle(attempt, job, paid())
    assert image is not None
    assert outcomes(db) == ["paid"]
    (next_job,) = await store.next_pending(1)
    with pytest.raises(DiskError, match="full"):
        await store.begin(next_job, HELD)
    assert outcomes(db) == ["paid"]


async def test_where_there_is_no_room_at_all_it_is_told(db: Flaky, store: StateStore) -> None:
    """Each caller learns that its own change is not durable; once there is room, what was answered is recorded after all,
    before the next change is made, and nothing is begun."""
    first, second = await begun(store), await begun(store)
    db.full = lambda sql: sql == "COMMIT"
    results = await asyncio.gather(store.settle(*first, paid()), store.settle(*second, paid()), return_exceptions=True)
    assert [type(one) for one in results] == [DiskError, DiskError]
    with pytest.raises(DiskError):
        await store.do(lambda _db: None)
    assert outcomes(db) == ["sending", "sending"]
    db.full = lambda _sql: False
    assert await store.do(outcomes) == ["paid", "paid"]
    (next_job,) = await store.next_pending(1)
    with pytest.raises(DiskError):
        await store.begin(next_job, HELD)
    assert store.totals == queries.totals(db)


async def test_a_file_that_is_damaged_meanwhile_begins_nothing(db: Flaky, store: StateStore, tmp_path: Path) -> None:
    """A disk that loses what it held: it is told as the disk's fault, and nothing further is begun."""
    first, (second,) = await begun(store), await store.next_pending(1)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    state = tmp_path / "state.sqlite3"
    whole = state.read_bytes()
    state.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    db.execute("PRAGMA shrink_memory")  # what SQLite remembers of it
    with pytest.raises(DiskError, match="malformed"):
        await store.settle(*first, paid())
    state.write_bytes(whole)
    db.execute("PRAGMA shrink_memory")
    with pytest.raises(DiskError, match="malformed"):
        await store.begin(second, HELD)
    assert outcomes(db) == ["paid"]


async def test_a_bad_change_takes_no_neighbour_down(db: Flaky, store: StateStore) -> None:
    """Changes share a commit; one that can't be made is told to its own caller, the others are durable."""
    first, second = await begun(store), await begun(store)
    results = await asyncio.gather(
        store.settle(*first, paid()),
        store.settle(99, second[1], DOUBT),
        store.settle(second[0], second[1], DOUBT),
        return_exceptions=True,
    )
    assert [isinstance(one, sqlite3.IntegrityError) for one in results] == [False, True, False]
    assert outcomes(db) == ["paid", "doubt"]


async def test_a_full_disk_and_a_bad_change_at_once(db: Flaky, store: StateStore, tmp_path: Path) -> None:
    """Each keeps its own ending: the good change is made on the ballast's room, the bad one is told as a bug."""
    first, second = await begun(store), await begun(store)
    db.full = lambda _sql: (tmp_path / BALLAST_NAME).exists()
    good, bad = await asyncio.gather(
        store.settle(*first, paid()), store.settle(99, second[1], DOUBT), return_exceptions=True
    )
    assert not isinstance(good, BaseException)
    assert isinstance(bad, sqlite3.IntegrityError)


async def test_a_bad_change_on_a_disk_that_fills_meanwhile(db: Flaky, store: StateStore) -> None:
    """The group is taken apart for the bad one's sake; then the disk is full for the other."""
    first, second = await begun(store), await begun(store)
    begins: list[str] = []

    def full(sql: str) -> bool:
        begins.extend([sql] * sql.startswith("BEGIN"))
        return len(begins) > 1

    db.full = full
    good, bad = await asyncio.gather(
        store.settle(*first, paid()), store.settle(99, second[1], DOUBT), return_exceptions=True
    )
    assert isinstance(good, DiskError)
    assert isinstance(bad, DiskError)


async def test_a_begin_that_is_cancelled_leaves_a_pending_job(db: Flaky, store: StateStore) -> None:
    """Nothing was sent: whoever looks next sees no request under way."""
    (job,) = await store.next_pending(1)
    task = asyncio.ensure_future(store.begin(job, HELD))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.do(lambda _db: None)
    assert outcomes(db) in ([], ["not_sent"])
    assert db.execute("SELECT state FROM jobs WHERE job = 1").fetchone()[0] == "pending"
    assert store.totals.committed == 0


async def test_a_cancelled_begin_that_failed_leaves_nothing(db: Flaky, store: StateStore) -> None:
    """There is no row to take back."""
    (job,) = await store.next_pending(1)
    db.full = lambda sql: sql == "COMMIT"
    task = asyncio.ensure_future(store.begin(job, HELD))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    db.full = lambda _sql: False
    assert outcomes(db) == []


async def test_a_job_is_begun_once(db: Flaky, store: StateStore) -> None:
    """Whoever tries to begin a job that is on the wire already changes nothing."""
    _, job = await begun(store)
    with pytest.raises(sqlite3.IntegrityError, match="is not pending"):
        await store.begin(job, HELD)
    assert outcomes(db) == ["sending"]


@pytest.mark.parametrize("settlement", [Settlement.CHARGED, Settlement.NOT_CHARGED, Settlement.SENDING])
async def test_an_answer_never_says_what_only_the_user_may(
    db: Flaky, store: StateStore, settlement: Settlement
) -> None:
    """Charged or not charged is the user's word about a doubt."""
    attempt, job = await begun(store)
    with pytest.raises(sqlite3.IntegrityError, match="can't end as"):
        await store.settle(attempt, job, Settled(Event.REFUSED, settlement, "x"))
    assert outcomes(db) == ["sending"]


async def test_the_first_price_brings_ceilings_down(db: Flaky, store: StateStore) -> None:
    """What was set aside or is at risk without a price known is worth the first price that is seen, not 50 credits."""
    flying, doubtful, unpriced, first = [await begun(store) for _ in range(4)]
    await store.settle(*doubtful, DOUBT)
    await store.settle(*unpriced, paid(None))
    assert (store.totals.reserved, store.totals.at_risk) == (100 * CREDIT, 100 * CREDIT)
    assert store.price_micro(PRO) is None
    await store.settle(*first, paid(13 * CREDIT))
    assert store.price_micro(PRO) == 13 * CREDIT
    assert (store.totals.reserved, store.totals.at_risk, store.totals.spent) == (13 * CREDIT, 26 * CREDIT, 13 * CREDIT)
    await store.settle(*flying, paid(20 * CREDIT))
    assert store.price_micro(PRO) == 20 * CREDIT
    assert store.totals.at_risk == 26 * CREDIT


async def test_a_price_that_the_user_tells_brings_ceilings_down(db: Flaky, store: StateStore) -> None:
    """It is known as if an answer had stated it; so the other doubts are worth no more than it."""
    for doubtful in [await begun(store) for _ in range(3)]:
        await store.settle(*doubtful, DOUBT)
    found = resolve.jobs_in(db, JobState.IN_DOUBT)
    with runs.transaction(db):
        resolve.settle(db, found[0], resolve.Word(charged_micro=2 * CREDIT))
    assert queries.totals(db).at_risk == 100 * CREDIT  # an amount without an image may be any
    with runs.transaction(db):
        resolve.settle(db, found[1], resolve.Word(charged_micro=2 * CREDIT, image_url="https://example.test/x.png"))
    assert queries.totals(db) == Totals(reserved=0, spent=4 * CREDIT, at_risk=2 * CREDIT, wasted=2 * CREDIT)


async def test_a_ceiling_that_was_set_beside_the_first_price_is_written_down_as_that(
    db: Flaky, store: StateStore
) -> None:
    """Decided when no price was known, and written behind it."""
    await store.settle(*await begun(store), paid(13 * CREDIT))
    attempt, job = await begun(store)
    assert store.totals.reserved == 13 * CREDIT
    assert db.execute("SELECT ceiling FROM attempts WHERE outcome = 'sending'").fetchone()[0] == 0
    await store.settle(attempt, job, DOUBT)
    assert store.totals.at_risk == 13 * CREDIT


async def test_a_ceiling_that_is_written_beside_a_higher_price_comes_down_to_that(store: StateStore) -> None:
    """The first price is known, and the next one, which is higher, shares the commit."""
    await store.settle(*await begun(store), paid(13 * CREDIT))
    dearer, (job,) = await begun(store), await store.next_pending(1)
    await asyncio.gather(store.settle(*dearer, paid(20 * CREDIT)), store.begin(job, HELD))
    assert store.totals == Totals(reserved=20 * CREDIT, spent=33 * CREDIT, at_risk=0, wasted=0)


async def test_a_ceiling_that_an_earlier_version_left_comes_down_at_the_next_start(
    db: Flaky, store: StateStore, tmp_path: Path
) -> None:
    """It wrote one down behind the first price."""
    await store.settle(*await begun(store), paid(13 * CREDIT))
    await store.settle(*await begun(store), DOUBT)
    db.execute("UPDATE attempts SET reserved = ?, ceiling = 1 WHERE outcome = 'doubt'", (50 * CREDIT,))
    assert queries.totals(db).at_risk == 50 * CREDIT
    await recover(db, tmp_path, SystemClock(), Told())
    assert queries.totals(db).at_risk == 13 * CREDIT


async def test_the_tries_of_a_run_are_its_own(db: Flaky, store: StateStore, tmp_path: Path) -> None:
    """A storm in which several runs began uses up no job's tries."""
    for _ in range(3):
        attempt, job = await begun(store)
        assert job.tries == 0
        await store.settle(attempt, job, Settled(Event.REFUSED_FOR_NOW, Settlement.REFUSED, "500", counts=True))
        store = StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 0, None), tmp_path)
    assert db.execute("SELECT count(*) FROM attempts WHERE job = 1").fetchone()[0] == 3


async def test_a_lost_image_is_wasted_credit(db: Flaky, store: StateStore) -> None:
    """Its credits stay spent, and are said to be wasted; a failed fetch alone changes neither."""
    attempt, job = await begun(store)
    await store.settle(attempt, job, paid())
    failure = FetchFailed("image_gone", "404", 0, Backoff(0, 0), gone=True)
    await store.unfetched(job.index, failure, lost=False)
    assert store.totals.wasted == 0
    assert [image.failed_earlier for image, _ in paid_images(db)] == [True]
    await store.unfetched(job.index, failure, lost=True)
    assert (store.totals.spent, store.totals.wasted) == (13 * CREDIT, 13 * CREDIT)
    with pytest.raises(sqlite3.IntegrityError, match="is not paid"):
        await store.finish(job.index, StoredImage("images/1.png", 1, "00" * 32, 1, 1, "image/png"))


async def test_what_was_not_sent_before_is_left_out_once_the_limit_is_reached(db: Flaky, store: StateStore) -> None:
    """`known_only` hands out jobs that an earlier run sent, so that --limit counts first sends alone."""
    attempt, job = await begun(store)
    await store.settle(attempt, job, Settled(Event.REFUSED_FOR_NOW, Settlement.REFUSED, "429"))
    later = StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 1, None), store._out)
    assert [one.index for one in await later.next_pending(10, known_only=True)] == [job.index]


async def test_a_folder_that_takes_no_ballast_is_no_obstacle(db: Flaky, tmp_path: Path) -> None:
    """The ballast is a help on a full disk, not a condition."""
    (tmp_path / BALLAST_NAME).mkdir()
    store = StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 0, None), tmp_path)
    attempt, job = await begun(store)
    await store.settle(attempt, job, paid())
    store.release()
    assert outcomes(db) == ["paid"]


async def test_a_doubt_is_sent_again_once_in_a_later_run(db: Flaky, store: StateStore, tmp_path: Path) -> None:
    """Both requests count: the old one stays at risk, the new one is reserved. Never a doubt of the same run."""
    attempt, job = await begun(store)
    await store.settle(attempt, job, DOUBT)
    assert await store.next_resend(10) == []
    later = StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 1, None), tmp_path)
    (again,) = await later.next_resend(10)
    assert (again.index, again.resend) == (job.index, True)
    await later.settle(await later.begin(again, HELD), again, DOUBT)
    assert await later.next_resend(10) == []
    assert outcomes(db) == ["doubt", "doubt"]
    assert later.totals.at_risk == 100 * CREDIT


async def test_a_rollback_that_the_disk_did_already_is_not_done_twice(db: Flaky, store: StateStore) -> None:
    """SQLite rolls back by itself on some errors; what failed is told all the same."""
    attempt, job = await begun(store)

    def undone(sql: str) -> bool:
        if sql == "COMMIT":
            sqlite3.Connection.execute(db, "ROLLBACK")
        return sql == "COMMIT"

    db.full = undone
    with pytest.raises(DiskError):
        await store.settle(attempt, job, DOUBT)
    assert outcomes(db) == ["sending"]


async def test_a_disk_without_room_for_the_ballast_holds_none(
    db: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was set aside so far is given back: a half ballast would only take room away."""

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    StateStore(db, Inline(), SystemClock(), runs.begin_run(db, 0, None), tmp_path)
    assert (tmp_path / BALLAST_NAME).stat().st_size == 0


async def test_a_twin_is_done_without_being_paid_for(db: Flaky, store: StateStore) -> None:
    """A row that shares another's image gets its own name for it, and no attempt."""
    attempt, job = await begun(store)
    await store.settle(attempt, job, paid())
    await store.finish(job.index, StoredImage("images/1.png", 3, "ab" * 32, 1, 1, "image/png"))
    db.execute("UPDATE jobs SET twin = 1 WHERE job = 2")
    assert [one.index for one in await store.next_pending(10)] == [3, 4, 5, 6, 7, 8]
    await store.do(lambda _db: share_image(_db, 2, "images/2.png", 9))
    row = db.execute("SELECT state, path, bytes FROM jobs JOIN images USING (job) WHERE job = 2").fetchone()
    assert tuple(row) == ("done", "images/2.png", 3)
    assert outcomes(db) == ["paid"]
