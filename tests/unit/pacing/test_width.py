"""The limit of calls in flight, without a clock."""

from banana_batch.pacing.width import FIRST_PATIENCE_S, Width


def _window(width: Width, now_s: float) -> None:
    for _ in range(width.limit):
        width.accepted(now_s, width.limit)


def test_a_window_of_good_answers_widens_by_one() -> None:
    """`limit` good answers are one step; one fewer is none."""
    width = Width(16)
    width.refused(0, 16, again=False)
    assert width.limit == 8
    for _ in range(7):
        width.accepted(1, 8)
    assert width.limit == 8
    width.accepted(1, 8)
    assert width.limit == 9


def test_the_width_that_failed_is_left_alone_for_a_while_then_tried_once() -> None:
    """The limit rests one below the ceiling; a try that fails goes back there, and the patience doubles."""
    width = Width(64)
    width.refused(0, 7, again=False)
    for _ in range(20):
        _window(width, 10)
    assert width.limit == 6
    _window(width, FIRST_PATIENCE_S + 1)
    assert width.limit == 7
    width.refused(FIRST_PATIENCE_S + 2, 7, again=False)
    assert width.limit == 6
    _window(width, 2 * FIRST_PATIENCE_S + 1)
    assert width.limit == 6
    _window(width, 3 * FIRST_PATIENCE_S + 3)
    assert width.limit == 7


def test_a_shut_door_is_not_remembered_as_a_narrow_one() -> None:
    """Refused all the way down to 1, the limit grows back to where the first refusal was."""
    width = Width(64)
    width.refused(0, 64, again=False)
    for _ in range(10):
        width.refused(1, width.limit, again=True)
    assert width.limit == 1
    for _ in range(70):
        _window(width, 2)
    assert width.limit == 63


def test_an_idle_limit_proves_nothing() -> None:
    """Good answers that came while half of the width was unused widen nothing."""
    width = Width(64)
    width.refused(0, 64, again=False)
    for _ in range(1000):
        width.accepted(1, 3)
    assert width.limit == 32
