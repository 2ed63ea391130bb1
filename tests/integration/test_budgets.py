"""Caps from end to end: what is sent under them, what is said when they end a run."""

import asyncio
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from banana_batch.batch import Run
from banana_batch.errors import Exit
from banana_batch.models import PaidImage, QueuedJob, Reserve, Settled
from banana_batch.money import MICRO
from banana_batch.store.changes import Change, Settle
from banana_batch.store.state import StateStore
from tests.integration.answers_peer import answer, failed
from tests.integration.whole_runs import Arrived, Gateway, Watcher, attempts, gateway, run_batch, stopping


def jobs(count: int) -> list[str]:
    """Return so many prompts."""
    return [f"job {number}" for number in range(1, count + 1)]


class Ledger(Watcher):
    """Looks at the ledger's sums at each send."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None
        self.committed: list[int] = []
        self.on = self._look

    def watch(self, run: Run) -> None:
        """Take the run to look at."""
        self.run = run

    def _look(self, event: str, _facts: object) -> None:
        if event == "sent":
            assert self.run is not None
            assert self.run._store is not None
            self.committed.append(self.run._store.totals.committed)


@pytest.mark.parametrize("seed", range(4))
async def test_the_cap_holds_at_every_send(out: Path, seed: int) -> None:
    """64 calls at once, prices by chance, the first one the dearest: no send ever goes beyond the budget."""
    chance = random.Random(seed)

    async def said(peer: Gateway, arrived: Arrived) -> bytes | None:
        await asyncio.sleep(chance.random() * 0.02)
        what = chance.random()
        if arrived.nth > 1 and what < 0.1:
            return answer(500, failed("Server code exception"))
        if arrived.nth > 1 and what < 0.13:
            return None
        return peer.sold(3 if arrived.nth == 1 else chance.choice((1, "0.5", 2, 3)))

    ledger, budget = Ledger(), 150
    async with gateway(said) as peer:
        ended = await run_batch(
            out, peer.url, jobs(120), concurrency=64, budget=str(budget), watcher=ledger, watch=ledger.watch
        )
    assert ended.exit in (Exit.BUDGET, Exit.IN_DOUBT)
    assert len(ledger.committed) == len(peer.posts) > 40
    assert max(ledger.committed) <= budget * MICRO
    assert ended.totals.committed <= budget * MICRO
    assert ended.totals.reserved == 0


@pytest.mark.parametrize("seed", range(3))
async def test_dear_answers_go_no_further_than_what_was_out(out: Path, seed: int) -> None:
    """Prices that rise beyond their reserves overspend by what was in flight at most; then not one more is sent."""
    chance = random.Random(seed)

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        await asyncio.sleep(chance.random() * 0.02)
        return peer.sold(1 + arrived.nth // 10)

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(120), concurrency=64, budget="100")
    names = [name for name, _ in ended.events]
    stop = ended.told("stop")[0]
    assert ended.exit is Exit.BUDGET
    assert "dearer" in names
    assert "sent" not in names[names.index("stop") :]
    excess = sum(max(0, row["credits"] - row["reserved"]) for row in attempts(out) if row["outcome"] == "paid")
    assert ended.totals.spent <= 100 * MICRO + excess
    # Reserves count too: what is still out may yet cost less, and then it was a false alarm.
    assert "overspent" in stop["message"] or ended.totals.spent <= 100 * MICRO
    assert len(peer.posts) == ended.jobs["done"]


@pytest.mark.parametrize("budget", ["20", "$0.20", "$0.2"])
async def test_a_budget_that_is_just_enough_buys_everything(out: Path, budget: str) -> None:
    """10 jobs of 2 credits with 20: the first call alone, as its price may be anything; then the rest at once; 0."""
    together = asyncio.Event()

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.nth == 1:
            await asyncio.sleep(0.05)
            assert len(peer.posts) == 1
        elif arrived.nth == 10:
            together.set()
        else:
            await together.wait()
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(10), concurrency=64, budget=budget)
    assert (ended.exit, dict(ended.jobs), ended.credits) == (Exit.DONE, {"done": 10}, (20.0, 0.0, 0.0))
    assert peer.most == 9
    assert not ended.told("stop")


async def test_a_budget_that_ends_before_the_jobs(out: Path) -> None:
    """With 15 credits 7 of 10 jobs are bought, the rest is pending, 5; with more it goes on, and nothing twice."""
    async with gateway() as peer:
        first = await run_batch(out, peer.url, jobs(10), concurrency=64, budget="15")
        assert (first.exit, dict(first.jobs)) == (Exit.BUDGET, {"done": 7, "pending": 3})
        second = await run_batch(out, peer.url, jobs(10), concurrency=64, budget="15")
        assert (second.exit, len(peer.posts)) == (Exit.BUDGET, 7)
        third = await run_batch(out, peer.url, jobs(10), concurrency=64, budget="20")
    assert (third.exit, dict(third.jobs), sorted(peer.posts)) == (Exit.DONE, {"done": 10}, sorted(jobs(10)))
    assert "the budget is reached. raise --budget" in first.said


async def test_the_cap_of_one_run(out: Path) -> None:
    """--run-budget counts this run alone; each further run gets it anew, under the batch's own budget."""
    async with gateway() as peer:
        for bought, code in ((3, Exit.BUDGET), (6, Exit.BUDGET), (8, Exit.BUDGET), (8, Exit.BUDGET)):
            ended = await run_batch(out, peer.url, jobs(12), concurrency=8, run_budget="6", budget="16")
            assert (ended.jobs["done"], ended.exit) == (bought, code)
    assert len(peer.posts) == 8


async def test_ceilings_come_down_to_the_first_price(out: Path) -> None:
    """Before a price is known a doubt counts as 50; the first answer brings what is at risk down to its price."""
    seen: list[float] = []
    ledger = Ledger()

    def look(event: str, _facts: dict[str, object]) -> None:
        if event == "answered":
            assert ledger.run is not None
            assert ledger.run._store is not None
            seen.append(ledger.run._store.totals.at_risk / MICRO)

    ledger.on = look
    async with gateway(lambda peer, arrived: None if arrived.nth <= 2 else peer.sold()) as peer:
        ended = await run_batch(out, peer.url, jobs(6), budget="200", watcher=ledger, watch=ledger.watch)
    assert seen == [50.0, 100.0, 4.0, 4.0, 4.0, 4.0]
    assert ended.credits == (8.0, 4.0, 0.0)


async def test_reserves_in_flight_come_down_too(out: Path) -> None:
    """Three calls hold 50 each; one is answered at 2: the other two hold 2 each while they are still out."""
    out_there = asyncio.Barrier(3)
    settled = asyncio.Event()
    held: list[float] = []
    ledger = Ledger()

    def look(event: str, _facts: dict[str, object]) -> None:
        if event == "answered" and not held:
            assert ledger.run is not None
            assert ledger.run._store is not None
            held.append(ledger.run._store.totals.reserved / MICRO)
            settled.set()

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        mine = peer.sold()
        await out_there.wait()
        if arrived.nth > 1:
            await settled.wait()
        return mine

    ledger.on = look
    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(3), concurrency=3, watcher=ledger, watch=ledger.watch)
    assert held == [4.0]
    assert ended.exit is Exit.DONE


async def test_a_dear_image_is_said_and_ends_the_spending(out: Path) -> None:
    """2, 2, then 18 with a budget of 20: 22 are spent, it is said in credits, and nothing more is sent: 5."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return peer.sold(18 if arrived.nth == 3 else 2)

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(6), budget="20")
    assert (ended.exit, len(peer.posts), ended.credits) == (Exit.BUDGET, 3, (22.0, 0.0, 0.0))
    assert "cost 18 credits ($0.18), and 2 was set aside" in ended.said
    assert "the budget is overspent" in ended.said
    assert dict(ended.jobs) == {"done": 3, "pending": 3}


async def test_a_dear_last_image_is_said_too(out: Path) -> None:
    """When everything is bought the run is done, and that it cost more than the budget is said all the same."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return peer.sold(18 if arrived.nth == 3 else 2)

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(3), budget="6")
    assert (ended.exit, ended.credits) == (Exit.DONE, (22.0, 0.0, 0.0))
    assert "the budget is overspent" in ended.said


async def test_a_price_beyond_belief_stops_the_run(out: Path) -> None:
    """More than ten times what it was is an accident: the image is kept, its reserve at risk, 76."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return peer.sold(500 if arrived.nth == 2 else 2)

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(6))
    assert (ended.exit, len(peer.posts), ended.credits) == (Exit.PROTOCOL, 2, (2.0, 2.0, 0.0))
    assert dict(ended.jobs) == {"done": 2, "pending": 4}


@pytest.mark.parametrize("max_price", [None, "30"])
async def test_what_the_user_says_an_image_may_cost_is_believed(out: Path, max_price: str | None) -> None:
    """2, then 24: an accident, unless --max-price says that it may be; then it is spent, and counts."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return peer.sold(2 if arrived.nth == 1 else 24)

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(6), budget="60", max_price=max_price)
    if max_price:
        assert (ended.exit, ended.credits) == (Exit.BUDGET, (50.0, 0.0, 0.0))
    else:
        assert (ended.exit, ended.credits) == (Exit.PROTOCOL, (2.0, 2.0, 0.0))
        assert "run again with --max-price" in ended.said


async def test_a_free_image_is_no_price(out: Path) -> None:
    """Two doubts, then one for nothing, then 20 each: what is at risk stays so, and the budget holds."""

    def said(peer: Gateway, arrived: Arrived) -> bytes | None:
        return None if arrived.nth <= 2 else peer.sold(0 if arrived.nth == 3 else 20)

    async with gateway(said) as peer:
        one = await run_batch(out, peer.url, jobs(40), concurrency=1, budget="190", limit=3)
        assert one.credits == (0.0, 100.0, 0.0)
        more = await run_batch(out, peer.url, jobs(40), concurrency=32, budget="190")
    assert more.exit is Exit.BUDGET
    # A first price of 20 brings both doubts down to it; nothing is overspent on the way there or after.
    assert more.credits == (140.0, 40.0, 0.0)
    assert "overspent" not in more.said


async def test_an_empty_account_ends_the_run_after_what_is_out(out: Path) -> None:
    """A 402 among 8 calls in flight: those that are out are bought and kept, the rest waits: 8."""
    together = asyncio.Barrier(8)

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.nth <= 8:
            await together.wait()
        if arrived.nth == 3:
            return answer(402, failed("Insufficient balance"))
        await asyncio.sleep(0.05)
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(30), concurrency=8)
    assert (ended.exit, len(peer.posts)) == (Exit.OUT_OF_CREDITS, 8)
    assert dict(ended.jobs) == {"done": 7, "pending": 23}
    assert ended.credits == (14.0, 0.0, 0.0)


async def test_a_stop_while_the_row_is_written_sends_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose row is just being made durable when the run stops stays here: not sent, nothing at risk."""
    stopped, watcher, begin = asyncio.Event(), Watcher(), StateStore.begin

    async def slow(store: StateStore, job: QueuedJob, reserve: Reserve) -> int:
        attempt = await begin(store, job, reserve)
        if job.index > 1:
            await stopped.wait()
        return attempt

    def look(event: str, _facts: object) -> None:
        if event == "stop":
            stopped.set()

    watcher.on = look
    monkeypatch.setattr(StateStore, "begin", slow)
    async with gateway(lambda _peer, _arrived: answer(401, failed("Wrong TT-API-KEY"))) as peer:
        ended = await run_batch(out, peer.url, jobs(40), concurrency=16, watcher=watcher)
    assert (ended.exit, len(peer.posts)) == (Exit.KEY, 1)
    assert (dict(ended.jobs), ended.tries) == ({"pending": 40}, [0] * 40)
    assert ended.credits == (0.0, 0.0, 0.0)
    assert ended.outcomes == {"refused": 1, "not_sent": 15}


async def test_a_wave_dearer_than_its_reserves_counts_before_its_commit(out: Path) -> None:
    """Eight calls, 2 set aside for each, all answered at once at 5, which the first answer had taught: what follows is
    reckoned with 5 for each of them, though the ledger has yet to hear of it."""
    first, others = asyncio.Event(), asyncio.Event()

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.nth == 1:
            return peer.sold(2)
        if arrived.nth == 2:
            await first.wait()
        elif arrived.nth <= 9:
            await others.wait()
        if arrived.nth == 9:
            first.set()
        if arrived.nth == 10:
            others.set()
        return peer.sold(5)

    async with gateway(said) as peer:
        asyncio.get_running_loop().call_later(0.3, first.set)
        asyncio.get_running_loop().call_later(0.6, others.set)
        ended = await run_batch(out, peer.url, jobs(60), concurrency=8, budget="60")
    assert ended.exit is Exit.BUDGET
    assert ended.totals.spent <= 60 * MICRO
    assert len(peer.posts) == 12


async def test_a_dear_answer_to_an_early_call_counts_above_what_the_ledger_holds(out: Path) -> None:
    """Sent with 50 set aside, which the first price brought down to 2, and answered at 48 together with seven others: the
    sum is exactly the budget, and nothing further is sent."""
    all_out, others = asyncio.Event(), asyncio.Event()

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.nth == 2:
            await all_out.wait()
            asyncio.get_running_loop().call_soon(others.set)
            return peer.sold(48)
        if arrived.nth == 37:
            all_out.set()
        if arrived.nth > 30:
            await others.wait()
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(60), concurrency=8, budget="120", max_price="50")
    assert (ended.exit, len(peer.posts), ended.totals.spent) == (Exit.BUDGET, 37, 120 * MICRO)
    assert ended.told("dearer")


async def test_a_dear_answer_beside_the_first_price_counts_before_its_commit(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls hold 50 each of 100. While the first price, 30, is being written, which brings the other's reserve down
    to 30, that one is answered at 50: there is room for no third, though the ledger has yet to hear of it."""
    settled, dear = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    settle, commit = StateStore.settle, StateStore._commit

    def told(store: StateStore, attempt: int, job: QueuedJob, how: Settled) -> "asyncio.Future[PaidImage | None]":
        if job.index == 1:
            settled.set()
        return settle(store, attempt, job, how)

    def written(store: StateStore, changes: Sequence[Change]) -> Sequence[Any]:
        if any(isinstance(change, Settle) for change in changes) and not settled.is_set():
            loop.call_soon_threadsafe(dear.set)
            assert settled.wait(10)
        return commit(store, changes)

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.prompt == "job 1":
            await dear.wait()
            return peer.sold(50)
        return peer.sold(30)

    monkeypatch.setattr(StateStore, "settle", told)
    monkeypatch.setattr(StateStore, "_commit", written)
    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(8), concurrency=8, budget="100", max_price="50")
    assert (ended.exit, len(peer.posts), ended.totals.spent) == (Exit.BUDGET, 2, 80 * MICRO)


async def test_credits_that_become_free_past_the_deadline_buy_nothing(out: Path) -> None:
    """Two calls hold all credits, the others wait for them: when these end, the time is over, and nothing is sent: 7."""

    async def said(peer: Gateway, _arrived: Arrived) -> bytes:
        await asyncio.sleep(1.2)
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(8), concurrency=8, budget="100", max_duration="1s")
    assert (ended.exit, len(peer.posts), dict(ended.jobs)) == (Exit.STOPPED, 2, {"done": 2, "pending": 6})


@pytest.mark.parametrize(("budget", "code"), [("6", Exit.BUDGET), ("7", Exit.BUDGET), ("8", Exit.STOPPED)])
async def test_a_stop_that_comes_before_the_budget_hides_it_not(out: Path, budget: str, code: Exit) -> None:
    """Stopped when the last call that the budget allows is out: running again would buy nothing, so it is 5, not 7."""
    seen: list[Run] = []

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.nth == 3:
            stopping(seen[0])
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(5), budget=budget, max_price="2", watch=seen.append)
    assert (ended.exit, len(peer.posts), dict(ended.jobs)) == (code, 3, {"done": 3, "pending": 2})


async def test_a_limit_that_comes_before_the_budget_is_all_that_was_asked(out: Path) -> None:
    """`--limit 3` with credits for three: those three are done, 0."""
    async with gateway() as peer:
        ended = await run_batch(out, peer.url, jobs(5), budget="6", max_price="2", limit=3)
    assert (ended.exit, len(peer.posts)) == (Exit.DONE, 3)
