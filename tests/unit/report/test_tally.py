"""Counting a run."""

from collections.abc import Callable, Mapping

import pytest

from banana_batch.report.fanout import Fanout
from banana_batch.report.tally import Latencies, Tally
from tests.contract.fakes import ManualClock

KIND = "gemini-3-pro-image-preview 1K"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tally(clock: ManualClock) -> Tally:
    counted = Tally(clock)
    counted.emit("run_started", run=1, out="o", jobs={"done": 5, "pending": 10}, todo=10, budget_micro=None)
    return counted


def answer(tally: Tally, outcome: str, credits_micro: int | None = None, latency_s: float | None = 1.0) -> None:
    tally.emit("sent", index=1, id="a", attempt=1, kind=KIND)
    tally.emit(
        "answered", index=1, id="a", attempt=1, verdict="v", outcome=outcome, status=200, latency_s=latency_s,
        credits_micro=credits_micro, message=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "state", "settled"),
    [
        ("paid", "paid", 0),
        ("refused", "failed", 1),
        ("in_doubt", "in_doubt", 1),
        ("refused_for_now", "pending", 0),
        ("not_sent", "pending", 0),
    ],
)
def test_a_job_is_counted_where_it_stands(tally: Tally, outcome: str, state: str, settled: int) -> None:
    """Each ending moves one job to its state; none is lost or counted twice."""
    before = tally.jobs[state]
    answer(tally, outcome)
    assert tally.jobs[state] == before + (state != "pending")
    assert sum(tally.jobs.values()) == 15
    assert (tally.in_flight, tally.settled) == (0, settled)


def test_images_settle_when_they_are_stored_or_lost(tally: Tally) -> None:
    """A failed fetch that will be tried again leaves the job paid."""
    answer(tally, "paid", 2_000_000)
    answer(tally, "paid", None)
    tally.emit("stored", index=1, id="a", path="p", bytes=1)
    tally.emit("fetch_failed", index=2, id="b", error="e", message="m", lost=False)
    assert (tally.jobs["done"], tally.jobs["paid"], tally.settled) == (6, 1, 1)
    tally.emit("fetch_failed", index=2, id="b", error="e", message="m", lost=True)
    assert (tally.jobs["lost"], tally.settled, tally.spent_micro) == (1, 2, 2_000_000)


def test_a_resend_leaves_the_doubts(clock: ManualClock) -> None:
    """Sent again after all other work, or marked so by the engine."""
    tally = Tally(clock)
    tally.emit("run_started", jobs={"pending": 1, "in_doubt": 2}, todo=3)
    tally.emit("sent", resend=True)
    assert (tally.jobs["pending"], tally.jobs["in_doubt"], tally.jobs["sending"]) == (1, 1, 1)
    tally.emit("sent")
    tally.emit("sent")
    assert (tally.jobs["pending"], tally.jobs["in_doubt"], tally.jobs["sending"]) == (0, 0, 3)


def test_the_rest_is_foretold_from_this_runs_rate_without_its_outages(clock: ManualClock, tally: Tally) -> None:
    """5 jobs in 50 working seconds leave 50 seconds for the other 5, however long the outage was."""
    assert tally.eta_s() is None
    clock.now_s = 50
    for _ in range(5):
        answer(tally, "refused")
    tally.emit("incident_started", cause="refused connections")
    clock.now_s = 1050
    assert tally.eta_s() == pytest.approx(50)
    tally.emit("incident_ended", cause="refused connections", doubts=3, duration_s=1000.0)
    assert tally.eta_s() == pytest.approx(50)
    [outage] = tally.outages
    assert (outage.started_us, outage.duration_s, outage.doubts) == (1_700_000_050_000_000, 1000.0, 3)


def test_throttled_time_is_counted_once(clock: ManualClock, tally: Tally) -> None:
    """From the first refusal until full width, however many refusals came between."""
    for now_s in (10.0, 20.0):
        clock.now_s = now_s
        tally.emit("throttled", limit=4, cooldown_s=1.0)
    clock.now_s = 40
    assert tally.throttled_s == 30
    tally.emit("unthrottled", limit=8)
    clock.now_s = 90
    tally.emit("unthrottled", limit=8)
    assert tally.throttled_s == 30


def test_quantiles_are_right_to_five_percent() -> None:
    """And nothing is known before the first."""
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    for tenth in range(1, 1001):
        latencies.add(tenth / 10)
    latencies.add(0.0)
    latencies.add(1e9)
    assert latencies.quantile(0.5) == pytest.approx(50, rel=0.05)
    assert latencies.quantile(0.95) == pytest.approx(95, rel=0.05)


def test_a_report_that_breaks_is_left_out_and_said() -> None:
    """The others hear of each event, and of the loss; the run never does."""
    heard: list[tuple[str, object]] = []

    class Ear:
        def emit(self, event: str, /, **facts: object) -> None:
            heard.append((event, facts.get("message")))

    class Broken:
        def emit(self, event: str, /, **facts: object) -> None:
            raise KeyError("no such fact")

    fanout = Fanout([Broken(), Ear()])
    fanout.emit("sent")
    fanout.emit("stored")
    assert [event for event, _ in heard] == ["note", "sent", "stored"]
    assert "Broken failed (KeyError)" in str(heard[0][1])


def test_who_wants_few_events_is_told_no_others() -> None:
    """Each in the order in which they were named."""
    heard: list[tuple[str, str]] = []

    class Ear:
        def emit(self, event: str, /, **facts: object) -> None:
            heard.append(("all", event))

    class Some:
        def emit(self, event: str, /, **facts: object) -> None:
            raise AssertionError(event)

        def listener(self, event: str) -> Callable[[Mapping[str, object]], None] | None:
            return (lambda facts: heard.append(("some", str(facts["of"])))) if event == "stored" else None

    fanout = Fanout([Some(), Ear()])
    for event in ("sent", "stored", "sent"):
        fanout.emit(event, of=event)
    assert heard == [("all", "sent"), ("some", "stored"), ("all", "stored"), ("all", "sent")]
