"""How many images are fetched at once, and what becomes of a run whose images never come."""

import asyncio
import random
from collections.abc import Sequence
from typing import cast

import pytest
from msgspec.structs import replace

from banana_batch.engine.downloads import Downloads
from banana_batch.engine.stops import Stop
from banana_batch.errors import BananaError, DiskError, Exit
from banana_batch.images import failures
from banana_batch.models import SMALL_BYTES, FetchFailed, PaidImage, StoredImage
from banana_batch.pacing.clock import SystemClock
from banana_batch.ports import Events, Images, Pacer, Store
from tests.unit.pacing.simulated import VirtualClock, simulate

WIDTH, CROWD, IMAGES = 3, 4, 40


class World:
    """A host that answers when everybody who may ask has asked, and a store that only takes note."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.at_once = 0
        self.most = 0
        self.stored: list[int] = []
        self.held = 0

    def hold(self, _why: str) -> None:
        self.held += 1

    async def fetch(self, image: PaidImage) -> StoredImage:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        for _ in range(8 * WIDTH):
            await asyncio.sleep(0)
        self.at_once -= 1
        return StoredImage(f"images/{image.index}.png", self.size, "0" * 64, 1, 1, "image/png")

    async def finish(self, index: int, _image: StoredImage) -> None:
        self.stored.append(index)

    async def next_paid(self, _limit: int) -> Sequence[PaidImage]:
        return []

    def emit(self, event: str, /, **facts: object) -> None:
        assert event == "stored", facts


@pytest.mark.parametrize(
    ("size", "most"),
    [(SMALL_BYTES + 1, WIDTH), (SMALL_BYTES, 2 * WIDTH), (SMALL_BYTES // 2, 4 * WIDTH), (1, 4 * WIDTH)],
)
async def test_more_small_images_than_large_ones(size: int, most: int) -> None:
    """A large one holds a buffer while it comes; a small one mostly waits for its group. None is forgotten.

    The memory of those that are under way is bounded: the smaller they are, the more.
    """
    world = World(size)
    downloads = Downloads(
        cast("Store", world), cast("Images", world), SystemClock(), cast("Events", world), cast("Pacer", world),
        calls=64, width=WIDTH, crowd=CROWD, wait_s=60.0, rng=random.Random(1), on_stop=lambda stop: pytest.fail(stop.message),
    )  # fmt: skip
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(CROWD * WIDTH):
            group.create_task(downloads.work())
        for index in range(IMAGES):
            downloads.put(PaidImage(index, str(index), "https://x/", f"{index}", None))
            await asyncio.sleep(0)
        downloads.close()
    assert sorted(world.stored) == list(range(IMAGES))
    assert world.most == most


@pytest.mark.parametrize(("calls", "waiting", "held"), [(64, 1000, 0), (64, 1001, 1), (2000, 4000, 0), (2000, 4001, 1)])
async def test_calls_are_held_back_when_more_images_wait_than_two_waves_leave(
    calls: int, waiting: int, held: int
) -> None:
    """All calls may end at once, and leave so many images: their host is slow where still more of them wait."""
    world = World(1)
    downloads = Downloads(
        cast("Store", world), cast("Images", world), SystemClock(), cast("Events", world), cast("Pacer", world),
        calls=calls, width=WIDTH, crowd=CROWD, wait_s=60.0, rng=random.Random(1), on_stop=lambda stop: None,
    )  # fmt: skip
    for index in range(waiting):
        downloads.put(PaidImage(index, str(index), "https://x/", f"{index}", None))
    assert world.held == held


class Exact(random.Random):
    """Waits that virtual time can hold to the last digit."""

    def uniform(self, a: float, b: float) -> float:
        """Return eighths."""
        return round(super().uniform(a, b) * 8) / 8


class Dead:
    """A host that has nothing any more, a store that holds what earlier runs paid for, calls that wait for both."""

    def __init__(self, images: int) -> None:
        self.waiting = [PaidImage(index, str(index), "https://x/", f"{index}", None) for index in range(images)]
        self.waiting = [replace(image, failed_earlier=True) for image in self.waiting]
        self.held = False
        self.stops: list[tuple[float, Stop]] = []
        self.lost = 0
        self.broken: BananaError | None = None

    async def fetch(self, _image: PaidImage) -> FetchFailed:
        await asyncio.sleep(0.125)
        return failures.GONE.failed("404")

    async def next_paid(self, limit: int) -> Sequence[PaidImage]:
        if self.broken is not None:
            raise self.broken
        page, self.waiting = self.waiting[:limit], self.waiting[limit:]
        return page

    async def unfetched(self, _index: int, _failure: FetchFailed, lost: bool) -> None:
        self.lost += lost

    def emit(self, event: str, /, **_facts: object) -> None:
        assert event == "fetch_failed"

    def hold(self, _why: str) -> None:
        self.held = True

    def release(self, _why: str) -> None:
        self.held = False

    def stop(self, stop: Stop) -> None:
        self.stops.append((asyncio.get_running_loop().time(), stop))

    async def run(self) -> Downloads:
        """Fetch; the calls end once the run is to stop, as they do in a pool."""
        downloads = Downloads(
            cast("Store", self), cast("Images", self), VirtualClock(), cast("Events", self), cast("Pacer", self),
            calls=64, width=32, crowd=CROWD, wait_s=900.0, rng=Exact(1), on_stop=self.stop,
        )  # fmt: skip
        async with asyncio.timeout(4 * 3600), asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(downloads.work())
            while not self.stops:
                await asyncio.sleep(1)
            downloads.close()
        return downloads


def test_images_that_never_come_do_not_hold_a_run_for_ever() -> None:
    """Past 20 of them calls are held back; where none came for the time they are waited for, the run stops with 69."""
    world = Dead(60)
    simulate(world.run)
    (at_s, stop), *later = world.stops
    assert {stop.exit, *(one.exit for _, one in later)} == {Exit.UNAVAILABLE}
    assert "60 paid ones wait" in stop.message
    assert 900 <= at_s < 1800
    assert world.lost == 60


def test_a_page_that_cannot_be_read_stops_the_run_and_nothing_else() -> None:
    """An exception would cancel other people's paid calls."""
    world = Dead(1)
    world.broken = DiskError("state.sqlite3: disk I/O error")
    simulate(world.run)
    assert {stop.exit for _, stop in world.stops} == {Exit.DISK}
