"""How many images are fetched at once."""

import asyncio
import random
from collections.abc import Sequence
from typing import cast

import pytest

from banana_batch.engine.downloads import Downloads
from banana_batch.models import SMALL_BYTES, PaidImage, StoredImage
from banana_batch.pacing.clock import SystemClock
from banana_batch.ports import Events, Images, Pacer, Store

WIDTH, CROWD, IMAGES = 3, 4, 40


class World:
    """A host that answers when everybody who may ask has asked, and a store that only takes note."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.at_once = 0
        self.most = 0
        self.stored: list[int] = []

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
        width=WIDTH, crowd=CROWD, wait_s=60.0, rng=random.Random(1), on_stop=lambda stop: pytest.fail(stop.message),
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
