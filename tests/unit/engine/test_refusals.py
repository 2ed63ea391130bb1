"""Whose fault a refusal is: the job's, or everybody's."""

from banana_batch.engine.stops import Refusals


def test_a_job_that_alone_is_refused_uses_up_its_tries() -> None:
    """While all others are served, each refusal counts against its job."""
    refusals = Refusals()
    for now_s in (10.0, 20.0, 30.0):
        assert refusals.counts(7, now_s)
        refusals.served(sent_at_s=now_s + 1)


def test_the_last_job_left_uses_up_its_tries() -> None:
    """With nobody else to compare with, refusals in a row count: the job must not be tried for ever."""
    refusals = Refusals()
    assert [refusals.counts(7, now_s) for now_s in (1.0, 2.0, 3.0)] == [True] * 3


def test_when_others_are_refused_too_no_job_is_to_blame() -> None:
    """Two jobs that take turns in a storm, as with -c 1, keep their tries: only the very first refusal counted."""
    refusals = Refusals()
    assert [refusals.counts(job, float(job)) for job in (7, 8, 7, 8, 7, 9)] == [True, *[False] * 5]


def test_an_answer_to_an_older_call_proves_nothing() -> None:
    """Calls that were out when the storm began still end well; only one sent since shows that it is over."""
    refusals = Refusals()
    assert refusals.counts(7, 100.0)
    refusals.served(sent_at_s=99.0)
    assert not refusals.counts(8, 101.0)
    refusals.served(sent_at_s=100.5)
    assert refusals.counts(8, 130.0)
