"""One call after the other, on a real state file: what is durable when a request leaves, and what may share a commit."""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from banana_batch.endpoint import classify
from banana_batch.engine import downloads
from banana_batch.engine.pool import Ending, Pool, PoolConfig
from banana_batch.engine.sending import Rules
from banana_batch.engine.stops import Stop
from banana_batch.errors import Exit
from banana_batch.models import Caps, QueuedJob, Reply, SendTrace
from banana_batch.pacing.clock import SystemClock
from banana_batch.pacing.pacer import Pacer
from banana_batch.store import runs
from banana_batch.store.state import StateStore
from tests.contract.fakes import CREDIT, FakeDisk, FakeEndpoint, FakeImages, Told, sold
from tests.torture.virtual import Inline
from tests.unit.store.small import Flaky, opened, outcomes, states

PRICE = 13 * CREDIT
JOBS = 8


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    with opened(tmp_path, JOBS) as flaky:
        yield flaky


class World(FakeEndpoint):
    """An endpoint that notes what is durable when it is asked; images stay where they are."""

    def __init__(self, db: Flaky, answers: Sequence[Reply] = ()) -> None:
        super().__init__(SystemClock(), dict(enumerate(answers, 1)))
        self.db = db
        self.durable: list[list[str]] = []
        self.commits: list[int] = []
        self.told = Told()
        self.at_answer: Callable[[int], None] = lambda _call: None

    async def generate(self, job: QueuedJob, trace: SendTrace) -> Reply:
        self.durable.append(outcomes(self.db))
        self.commits.append(self.db.said.count("COMMIT"))
        reply = await super().generate(job, trace)
        self.at_answer(self.calls)
        return reply


async def run(
    world: World,
    folder: Path,
    *,
    budget: int | None = None,
    run_budget: int | None = None,
    ask_above: int | None = None,
    confirm: Callable[[], Awaitable[bool]] | None = None,
    started: Callable[[Pool], object] = id,
    concurrency: int = 1,
    fetchers: int = 0,
) -> Ending:
    """Run all jobs, one call at a time where nothing else is said."""
    clock = SystemClock()
    store = StateStore(world.db, Inline(), clock, runs.begin_run(world.db, 0, None), folder)
    rng = random.Random(1)
    pool = Pool(
        PoolConfig(concurrency, fetchers, Rules(Caps(budget, run_budget, 50 * CREDIT, bounded=True), 2, ask_above)),
        store=store,
        endpoint=world,
        images=FakeImages(folder),
        pacer=Pacer(clock, world.told, rng, concurrency=concurrency, give_up_after_s=900.0),
        disk=FakeDisk(),
        clock=clock,
        events=world.told,
        rng=rng,
        confirm=confirm or _agree,
    )
    started(pool)
    async with asyncio.timeout(20):
        ending = await pool.run()
        await store.flush()
    return ending


async def _agree() -> bool:
    return True


def assert_each_call_alone(world: World) -> None:
    """When a request leaves it is the only one that is durable as sent, and all before it are settled."""
    for call, durable in enumerate(world.durable, 1):
        assert len(durable) == call
        assert [place for place, outcome in enumerate(durable, 1) if outcome == "sending"] == [call]


@pytest.mark.parametrize(
    ("budget", "run_budget", "ask_above", "until_priced"),
    [
        (1000 * CREDIT, None, None, 2),
        (None, 1000 * CREDIT, None, 2),
        (None, None, 1000 * CREDIT, 2),
        (None, None, None, 1),
    ],
    ids=["a budget", "a budget of this run", "a sum to ask at", "no cap"],
)
async def test_a_plain_answer_shares_its_commit_with_the_next_begin(
    db: Flaky, tmp_path: Path, budget: int | None, run_budget: int | None, ask_above: int | None, until_priced: int
) -> None:
    """There is one commit between two calls, and both sides of it are durable; where there is a cap, once the price is
    known."""
    world = World(db)
    ending = await run(world, tmp_path, budget=budget, run_budget=run_budget, ask_above=ask_above)
    assert not ending.stops
    assert len(world.durable) == JOBS
    assert_each_call_alone(world)
    between = [later - sooner for sooner, later in zip(world.commits, world.commits[1:], strict=False)]
    assert between == [until_priced] + [1] * (JOBS - 2)
    # What is begun beside the first price is brought down to it in that commit.
    reserved = [row[0] for row in db.execute("SELECT reserved FROM attempts ORDER BY attempt")]
    assert reserved == [50 * CREDIT] + [PRICE] * (JOBS - 1)
    assert states(db) == {"paid": JOBS}


async def test_an_answer_is_let_go_before_the_next_call_ends(db: Flaky, tmp_path: Path) -> None:
    """A call takes minutes, and thousands are under way."""
    answers = [sold() for _ in range(JOBS)]
    world = World(db, answers)
    before = sys.getrefcount(answers[0])
    held: list[int] = []
    world.at_answer = lambda call: held.append(sys.getrefcount(answers[call - 2]) - before)
    await run(world, tmp_path)
    assert held[1:] == [0] * (JOBS - 1)


@pytest.mark.parametrize(
    "answer",
    [
        Reply(classify.BAD_REQUEST, latency_s=1.0),
        Reply(classify.TIMEOUT, latency_s=1.0),
        sold(None),
        sold(PRICE + 1),
    ],
    ids=["refused", "in doubt", "unpriced", "dearer"],
)
async def test_what_may_forbid_the_next_call_is_settled_before_it_begins(
    db: Flaky, tmp_path: Path, answer: Reply
) -> None:
    """Two commits: the answer is judged before anything is begun."""
    world = World(db, [sold(), sold(), answer])
    await run(world, tmp_path)
    assert_each_call_alone(world)
    assert world.commits[3] - world.commits[2] == 2


@pytest.mark.parametrize("calls", [JOBS, 2], ids=["all done", "a stop"])
async def test_the_endpoint_hears_once_that_no_call_follows(db: Flaky, tmp_path: Path, calls: int) -> None:
    """After the last answer, however the sending ends."""
    pools: list[Pool] = []
    rested_after: list[int] = []

    class Resting(World):
        def rest(self) -> None:
            rested_after.append(self.calls)

    world = Resting(db)
    world.at_answer = lambda call: pools[0].drain(Stop(Exit.STOPPED, "enough")) if call == calls else None
    await run(world, tmp_path, started=pools.append)
    assert rested_after == [calls]


async def test_a_stop_in_the_shared_commit_sends_nothing(db: Flaky, tmp_path: Path) -> None:
    """The next call is begun already, and withdrawn: not a byte leaves."""
    pools: list[Pool] = []
    world = World(db)

    def drain(call: int) -> None:
        if call == 3:
            asyncio.get_running_loop().call_soon(pools[0].drain, Stop(Exit.STOPPED, "stopped"))

    world.at_answer = drain
    ending = await run(world, tmp_path, started=pools.append)
    assert [stop.exit for stop in ending.stops] == [Exit.STOPPED]
    assert len(world.durable) == 3
    assert outcomes(db) == ["paid"] * 3 + ["not_sent"]
    assert states(db) == {"paid": 3, "pending": JOBS - 3}
    assert [event for event, _ in world.told.events].count("answered") == 3


async def test_an_abort_in_the_shared_commit_keeps_the_answer(db: Flaky, tmp_path: Path) -> None:
    """What was answered is paid; what was begun after it, if it was, is not sent."""
    pools: list[Pool] = []
    world = World(db)

    def abort(call: int) -> None:
        if call == 3:
            asyncio.get_running_loop().call_soon(pools[0].abort, Stop(Exit.INTERRUPTED, "stopped"))

    world.at_answer = abort
    ending = await run(world, tmp_path, started=pools.append)
    assert [stop.exit for stop in ending.stops] == [Exit.INTERRUPTED]
    assert len(world.durable) == 3
    assert outcomes(db)[:3] == ["paid"] * 3
    assert set(outcomes(db)[3:]) <= {"not_sent"}
    assert states(db) == {"paid": 3, "pending": JOBS - 3}


async def test_what_is_begun_beside_an_answer_that_the_state_refuses_is_withdrawn(db: Flaky, tmp_path: Path) -> None:
    """The third answer can't be settled, the call begun in the same commit can: it stays here, and is no doubt."""
    world = World(db)

    def refuse(call: int) -> None:
        if call == 3:
            db.execute(
                "CREATE TRIGGER refused BEFORE UPDATE OF outcome ON attempts WHEN new.attempt = 3"
                " BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            )

    world.at_answer = refuse
    ending = await run(world, tmp_path)
    assert [stop.exit for stop in ending.stops] == [Exit.BUG]
    assert len(world.durable) == 3
    assert outcomes(db) == ["paid", "paid", "sending", "not_sent"]


async def test_an_answer_that_is_being_read_at_the_cut_is_paid(db: Flaky, tmp_path: Path) -> None:
    """A process that was frozen finds what came meanwhile and the end of the grace time in one turn of the loop."""

    class Frozen(World):
        async def generate(self, job: QueuedJob, trace: SendTrace) -> Reply:
            pools[0].abort(Stop(Exit.INTERRUPTED, "stopped"))
            for _ in range(4):  # as many turns as reading an answer takes, and one
                await asyncio.sleep(0)
            return await super().generate(job, trace)

    pools: list[Pool] = []
    ending = await run(Frozen(db), tmp_path, started=pools.append)
    assert [stop.exit for stop in ending.stops] == [Exit.INTERRUPTED]
    assert states(db) == {"paid": 1, "pending": JOBS - 1}


async def test_an_image_that_gave_way_comes_as_soon_as_the_calls_have_left(
    db: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paid while the call behind a refusal is being written down, and no other image wakes anybody."""
    monkeypatch.setattr(downloads, "GIVE_WAY_S", 3600)

    class Waiting(World):
        async def generate(self, job: QueuedJob, trace: SendTrace) -> Reply:
            while self.calls >= 2 and "done" not in states(db):
                await asyncio.sleep(0)
            return await super().generate(job, trace)

    world = Waiting(db, [Reply(classify.BAD_REQUEST, latency_s=1.0)])
    ending = await run(world, tmp_path, concurrency=2, fetchers=1)
    assert not ending.stops
    assert states(db) == {"failed": 1, "done": JOBS - 1}


async def test_a_disk_that_takes_no_answer_begins_nothing(db: Flaky, tmp_path: Path) -> None:
    """The answer is told where it can be; the call after it never leaves."""
    world = World(db)

    def fill(call: int) -> None:
        if call == 3:
            db.full = lambda sql: sql == "COMMIT"

    world.at_answer = fill
    ending = await run(world, tmp_path)
    assert [stop.exit for stop in ending.stops] == [Exit.DISK]
    assert len(world.durable) == 3
    assert [facts["image_url"] for event, facts in world.told.events if event == "unrecorded"] == [
        "https://example.test/x.png"
    ]
    db.full = lambda _sql: False
    assert outcomes(db) == ["paid", "paid", "sending"]


async def test_an_answer_that_nobody_waits_for_is_told_too(db: Flaky, tmp_path: Path) -> None:
    """Cut off while its settlement is under way on a full disk."""
    world = World(db)
    hands: list[Pool] = []

    def fill(call: int) -> None:
        if call == JOBS:
            db.full = lambda sql: sql == "COMMIT"
            hands[0].abort(Stop(Exit.TERMINATED, "", ""))

    world.at_answer = fill
    await run(world, tmp_path, started=hands.append)
    assert [facts["image_url"] for event, facts in world.told.events if event == "unrecorded"] == [
        "https://example.test/x.png"
    ]


async def test_a_stop_is_an_answer_to_the_question(db: Flaky, tmp_path: Path) -> None:
    """Nobody is there to answer it, and no call is on the wire: the run ends at once, and as it was told to."""
    world = World(db)

    async def never() -> bool:
        hands[0].drain(Stop(Exit.STOPPED, "SIGTERM", ""))
        await asyncio.get_running_loop().create_future()
        return True

    hands: list[Pool] = []
    ending = await run(world, tmp_path, ask_above=PRICE, confirm=never, started=hands.append)
    assert [stop.message for stop in ending.stops] == ["SIGTERM"]
    assert len(world.durable) <= 1


@pytest.mark.parametrize("images", [3, 4])
async def test_a_budget_that_is_tight_is_held(db: Flaky, tmp_path: Path, images: int) -> None:
    """Reserves count until their answers are durable: not one call too many, and not one too few."""
    world = World(db)
    ending = await run(world, tmp_path, budget=images * PRICE + PRICE // 2)
    assert [stop.exit for stop in ending.stops] == [Exit.BUDGET]
    assert_each_call_alone(world)
    assert outcomes(db) == ["paid"] * images
