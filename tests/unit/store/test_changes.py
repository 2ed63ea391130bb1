"""Many changes in one group: as if each were made alone, for the price of a few statements."""

import asyncio
import itertools
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from banana_batch.errors import DiskError, SettingsError
from banana_batch.lifecycle import Event, IllegalTransition, Settlement
from banana_batch.models import Kind, QueuedJob, Reserve, Settled, StoredImage
from banana_batch.pacing.clock import SystemClock
from banana_batch.store import changes, database, queries, runs
from banana_batch.store.rows import MOST_ROWS
from banana_batch.store.state import StateStore
from banana_batch.store.unborn import nowhere
from tests.torture.virtual import Inline
from tests.unit.store.small import CREDIT, DOUBT, HELD, PRO, Flaky, opened, outcomes, paid, states

P = ParamSpec("P")
T = TypeVar("T")
JOBS = 520
IMAGE = StoredImage("images/1.png", 3, "ab" * 32, 1, 1, "image/png")
REFUSED = Settled(Event.REFUSED_FOR_NOW, Settlement.REFUSED, "500", counts=True)

Begun = tuple[int, QueuedJob]


class Held(Executor):
    """Runs nothing before it is told to."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._calls.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._calls)

    def run(self) -> None:
        """Run the call that waits longest."""
        self._calls.popleft()()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    with opened(tmp_path, JOBS) as flaky:
        yield flaky


@pytest.fixture
def store(db: Flaky, tmp_path: Path) -> StateStore:
    return new_store(db, tmp_path)


def new_store(db: Flaky, folder: Path, executor: Executor | None = None) -> StateStore:
    return StateStore(db, executor or Inline(), SystemClock(), runs.begin_run(db, 0, None), folder)


async def put(change: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Put a change once it is awaited: what is gathered is put in one turn of the loop, and so in one group."""
    return await change(*args, **kwargs)


async def begin(store: StateStore, number: int, held: Reserve = HELD) -> list[Begun]:
    """Begin so many jobs."""
    jobs = await store.next_pending(number)
    return list(zip(await asyncio.gather(*(store.begin(job, held) for job in jobs)), jobs, strict=True))


async def buy(store: StateStore, number: int) -> list[int]:
    """Buy so many images."""
    sent = await begin(store, number)
    await asyncio.gather(*(store.settle(*one, paid()) for one in sent))
    return [job.index for _, job in sent]


async def mixed(store: StateStore, each: int) -> list[Awaitable[Any]]:
    """Return so many changes of each sort, and as many settlements that leave an image as such that do not."""
    sent, bought = await begin(store, 2 * each), await buy(store, each)
    fresh = await store.next_pending(each)
    return [
        *(store.begin(job, HELD) for job in fresh),
        *(put(store.settle, *one, paid()) for one in sent[::2]),
        *(put(store.settle, *one, DOUBT) for one in sent[1::2]),
        *(store.finish(index, IMAGE) for index in bought),
    ]


@pytest.mark.parametrize("each", [1, 2, 13, 32, 64])
async def test_a_group_costs_a_few_statements(db: Flaky, store: StateStore, each: int) -> None:
    """However many changes share a commit: each of five statements takes 64, and a group has one begin and one end."""
    shared = await mixed(store, each)
    db.said.clear()
    results = await asyncio.gather(*shared)
    assert db.said.count("COMMIT") == 1
    changed = [text for text in db.said if text.startswith(("INSERT", "UPDATE"))]
    rows = {"attempts": [each, 2 * each], "images": [each, each], "jobs": [4 * each]}
    assert len(changed) == sum(-(-count // MOST_ROWS) for counts in rows.values() for count in counts) <= 10
    assert len(db.said) - len(changed) <= 4  # begin, commit, the sums; the prices, where they changed
    assert states(db) == {"sending": each, "paid": each, "in_doubt": each, "done": each, "pending": JOBS - 4 * each}
    assert queries.sums_agree(db)
    assert store.totals == queries.totals(db)
    numbers = [result for result in results if isinstance(result, int)]
    assert [tuple(row) for row in db.execute("SELECT job, attempt FROM jobs WHERE state = 'sending' ORDER BY job")] == [
        tuple(row) for row in db.execute(f"SELECT job, attempt FROM attempts WHERE attempt >= {min(numbers)}")
    ]


async def test_texts_are_few(store: StateStore) -> None:
    """Groups of every size share the texts of powers of two, so that sqlite3 keeps each of them prepared."""
    for size in (1, 2, 3, 5, 7, 11, 23, 47):
        await begin(store, size)
    for statement in changes.STATEMENTS:
        assert set(statement._texts) <= {1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize("size", [1, 64])
def test_each_row_is_found_by_its_number(db: Flaky, size: int) -> None:
    """No update of a group walks a table or an index: its cost does not grow with the batch."""
    updates = [statement.text(size) for statement in changes.STATEMENTS if statement.text(1).startswith("UPDATE")]
    assert len(updates) == 3
    for text in updates:
        plan = [row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * text.count("?"))]
        (found,) = [step for step in plan if "CONSTANT" not in step and not step.endswith(" v")]
        assert "USING INTEGER PRIMARY KEY (rowid=?)" in found, plan


def _fail(_db: sqlite3.Connection) -> None:
    raise ValueError("mine alone")


BAD: dict[str, tuple[type[Exception], str]] = {
    "begun twice": (sqlite3.IntegrityError, "job 1 is not pending"),
    "resent without a doubt": (sqlite3.IntegrityError, "job 1 is not in_doubt"),
    "no such job": (sqlite3.IntegrityError, "FOREIGN KEY"),
    "no such attempt": (sqlite3.IntegrityError, "there is no attempt 9999"),
    "settled twice": (sqlite3.IntegrityError, "settled once"),
    "the user's word": (sqlite3.IntegrityError, "can't end as charged"),
    "no such move": (IllegalTransition, "sending"),
    "not paid": (sqlite3.IntegrityError, "job 1 is not paid"),
    "an operation": (ValueError, "mine alone"),
}


def bad_change(store: StateStore, how: str, first: Begun, last: QueuedJob) -> Awaitable[Any]:
    attempt, job = first
    made: dict[str, Callable[[], Awaitable[Any]]] = {
        "begun twice": lambda: store.begin(job, HELD),
        "resent without a doubt": lambda: store.begin(QueuedJob(1, "1", PRO, "{}", None, 1, 0, resend=True), HELD),
        "no such job": lambda: store.begin(QueuedJob(99_999, "x", PRO, "{}", None, 0, 0), HELD),
        "no such attempt": lambda: store.settle(9999, last, DOUBT),
        "settled twice": lambda: store.settle(attempt, job, REFUSED),
        "the user's word": lambda: store.settle(attempt, job, Settled(Event.REFUSED, Settlement.CHARGED, "x")),
        "no such move": lambda: store.settle(attempt, job, Settled(Event.SEND, Settlement.REFUSED, "x")),
        "not paid": lambda: store.finish(1, IMAGE),
        "an operation": lambda: store.do(_fail),
    }
    return put(made[how])


@pytest.mark.parametrize("how", BAD)
async def test_one_bad_change_among_many_fails_alone(db: Flaky, store: StateStore, how: str) -> None:
    """Its caller is told what it would be told alone; all others of the group are durable."""
    first = (await begin(store, 1))[0]
    if how == "settled twice":
        await store.settle(*first, REFUSED)
    shared, (last,) = await mixed(store, 20), await store.next_pending(1)
    shared.insert(33, bad_change(store, how, first, last))
    results = await asyncio.gather(*shared, return_exceptions=True)
    failed = results.pop(33)
    kind, message = BAD[how]
    assert isinstance(failed, kind)
    assert message in str(failed)
    assert not [result for result in results if isinstance(result, BaseException)]
    begun = states(db)
    assert (begun["paid"], begun["in_doubt"], begun["done"]) == (20, 20, 20)
    assert begun["sending"] == 20 + (how != "settled twice")
    assert queries.sums_agree(db)
    assert store.totals == queries.totals(db)


async def test_numbers_of_a_failed_group_are_used_again(db: Flaky, store: StateStore) -> None:
    """Attempts are numbered without gaps, as whoever looks at the state beside us expects."""
    jobs = await store.next_pending(3)
    for job in jobs:
        await asyncio.gather(store.begin(job, HELD), put(store.do, _fail), return_exceptions=True)
        assert queries.next_attempt(db) == job.index + 1
    assert [row[0] for row in db.execute("SELECT attempt FROM attempts WHERE attempt = job")] == [1, 2, 3]


async def test_numbers_go_on_in_the_next_run(db: Flaky, store: StateStore, tmp_path: Path) -> None:
    """A run numbers its attempts from where the last one ended."""
    await begin(store, 3)
    later = new_store(db, tmp_path)
    jobs = [QueuedJob(index, str(index), PRO, "{}", None, 0, 0) for index in (10, 11)]
    assert await asyncio.gather(*(later.begin(job, HELD) for job in jobs)) == [4, 5]


async def test_two_changes_of_one_job_are_made_one_after_the_other(db: Flaky, store: StateStore) -> None:
    """Nobody puts them in one group, as each waits for its change; if it is done all the same, none is lost."""
    ((attempt, job),) = await begin(store, 1)
    settled, again, twice = await asyncio.gather(
        put(store.settle, attempt, job, REFUSED),
        store.begin(job, HELD),
        put(store.settle, attempt, job, DOUBT),
        return_exceptions=True,
    )
    assert (settled, again) == (None, attempt + 1)
    assert isinstance(twice, sqlite3.IntegrityError)
    assert outcomes(db) == ["refused", "sending"]
    assert states(db)["sending"] == 1


async def test_what_is_read_in_a_group_is_read_after_its_changes(store: StateStore) -> None:
    """Operations see the group's begins, settlements and images."""
    shared = await mixed(store, 2)
    seen, *_ = await asyncio.gather(put(store.do, states), *shared)
    assert seen == {"sending": 2, "paid": 2, "in_doubt": 2, "done": 2, "pending": JOBS - 8}


@pytest.mark.parametrize("order", [*itertools.permutations([13, 20, 10])])
async def test_first_prices_that_come_together(store: StateStore, order: Sequence[int]) -> None:
    """In whatever order they come, what is held comes down to what the next call reserves: the dearest of them."""
    flying, doubtful, *answered = await begin(store, 5)
    await store.settle(*doubtful, DOUBT)
    (late,) = await store.next_pending(1)
    await asyncio.gather(
        store.begin(late, HELD),
        *(put(store.settle, *one, paid(price * CREDIT)) for one, price in zip(answered, order, strict=True)),
    )
    assert store.price_micro(PRO) == 20 * CREDIT
    assert (store.totals.reserved, store.totals.at_risk, store.totals.spent) == (
        40 * CREDIT,
        20 * CREDIT,
        43 * CREDIT,
    )
    # A dearer one changes the price, not what is held.
    await store.settle(*flying, paid(30 * CREDIT))
    assert (store.price_micro(PRO), store.totals.reserved) == (30 * CREDIT, 20 * CREDIT)


async def test_a_price_that_was_rolled_back_is_not_known(store: StateStore) -> None:
    """A price is known when its answer is durable, and still brings ceilings down then."""
    first, flying = await begin(store, 2)
    other = Kind("gemini-2.5-flash-image", "1K")
    results = await asyncio.gather(
        store.settle(*first, paid(13 * CREDIT)), store.do(_fail), store.settle(9999, flying[1], DOUBT),
        return_exceptions=True,
    )  # fmt: skip
    assert [isinstance(result, Exception) for result in results] == [False, True, True]
    assert (store.price_micro(PRO), store.price_micro(other)) == (13 * CREDIT, None)
    assert store.totals.reserved == 13 * CREDIT


async def test_a_full_disk_in_a_large_group(db: Flaky, store: StateStore) -> None:
    """Of a group that the disk does not take, nothing is begun; what was paid is recorded once there is room."""
    shared = await mixed(store, 20)
    commits = itertools.count()
    db.full = lambda sql: sql == "COMMIT" and next(commits) < 1
    results = await asyncio.gather(*shared, return_exceptions=True)
    assert [type(result) for result in results[:20]] == [DiskError] * 20
    assert not [result for result in results[20:] if isinstance(result, BaseException)]
    assert states(db) == {"paid": 20, "in_doubt": 20, "done": 20, "pending": JOBS - 60}
    assert store.totals == queries.totals(db)


# A caller that is cancelled while its begin is on its way.


async def taken_back(
    store: StateStore, held: Held, db: Flaky, task: "asyncio.Task[int]", outcome: Sequence[str] = ("not_sent",)
) -> None:
    """Hold the state to it: for the very next group, the request was not sent, or never begun."""
    with pytest.raises(asyncio.CancelledError):
        await task
    look = store.do(states)
    while held.waiting or not look.done():
        if held.waiting:
            held.run()
        await asyncio.sleep(0)
    assert look.result() == {"pending": JOBS}
    assert outcomes(db) == [*outcome]
    assert store.totals.committed == 0


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def slow(db: Flaky, tmp_path: Path, held: Held) -> StateStore:
    return new_store(db, tmp_path, held)


JOB = QueuedJob(1, "1", PRO, "{}", None, 0, 0)


async def test_cancelled_while_its_group_is_committed(db: Flaky, held: Held, slow: StateStore) -> None:
    """The row becomes durable after its caller is gone: taken back before anything else is said of it."""
    task = asyncio.ensure_future(slow.begin(JOB, HELD))
    while not held.waiting:
        await asyncio.sleep(0)
    task.cancel()
    await taken_back(slow, held, db, task)


async def test_cancelled_before_its_group_begins(db: Flaky, held: Held, slow: StateStore) -> None:
    """Its request will never be sent, so no row of it is written; who comes after it sees a pending job."""
    reading = slow.do(lambda _db: None)
    await asyncio.sleep(0)
    task = asyncio.ensure_future(slow.begin(JOB, HELD))
    await asyncio.sleep(0)
    task.cancel()
    held.run()
    await reading
    await taken_back(slow, held, db, task, outcome=())


async def test_cancelled_in_the_turn_in_which_its_group_lands(db: Flaky, held: Held, slow: StateStore) -> None:
    """It has its number already, and its caller never sees it."""
    task = asyncio.ensure_future(slow.begin(JOB, HELD))
    while not held.waiting:
        await asyncio.sleep(0)
    held.run()
    asyncio.get_running_loop().call_soon(task.cancel)
    await taken_back(slow, held, db, task)


@pytest.mark.parametrize("late", [False, True])
async def test_cancelled_and_not_written(db: Flaky, held: Held, slow: StateStore, late: bool) -> None:
    """There is nothing to take back, and nobody left to tell."""
    db.full = lambda sql: sql == "COMMIT"
    task = asyncio.ensure_future(slow.begin(JOB, HELD))
    while not held.waiting:
        await asyncio.sleep(0)
    if late:
        held.run()
        asyncio.get_running_loop().call_soon(task.cancel)
    else:
        task.cancel()
        held.run()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert held.waiting == 0
    assert outcomes(db) == []


async def test_cancelled_settlements_are_made(db: Flaky, held: Held, slow: StateStore) -> None:
    """What an answer said is recorded whether or not its caller waits for it."""
    started = asyncio.ensure_future(slow.begin(JOB, HELD))
    while not held.waiting:
        await asyncio.sleep(0)
    held.run()
    task = asyncio.ensure_future(slow.settle(await started, JOB, paid()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while not held.waiting:
        await asyncio.sleep(0)
    held.run()
    assert outcomes(db) == ["paid"]


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that is needed, instead of an error in a statement; a plan without a batch too."""
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 36, 0))
    for attempt in (nowhere, lambda: database.open_writer(tmp_path), lambda: database.open_reader(tmp_path)):
        with pytest.raises(SettingsError, match=r"3\.37 or later"):
            attempt()
