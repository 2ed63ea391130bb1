"""A small part of the process-level proofs, for every `make test`; the whole is `make torture`."""

from .kill import run_kills
from .two import run_rounds


def test_a_killed_batch_is_never_charged_twice_and_never_half_there() -> None:
    """20 SIGKILLs at random instants: every promise holds after each of them, and everything is done at the end."""
    figures = run_kills(20)
    assert figures.violations == []


def test_of_many_starters_one_runs() -> None:
    """6 starters at once: one runs, 5 say 75 and send nothing. That it takes less than a second, T-two measures."""
    figures = run_rounds(1, starters=6, at_once_s=10.0)
    assert figures.violations == []
