"""Whose fault a refusal is: the job's, or everybody's."""

from banana_batch.engine.stops import FEW, Refusals


def refused(refusals: Refusals, job: int, now_s: float) -> int:
    return refusals.refused(job, now_s, counts=True)


def test_a_job_that_alone_is_refused_uses_up_its_tries() -> None:
    """While all others are served, each refusal counts against its job."""
    refusals = Refusals()
    for tries, now_s in ((1, 10.0), (2, 20.0), (3, 30.0)):
        assert refused(refusals, 7, now_s) == tries
        refusals.served(8, sent_at_s=now_s + 1)


def test_the_last_job_left_uses_up_its_tries() -> None:
    """With nobody else to compare with, refusals in a row count: the job must not be tried for ever."""
    refusals = Refusals()
    assert [refused(refusals, 7, now_s) for now_s in (1.0, 2.0, 3.0)] == [1, 2, 3]


def test_a_few_jobs_that_are_left_use_up_their_tries() -> None:
    """Bad rows at the end of a manifest fail: they don't keep the run until it gives up, and the one after it."""
    refusals = Refusals()
    turns = [refusals.refused(job, float(now), counts=now < 5, last=True) for now, job in enumerate([7, 8, 9] * 3)]
    assert turns == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_many_jobs_that_are_left_are_an_outage() -> None:
    """A storm over the last rows uses up nobody's tries once it has met several of them."""
    refusals = Refusals()
    for now, job in enumerate(range(FEW)):
        refusals.refused(job, float(now), counts=True, last=True)
    assert [refusals.refused(job, 10.0, counts=True, last=True) for job in range(FEW)] == [0] * FEW


def test_when_others_are_refused_too_no_job_is_to_blame() -> None:
    """Jobs that take turns in a storm, as with -c 1, keep their tries."""
    refusals = Refusals()
    assert refused(refusals, 7, 7.0) == 1
    assert [refused(refusals, job, 8.0) for job in (8, 7, 8, 7, 9)] == [0] * 5


def test_what_a_storm_used_up_before_it_was_known_is_given_back() -> None:
    """The job that a storm met first has lost no try, and keeps those that it had used up before."""
    refusals = Refusals()
    assert refused(refusals, 7, 1.0) == 1
    refusals.served(9, sent_at_s=2.0)
    assert refused(refusals, 7, 10.0) == 2
    assert refused(refusals, 8, 11.0) == 0
    refusals.served(9, sent_at_s=12.0)
    assert refused(refusals, 7, 20.0) == 2


def test_an_answer_to_an_older_call_proves_nothing() -> None:
    """Calls that were out when the storm began still end well; only one sent since shows that it is over."""
    refusals = Refusals()
    assert refused(refusals, 7, 100.0) == 1
    refusals.served(1, sent_at_s=99.0)
    assert refused(refusals, 8, 101.0) == 0
    refusals.served(2, sent_at_s=100.5)
    assert refused(refusals, 8, 130.0) == 1


def test_in_an_incident_nothing_counts() -> None:
    """The pacing knows already that nobody gets through."""
    refusals = Refusals()
    assert refusals.refused(7, 1.0, counts=False) == 0
    assert refused(refusals, 7, 2.0) == 1


def test_a_job_that_is_served_is_forgotten() -> None:
    """What is remembered does not grow with the batch."""
    refusals = Refusals()
    assert refused(refusals, 7, 1.0) == 1
    refusals.served(7, sent_at_s=2.0)
    assert refused(refusals, 7, 3.0) == 1
