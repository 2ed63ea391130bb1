"""What may be sent under the caps, to the millionth."""

import pytest

from banana_batch.engine.budget import is_implausible, reserve_for, room
from banana_batch.models import Caps, Reserve, Totals

MAX = 50
SPENT = Totals(reserved=10, spent=60, at_risk=20, wasted=5)  # 90 against a cap; what is wasted is spent already


@pytest.mark.parametrize(
    ("budget", "run_budget", "price", "undurable", "reserve"),
    [
        (None, None, 2, 0, Reserve(2, ceiling=False)),
        (None, None, None, 0, Reserve(MAX, ceiling=True)),
        (92, None, 2, 0, Reserve(2, ceiling=False)),
        (91, None, 2, 0, None),
        (92, None, 2, 1, None),
        (140, None, None, 0, Reserve(MAX, ceiling=True)),
        (139, None, None, 0, None),
        (139, None, None, -1, Reserve(MAX, ceiling=True)),
        # A run's own cap counts what the run committed, 7, and the tighter of both holds.
        (None, 9, 2, 0, Reserve(2, ceiling=False)),
        (None, 8, 2, 0, None),
        (92, 8, 2, 0, None),
        (91, 9, 2, 0, None),
        (None, 9, 2, 1, None),
        (0, None, 2, 0, None),
    ],
)
def test_a_reserve_is_given_up_to_the_cap_and_not_beyond(
    budget: int | None, run_budget: int | None, price: int | None, undurable: int, reserve: Reserve | None
) -> None:
    """Spent, at risk, reserved, decided and this one: exactly the cap at most."""
    caps = Caps(budget, run_budget, MAX, bounded=False)
    assert reserve_for(price, caps, SPENT, Totals(spent=7), undurable) == reserve


@pytest.mark.parametrize(("budget", "micro"), [(140, 50), (139, 49), (91, 1), (90, None), (80, None)])
def test_without_a_price_of_its_own_all_that_is_left_is_set_aside(budget: int, micro: int | None) -> None:
    """The default of --max-price: 50, or what is left if that is less; nothing left, nothing sent."""
    found = reserve_for(None, Caps(budget, None, MAX, bounded=True), SPENT, Totals(), 0)
    assert found == (None if micro is None else Reserve(micro, ceiling=True))


def test_room_is_the_tighter_caps() -> None:
    """None without a cap; below nothing where an answer cost more than was set aside."""
    assert room(Caps(None, None, MAX, bounded=True), SPENT, SPENT) is None
    assert room(Caps(100, 95, MAX, bounded=True), SPENT, SPENT, undurable=1) == 4
    assert room(Caps(80, None, MAX, bounded=True), SPENT, SPENT) == -10


@pytest.mark.parametrize(
    ("credits_micro", "price", "bounded", "implausible"),
    [
        (20, 2, True, False), (21, 2, True, True), (50, 2, False, False), (51, 2, False, True),
        (500, None, True, False), (501, None, True, True), (1, 0, True, False), (2, 0, True, True),
    ],
)  # fmt: skip
def test_ten_times_what_was_expected_is_an_accident(
    credits_micro: int, price: int | None, bounded: bool, implausible: bool
) -> None:
    """Unless the user said that an image may cost that much."""
    assert is_implausible(credits_micro, price, Caps(None, None, MAX, bounded=bounded)) is implausible
