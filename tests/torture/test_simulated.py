"""A small part of the in-process proofs, for every `make test`; the whole is `make torture`."""

import pytest

from tests.torture import hyp, model
from tests.torture.sim import play


@pytest.mark.parametrize("seed", range(101, 111))
def test_a_night_keeps_its_promises_and_ends_well(seed: int) -> None:
    """At every commit: budget, sums, legal states, never twice; by morning everything is done that the faults allowed."""
    assert play(seed, 100).broken == []


def test_the_same_seed_gives_the_same_night() -> None:
    """A failing night can be played again: its ledger comes out the same to the microsecond."""
    assert play(105, 60).ledger == play(105, 60).ledger


def test_no_crash_of_the_write_order_breaks_a_promise() -> None:
    """Every crash state of a real run's steps is sound, and each sync that is left out is noticed."""
    figures = model.run("a")
    assert figures.violations == []
    assert int(figures.counts["states"]) > 50
    assert figures.counts["caught"] == figures.counts["mutants"]


def test_no_order_of_events_breaks_the_ledger() -> None:
    """Sends, answers, doubts, crashes, the user's word, edits of the manifest and of the budget, in any order."""
    assert hyp.explore(40, steps=30).violations == []
