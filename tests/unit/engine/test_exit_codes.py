"""What a run ends with, from what stopped it and what it left."""

from collections import Counter

import pytest

from banana_batch.engine.sending import budget_reached
from banana_batch.engine.stops import Stop, Streak, exit_code
from banana_batch.errors import Exit
from banana_batch.lifecycle import JobState
from banana_batch.models import Caps, Outcome, Signal, StopRule, Totals, Verdict

P = JobState.PENDING


@pytest.mark.parametrize(
    ("stops", "jobs", "code"),
    [
        ([], {JobState.DONE: 3}, Exit.DONE),
        ([], {JobState.DROPPED: 3}, Exit.DONE),
        ([], {JobState.FAILED: 1}, Exit.FAILED),
        ([], {JobState.LOST: 1}, Exit.FAILED),
        ([], {JobState.IN_DOUBT: 1, JobState.FAILED: 1}, Exit.IN_DOUBT),
        ([], {JobState.PAID: 1, JobState.IN_DOUBT: 1}, Exit.NOT_FETCHED),
        ([], {P: 1}, Exit.STOPPED),
        ([Exit.BUDGET], {P: 1, JobState.PAID: 1}, Exit.BUDGET),
        ([Exit.BUDGET], {JobState.DONE: 1}, Exit.DONE),
        ([Exit.OUT_OF_CREDITS, Exit.BUDGET], {P: 1}, Exit.OUT_OF_CREDITS),
        ([Exit.DISK, Exit.KEY, Exit.BUDGET], {P: 1}, Exit.DISK),
        ([Exit.DISK], {JobState.DONE: 1}, Exit.DISK),
        ([Exit.STOPPED], {JobState.PAID: 1, JobState.DONE: 1}, Exit.STOPPED),
        ([Exit.STOPPED], {JobState.IN_DOUBT: 1, JobState.DONE: 1}, Exit.IN_DOUBT),
    ],
)
def test_the_gravest_reason_is_the_exit_code(stops: list[Exit], jobs: dict[JobState, int], code: Exit) -> None:
    """Contract, section 7: the order when several hold. A stop that left nothing undone changed nothing."""
    assert exit_code([Stop(one, "x") for one in stops], Counter(jobs), limited=False) is code


def test_what_a_limit_left_out_was_not_asked_for() -> None:
    """With --limit, pending jobs are no unfinished work."""
    assert exit_code([], Counter({P: 5, JobState.DONE: 2}), limited=True) is Exit.DONE


def verdict(name: str, after: int = 2, *, from_start: bool = False) -> Verdict:
    rule = StopRule(Exit.PROTOCOL, "look", after, from_start)
    return Verdict(name, Outcome.IN_DOUBT, Signal.DOUBT, stop=rule)


def test_a_stop_rule_counts_answers_in_a_row() -> None:
    """Another answer between them begins the count anew."""
    streak = Streak()
    assert [streak.see(verdict(name)) is None for name in ("a", "b", "a", "a")] == [True, True, True, False]


def test_a_rule_for_the_start_holds_only_there() -> None:
    """Ten bad rows at the start are a bad manifest; after another answer they are ten bad rows."""
    streak = Streak()
    assert streak.see(verdict("a", 1, from_start=True)) is not None
    streak.see(verdict("b", 9))
    assert streak.see(verdict("a", 1, from_start=True)) is None


@pytest.mark.parametrize(
    ("budget", "run_budget", "spent", "said"),
    [
        (10, None, 10, "the budget is reached"),
        (10, 99, 11, "the budget is overspent"),
        (99, 10, 10, "this run's budget is reached"),
        (None, 10, 12, "this run's budget is overspent"),
    ],
)
def test_the_budget_that_is_used_up_is_named(budget: int | None, run_budget: int | None, spent: int, said: str) -> None:
    """With what to do about that one: a run's own is there again in the next run."""
    spending = Totals(spent=spent)
    stop = budget_reached(Caps(budget, run_budget, 50, bounded=True), spending, spending)
    assert stop.message.startswith(said)
    assert ("run again" in stop.hint) == said.startswith("this run")


def test_a_budget_of_nothing_is_likely_the_shells_doing() -> None:
    """`--budget $20` without quotes is `--budget 0`."""
    assert "quotes" in budget_reached(Caps(0, None, 50, bounded=True), Totals(), Totals()).hint


def test_a_price_that_does_not_fit_into_the_budget_is_named() -> None:
    """Nothing is spent, and raising the budget is not the only way out."""
    caps = Caps(30, None, 50, bounded=False)
    assert "lower --max-price" in budget_reached(caps, Totals(), Totals()).hint
    assert "max-price" not in budget_reached(caps, Totals(spent=30), Totals()).hint
    assert "max-price" not in budget_reached(Caps(30, None, 50, bounded=True), Totals(), Totals()).hint
