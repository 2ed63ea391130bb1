"""A short fuzz of all that reads what others wrote; tests/torture/fuzz.py is the long one."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.torture.fuzz import mutated
from tests.unit.targets import SEEDS, TARGETS

# Found by fuzzing; each broke a promise once.
REGRESSIONS: dict[str, list[bytes]] = {
    "urls": [b"https://[fe80::1%25\xc2\x84o]/", b"https://[fe80::1%25\xc3\x95\x1blo]/"]
}


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_keep_the_promise(name: str) -> None:
    """Random bytes, and seeds changed at random places."""
    target, seeds = TARGETS[name], SEEDS[name]
    for data in (*seeds, *REGRESSIONS.get(name, ())):
        target(data)

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(st.binary(max_size=120), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))))
    def whatever(data: bytes) -> None:
        target(data)

    whatever()
    for turn in range(150):
        target(mutated(seeds, turn))
