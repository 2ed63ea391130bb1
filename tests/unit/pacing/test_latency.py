"""Percentiles over the recent answers of a kind."""

from hypothesis import given, settings
from hypothesis import strategies as st

from banana_batch.models import Kind
from banana_batch.pacing.latency import RECENT, Latencies
from tests.unit.pacing.simulated import KIND


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 600), min_size=1, max_size=1200))
def test_percentiles_are_those_of_the_last_500(latencies_s: list[float]) -> None:
    """p50 and p95 by nearest rank, of the newest RECENT answers and no others."""
    latencies = Latencies()
    latencies.seed(KIND, latencies_s)
    last = sorted(latencies_s[-RECENT:])
    found = latencies.both(KIND)
    assert found is not None
    p50, p95 = found
    assert sum(value <= p50 for value in last) >= 0.50 * len(last)
    assert sum(value < p50 for value in last) < 0.50 * len(last)
    assert sum(value <= p95 for value in last) >= 0.95 * len(last)
    assert sum(value < p95 for value in last) < 0.95 * len(last)


def test_a_kind_that_was_never_seen_has_none() -> None:
    """Kinds don't mix: a 4K call says nothing about 1K."""
    latencies = Latencies()
    latencies.add(Kind(KIND.model, "4K"), 90)
    assert latencies.both(KIND) is None
    assert latencies.p95(KIND) is None
    assert latencies.p95(Kind(KIND.model, "4K")) == 90
