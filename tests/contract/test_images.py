"""What everything that fetches images promises: here, in a process of its own, and the fake of tests."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from msgspec import Struct

from banana_batch.images.fetcher import ImageFetcher
from banana_batch.models import FetchFailed, PaidImage, StoredImage
from banana_batch.ports import Images
from tests.contract.fakes import FakeImages
from tests.integration.images_peer import answer, everything, fetching, host
from tests.integration.test_outside import Ready
from tests.unit.images.samples import png

MANY, GONE = 20, 99


class Fetching(Struct):
    """What fetches, and where the images are said to be."""

    images: Images
    url: str

    def image(self, index: int) -> PaidImage:
        """Return a paid image; number GONE is nowhere."""
        return PaidImage(index, str(index), f"{self.url}/{index}.png", f"{index:05d}-cat", None)


async def _serve(request: bytes, writer: asyncio.StreamWriter) -> None:
    index = int(request.split()[1].strip(b"/").removesuffix(b".png"))
    if index == GONE:
        writer.write(answer(b"", status="404 Not Found"))
    else:
        writer.write(answer(png(data=index.to_bytes(4, "big") * 4)))


@asynccontextmanager
async def here(out: Path) -> AsyncIterator[Fetching]:
    async with host(_serve) as peer, fetching(out, peer.url, made=ImageFetcher) as fetcher:
        yield Fetching(fetcher, peer.url)


@asynccontextmanager
async def outside(out: Path) -> AsyncIterator[Fetching]:
    async with host(_serve) as peer, fetching(out, peer.url, made=Ready) as fetcher:
        yield Fetching(fetcher, peer.url)


@asynccontextmanager
async def fake(out: Path) -> AsyncIterator[Fetching]:
    yield Fetching(FakeImages(out, gone={GONE}), "https://example.test")


every_fetcher = pytest.mark.parametrize("opened", [here, outside, fake])
Opened = Callable[[Path], AbstractAsyncContextManager[Fetching]]


def assert_stored(out: Path, stored: object) -> None:
    """What is said to be stored is on disk under its name, byte for byte."""
    assert isinstance(stored, StoredImage)
    body = (out / stored.path).read_bytes()
    assert (len(body), hashlib.sha256(body).hexdigest()) == (stored.bytes, stored.sha256)


@every_fetcher
async def test_what_is_stored_is_on_disk_under_its_name(opened: Opened, tmp_path: Path) -> None:
    """With its size and its hash, and nothing beside it."""
    async with opened(tmp_path) as fetching:
        stored = await fetching.images.fetch(fetching.image(1))
        assert_stored(tmp_path, stored)
        assert isinstance(stored, StoredImage)
        assert everything(tmp_path) == {stored.path}
        assert "00001-cat" in stored.path


@every_fetcher
async def test_it_may_be_fetched_again(opened: Opened, tmp_path: Path) -> None:
    """That is free, and leaves one file."""
    async with opened(tmp_path) as fetching:
        first, again = [await fetching.images.fetch(fetching.image(1)) for _ in range(2)]
        assert_stored(tmp_path, again)
        assert first == again
        assert len(everything(tmp_path)) == 1


@every_fetcher
async def test_many_at_once_are_not_mixed_up(opened: Opened, tmp_path: Path) -> None:
    """Each has its own file and its own bytes."""
    async with opened(tmp_path) as fetching:
        stored = await asyncio.gather(*(fetching.images.fetch(fetching.image(one)) for one in range(MANY)))
    for one in stored:
        assert_stored(tmp_path, one)
    assert len({one.sha256 for one in stored if isinstance(one, StoredImage)}) == MANY
    assert len(everything(tmp_path)) == MANY


@every_fetcher
async def test_an_image_that_is_gone_is_a_value_and_leaves_nothing(opened: Opened, tmp_path: Path) -> None:
    """It says so, and that it may be tried again."""
    async with opened(tmp_path) as fetching:
        failed = await fetching.images.fetch(fetching.image(GONE))
        assert isinstance(failed, FetchFailed)
        assert (failed.gone, failed.lost) == (True, False)
        assert failed.retries > 0
        assert not everything(tmp_path)
