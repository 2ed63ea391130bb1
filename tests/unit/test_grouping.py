"""Callers that share one durable step."""

import asyncio
from collections.abc import Sequence

import pytest

from banana_batch.grouping import GroupCommit
from tests.torture.virtual import Inline
from tests.unit.pacing.simulated import simulate


class Doubled:
    """Doubles numbers, refuses odd ones, and keeps the groups it was given."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []

    def commit(self, items: Sequence[int]) -> Sequence[int | BaseException]:
        self.groups.append(list(items))
        return [ValueError(str(item)) if item % 2 else item * 2 for item in items]


async def test_what_is_put_in_one_turn_shares_a_group() -> None:
    """Each caller gets its own result, or its own exception."""
    work = Doubled()
    group: GroupCommit[int, int] = GroupCommit(Inline(), work.commit)
    results = await asyncio.gather(*map(group.put, (2, 3, 4)), return_exceptions=True)
    assert work.groups == [[2, 3, 4]]
    assert [results[0], str(results[1]), results[2]] == [4, "3", 8]


async def test_a_group_takes_so_many_and_the_next_one_the_rest() -> None:
    """In the order they were put."""
    work = Doubled()
    group: GroupCommit[int, int] = GroupCommit(Inline(), work.commit, max_group=2)
    assert await asyncio.gather(*map(group.put, (2, 4, 6, 8, 10))) == [4, 8, 12, 16, 20]
    assert work.groups == [[2, 4], [6, 8], [10]]


async def test_what_the_commit_raises_goes_to_every_caller() -> None:
    """And the next group is another try."""

    def commit(items: Sequence[int]) -> Sequence[int]:
        if len(items) > 1:
            raise OSError("broken")
        return items

    group: GroupCommit[int, int] = GroupCommit(Inline(), commit)
    results = await asyncio.gather(group.put(2), group.put(4), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    assert await group.put(6) == 6


async def test_who_is_cancelled_takes_nothing_back_and_is_told_of() -> None:
    """Its item is in the group all the same; what came of it is handed on, once, before the next group begins."""
    work = Doubled()
    told: list[tuple[int, int]] = []

    def abandoned(item: int, result: int) -> None:
        told.append((item, result))
        group.put(100)

    group: GroupCommit[int, int] = GroupCommit(Inline(), work.commit, abandoned)
    gone, kept, failed = group.put(2), group.put(4), group.put(5)
    gone.cancel()
    failed.cancel()
    assert await kept == 8
    assert await group.put(6) == 12
    assert told == [(2, 4)]
    assert work.groups == [[2, 4, 5], [100], [6]]


async def test_without_anyone_to_tell_nothing_is_told() -> None:
    """The neighbours land as ever."""
    work = Doubled()
    group: GroupCommit[int, int] = GroupCommit(Inline(), work.commit)
    gone, kept = group.put(2), group.put(4)
    gone.cancel()
    assert await kept == 8
    with pytest.raises(asyncio.CancelledError):
        await gone


def test_what_comes_in_a_row_shares_a_step_and_the_first_never_waits() -> None:
    """After a pause a group starts at once; the next one gathers, unless as many wait as a group takes, or none is to."""
    started: list[tuple[float, list[int]]] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()

        def commit(items: Sequence[int]) -> Sequence[int]:
            started.append((round(loop.time() - begun_s, 6), [*items]))
            return items

        group: GroupCommit[int, int] = GroupCommit(Inline(), commit, max_group=3, gather_s=0.5)
        assert await group.put(1) == 1
        second = group.put(2)
        await asyncio.sleep(0.1)
        assert list(await asyncio.gather(second, group.put(3))) == [2, 3]
        assert await asyncio.gather(*map(group.put, (4, 5, 6))) == [4, 5, 6]
        await asyncio.sleep(10)
        assert await group.put(7) == 7
        group.gather_s = 0.0
        assert await group.put(8) == 8

    simulate(scene)
    assert started == [(0.0, [1]), (0.5, [2, 3]), (0.5, [4, 5, 6]), (10.5, [7]), (10.5, [8])]


async def test_idle_waits_for_what_nobody_waits_for() -> None:
    """All that was put is through when it returns, what gathers still among it; with nothing put it returns at once."""
    work = Doubled()
    group: GroupCommit[int, int] = GroupCommit(Inline(), work.commit, gather_s=0.01)
    await group.idle()
    assert await group.put(2) == 4
    gone = group.put(4)
    gone.cancel()
    await asyncio.gather(group.idle(), group.idle())
    assert work.groups == [[2], [4]]
