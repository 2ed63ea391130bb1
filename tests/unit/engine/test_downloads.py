"""How many images are fetched at once, and what becomes of a run whose images never come."""

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from banana_batch.engine import downloads
from banana_batch.engine.downloads import CROWD, GIVE_WAY_S, Downloads
from banana_batch.engine.stops import Stop
from banana_batch.errors import Exit
from banana_batch.images import failures
from banana_batch.models import SMALL_BYTES, FetchFailed, PaidImage, StoredImage
from banana_batch.pacing.clock import SystemClock
from banana_batch.pacing.pacer import Pacer
from banana_batch.ports import Clock
from banana_batch.store import runs
from banana_batch.store.state import StateStore
from tests.contract.fakes import FakeImages, Told, VirtualClock
from tests.torture.virtual import Inline, virtual_network
from tests.unit.pacing.simulated import KIND, make_pacer, simulate
from tests.unit.store.small import HELD, Flaky, opened, paid, states

WIDTH, IMAGES = 3, 60


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    with opened(tmp_path, IMAGES) as flaky:
        yield flaky


class Patient(FakeImages):
    """A host that answers what is asked for first, and then nothing until so many are asked for at once; then all.

    Args:
        until: How many.
    """

    def __init__(self, out: Path, size: int, until: int) -> None:
        super().__init__(out, size)
        self._until = until
        self._at_once = self._fetched = self.most = 0

    async def asked(self, for_images: int) -> None:
        """Wait until so many are asked for at once, and long enough for more of them to be seen."""
        while self.most < for_images:
            await asyncio.sleep(0)
        await self._a_while()

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed:
        self._at_once += 1
        self.most = max(self.most, self._at_once)
        await (self.asked(self._until) if self._fetched else self._a_while())
        self._at_once -= 1
        self._fetched += 1
        return await super().fetch(image)

    async def _a_while(self) -> None:
        for _ in range(8 * WIDTH):
            await asyncio.sleep(0)


class Dead(FakeImages):
    """A host that has nothing any more, and takes an eighth of a second to say so."""

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed:
        await asyncio.sleep(0.125)
        return await super().fetch(image)


class Silent(FakeImages):
    """A host that takes a connection and never answers."""

    tries = 0

    async def fetch(self, _image: PaidImage) -> StoredImage | FetchFailed:
        self.tries += 1
        await asyncio.sleep(30)
        return failures.UNREACHABLE.failed("no answer")


class Full(FakeImages):
    """A disk that takes no image."""

    tries = 0

    async def fetch(self, _image: PaidImage) -> StoredImage | FetchFailed:
        self.tries += 1
        return failures.by_disk(OSError(errno.ENOSPC, "No space left on device"))


class Scene:
    """Downloads of a run of its own, on a real state file.

    Attributes:
        stops: What was to end the run, and when.
    """

    def __init__(
        self,
        db: Flaky,
        images: FakeImages,
        folder: Path,
        clock: Clock,
        *,
        calls: int = 64,
        width: int = WIDTH,
        crowd: int = CROWD,
        wait_s: float = 900.0,
        leaving: Callable[[], bool] = lambda: False,
        under_way: Callable[[], int] | None = None,
    ) -> None:
        self.store = StateStore(db, Inline(), clock, runs.begin_run(db, 0, None), folder)
        self.pacer: Pacer = make_pacer(clock, concurrency=calls)
        self.stops: list[tuple[float, Stop]] = []
        self.tasks = width * CROWD
        self.downloads = Downloads(
            self.store, images, clock, Told(), self.pacer,
            calls=calls, width=width, crowd=crowd, wait_s=wait_s, rng=random.Random(1), on_stop=self._stop,
            leaving=leaving, under_way=under_way or (lambda: calls),
        )  # fmt: skip

    @asynccontextmanager
    async def fetching(self, within_s: float = 20) -> AsyncIterator[None]:
        """Fetch meanwhile, then until all is done: no paid call is out any more."""
        async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
            for _ in range(self.tasks):
                group.create_task(self.downloads.work())
            yield
            self.downloads.close()

    async def come(self) -> None:
        """Buy all images; they come one after the other."""
        for image in await self.buy():
            self.downloads.put(image)
            await asyncio.sleep(0)

    def _stop(self, stop: Stop) -> None:
        self.stops.append((asyncio.get_running_loop().time(), stop))

    async def buy(self) -> list[PaidImage]:
        """Buy all images."""
        jobs = await self.store.next_pending(IMAGES)
        attempts = await asyncio.gather(*(self.store.begin(job, HELD) for job in jobs))
        settled = (self.store.settle(attempt, job, paid()) for attempt, job in zip(attempts, jobs, strict=True))
        return [image for image in await asyncio.gather(*settled) if image]


@pytest.mark.parametrize(
    ("size", "most"),
    [(SMALL_BYTES + 1, WIDTH), (SMALL_BYTES, 2 * WIDTH), (SMALL_BYTES // 2, 4 * WIDTH), (64, 4 * WIDTH)],
)
async def test_more_small_images_than_large_ones(db: Flaky, tmp_path: Path, size: int, most: int) -> None:
    """A large one holds a buffer while it comes; a small one mostly waits for its group. None is forgotten.

    The memory of those that are under way is bounded: the smaller they are, the more.
    """
    images = Patient(tmp_path, size, until=most)
    scene = Scene(db, images, tmp_path, SystemClock())
    async with scene.fetching():
        await scene.come()
    assert states(db) == {"done": IMAGES}
    assert images.most == most
    assert not scene.stops


async def test_more_images_come_at_once_when_no_call_can_suffer_any_more(db: Flaky, tmp_path: Path) -> None:
    """In a wide run images are held to fewer, as calls go first; the last ones are not."""
    images = Patient(tmp_path, 64, until=CROWD * WIDTH)
    scene = Scene(db, images, tmp_path, SystemClock(), crowd=2)
    async with scene.fetching():
        await scene.come()
        await images.asked(2 * WIDTH)
        assert images.most == 2 * WIDTH
    assert states(db) == {"done": IMAGES}
    assert images.most == CROWD * WIDTH


@pytest.mark.parametrize(("calls", "waiting", "held"), [(64, 256, 0), (64, 257, 1), (2000, 4000, 0), (2000, 4001, 1)])
async def test_calls_are_held_back_when_more_images_wait_than_two_waves_leave(
    db: Flaky, tmp_path: Path, calls: int, waiting: int, held: int
) -> None:
    """All calls may end at once, and leave so many images: their host is slow where still more of them wait."""
    scene = Scene(db, FakeImages(tmp_path), tmp_path, SystemClock(), calls=calls)
    for index in range(waiting):
        scene.downloads.put(PaidImage(index, str(index), "https://x/", f"{index}", None))
    turn = asyncio.ensure_future(scene.pacer.admit(KIND))
    await asyncio.sleep(0)
    assert turn.done() is not bool(held)
    turn.cancel()


async def test_more_come_at_once_as_soon_as_they_are_known_to_be_small(db: Flaky, tmp_path: Path) -> None:
    """Also where all were queued before the first one came, as after a stop: no new one needs to wake anybody."""
    images = Patient(tmp_path, 64, until=CROWD * WIDTH)
    scene = Scene(db, images, tmp_path, SystemClock())
    for image in await scene.buy():
        scene.downloads.put(image)
    async with scene.fetching():
        await images.asked(CROWD * WIDTH)
    assert states(db) == {"done": IMAGES}


async def test_images_give_way_to_calls_that_are_leaving(
    db: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is fetched until they have left, unless more wait than calls can end at once; then the others are."""
    monkeypatch.setattr(downloads, "GIVE_WAY_S", 3600)
    images, leaving = Patient(tmp_path, 64, until=1), [True]
    scene = Scene(db, images, tmp_path, SystemClock(), calls=IMAGES - 5, leaving=lambda: bool(leaving))
    async with scene.fetching():
        await scene.come()
        while states(db) != {"done": 5, "paid": IMAGES - 5}:
            await asyncio.sleep(0)
        await images.asked(1)
        assert states(db) == {"done": 5, "paid": IMAGES - 5}
        leaving.clear()
        scene.downloads.go_on()
        while scene.downloads.waiting:
            await asyncio.sleep(0)
    assert states(db) == {"done": IMAGES}


@pytest.mark.parametrize("earlier", [True, False], ids=["an earlier run's", "this run's"])
def test_images_give_way_for_a_moment_only(db: Flaky, tmp_path: Path, earlier: bool) -> None:
    """Where calls leave all the time they come beside them. One that comes when none waits any more waits anew."""

    async def play() -> tuple[float, float]:
        clock = VirtualClock()
        if earlier:
            await _left_by_an_earlier_run(db, tmp_path, clock)
        scene = Scene(db, FakeImages(tmp_path), tmp_path, clock, calls=IMAGES, leaving=lambda: True)
        images = [] if earlier else await scene.buy()
        first, rest = images[1:], images[:1]
        async with scene.fetching():
            for image in first:
                scene.downloads.put(image)
            first_s = await _until_stored(db, clock, IMAGES - len(rest))
            for image in rest:
                scene.downloads.put(image)
            return first_s, await _until_stored(db, clock, IMAGES)

    with virtual_network():
        first_s, rest_s = simulate(play)
    assert GIVE_WAY_S <= first_s < GIVE_WAY_S + 0.1
    assert earlier or GIVE_WAY_S <= rest_s < GIVE_WAY_S + 0.1


def _spread(
    db: Flaky, folder: Path, latency_s: float | None, *, crowd: int = 2, calls: int = IMAGES,
    under_way: Callable[[], int] | None = None, last: bool = False
) -> tuple[float, float]:  # fmt: skip
    """Return how long it takes, after a wave of answers, until half of its images are stored, and until all are."""

    async def play() -> tuple[float, float]:
        clock = VirtualClock()
        scene = Scene(db, FakeImages(folder), folder, clock, calls=calls, width=32, crowd=crowd, under_way=under_way)
        images = await scene.buy()
        async with scene.fetching():
            await asyncio.sleep(1)  # what an earlier run left was looked for
            for image in images:
                scene.downloads.put(image, latency_s)
            if last:
                scene.downloads.close()
            half_s = await _until_stored(db, clock, IMAGES // 2)
            return half_s, half_s + await _until_stored(db, clock, IMAGES)

    with virtual_network():
        return simulate(play)


def test_images_of_a_wave_are_spread_over_the_time_until_the_next(db: Flaky, tmp_path: Path) -> None:
    """As many a second as calls end: the machine stays awake, and the last is there when the next wave comes."""
    half_s, all_s = _spread(db, tmp_path, 1.0)
    assert 0.35 <= half_s <= 0.55
    assert 0.8 <= all_s <= 1.0


@pytest.mark.parametrize(
    "scene",
    [
        {"latency_s": 0.4}, {"latency_s": 2.5}, {"latency_s": None}, {"latency_s": 1.0, "crowd": CROWD},
        {"latency_s": 1.0, "under_way": lambda: IMAGES // 2 - 1}, {"latency_s": 1.0, "last": True},
    ],
    ids=["short calls", "long calls", "nothing known", "a narrow run", "most calls have ended", "all have"],
)  # fmt: skip
def test_images_are_not_held_back_for_nothing(db: Flaky, tmp_path: Path, scene: dict[str, Any]) -> None:
    """No lull, or none that can be filled, or nothing that follows: they come at once."""
    assert _spread(db, tmp_path, **scene)[1] < 0.1


def test_a_turn_that_is_used_up_while_calls_leave_is_not_forgotten(
    db: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that came meanwhile are fetched with the next turn, and not only when something else happens."""
    monkeypatch.setattr(downloads, "GIVE_WAY_S", 3600)
    leaving: list[bool] = []

    async def play() -> float:
        clock = VirtualClock()
        scene = Scene(
            db, FakeImages(tmp_path), tmp_path, clock, calls=IMAGES, width=32, crowd=2, leaving=lambda: bool(leaving)
        )
        images = await scene.buy()
        async with scene.fetching():
            await asyncio.sleep(1)
            for image in images[:8]:  # a turn's
                scene.downloads.put(image, 1.0)
            await asyncio.sleep(0.03)
            leaving.append(True)
            for image in images[8:]:
                scene.downloads.put(image, 1.0)
            leaving.clear()
            scene.downloads.go_on()
            return await _until_stored(db, clock, IMAGES)

    with virtual_network():
        assert simulate(play) <= 1.0


def test_more_images_than_a_wave_s_are_not_held_back(db: Flaky, tmp_path: Path) -> None:
    """What goes beyond as many as there are calls comes at once: what waits does not grow."""
    half_s, all_s = _spread(db, tmp_path, 1.0, calls=IMAGES // 2)
    assert half_s < 0.1
    assert 0.8 <= all_s <= 1.1


async def _until_stored(db: Flaky, clock: Clock, images: int) -> float:
    """Return how long it took until so many were stored, seconds."""
    began_s = clock.monotonic_s()
    while states(db).get("done", 0) < images:
        await asyncio.sleep(0.01)
    return clock.monotonic_s() - began_s


async def test_what_an_earlier_run_left_is_looked_for_before_images_give_way(
    db: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are fetched first."""
    monkeypatch.setattr(downloads, "GIVE_WAY_S", 3600)
    clock = SystemClock()
    await _left_by_an_earlier_run(db, tmp_path, clock)
    leaving = [True]
    scene = Scene(db, FakeImages(tmp_path), tmp_path, clock, calls=5, leaving=lambda: bool(leaving))
    async with scene.fetching():
        while states(db) != {"done": IMAGES - 5, "paid": 5}:
            await asyncio.sleep(0)
        leaving.clear()
    assert states(db) == {"done": IMAGES}


async def _left_by_an_earlier_run(db: Flaky, folder: Path, clock: Clock) -> None:
    earlier = Scene(db, FakeImages(folder), folder, clock)
    gone = failures.GONE.failed("HTTP 404")
    for image in await earlier.buy():
        await earlier.store.unfetched(image.index, gone, lost=False)


async def _fetched(scene: Scene) -> Scene:
    """Fetch; the calls end once the run is to stop, as they do in a pool."""
    async with scene.fetching(4 * 3600):
        while not scene.stops:
            await asyncio.sleep(1)
    return scene


def test_images_that_never_come_do_not_hold_a_run_for_ever(db: Flaky, tmp_path: Path) -> None:
    """Past 20 of them calls are held back; where none came for the time they are waited for, the run stops with 69."""

    async def play() -> Scene:
        clock = VirtualClock()
        await _left_by_an_earlier_run(db, tmp_path, clock)
        images = Dead(tmp_path, gone=range(IMAGES + 1))
        return await _fetched(Scene(db, images, tmp_path, clock, width=32))

    with virtual_network():  # whole ticks, whatever is waited for
        (at_s, stop), *later = simulate(play).stops
    assert {stop.exit, *(one.exit for _, one in later)} == {Exit.UNAVAILABLE}
    assert f"{IMAGES} paid ones wait" in stop.message
    assert 900 <= at_s < 1800
    assert states(db) == {"lost": IMAGES}


def test_no_try_is_waited_for_past_the_time(db: Flaky, tmp_path: Path) -> None:
    """A try that was planned before the last call ended, and for later, comes when the time is over."""

    async def play() -> float:
        clock = VirtualClock()
        scene = Scene(db, Dead(tmp_path, gone=range(IMAGES + 1)), tmp_path, clock, wait_s=1.0)
        for image in await scene.buy():
            scene.downloads.put(image)
        async with scene.fetching(600):
            await asyncio.sleep(30)
            began_s = asyncio.get_running_loop().time()
        return asyncio.get_running_loop().time() - began_s

    with virtual_network():
        # A second, and one last round: 60 images, an eighth of a second each, three at once.
        assert simulate(play) <= 1.0 + IMAGES / WIDTH * 0.125 + 0.5
    assert states(db) == {"paid": IMAGES}


def test_a_silent_host_is_not_asked_for_each_image_when_the_time_is_over(db: Flaky, tmp_path: Path) -> None:
    """60 images, 3 at once, half a minute each: ten minutes for nothing. What is under way is the last of it."""
    images = Silent(tmp_path)

    async def play() -> float:
        scene = Scene(db, images, tmp_path, VirtualClock(), wait_s=2.0)
        for image in await scene.buy():
            scene.downloads.put(image)
        async with scene.fetching(3600):
            await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    with virtual_network():
        assert simulate(play) <= 61
    assert images.tries == 2 * WIDTH
    assert states(db) == {"paid": IMAGES}


@pytest.mark.parametrize(("trouble", "tries"), [("an image's", 1), ("the state's", 0)])
async def test_a_full_disk_is_left_to_answers(db: Flaky, tmp_path: Path, trouble: str, tries: int) -> None:
    """Once an image, or a row, has no room, no further image is fetched: not those that wait, nor what is bought later."""
    images = Full(tmp_path)
    scene = Scene(db, images, tmp_path, SystemClock(), width=1)
    bought = await scene.buy()
    if trouble == "the state's":
        commits = iter([True])
        db.full = lambda sql: sql == "COMMIT" and next(commits, False)
        await scene.store.do(lambda _db: None)
        assert scene.store.broken is not None
    for image in bought[:30]:
        scene.downloads.put(image)
    async with scene.fetching():
        while not scene.stops:
            await asyncio.sleep(0)
        for image in bought[30:]:
            scene.downloads.put(image)
    assert {stop.exit for _, stop in scene.stops} == {Exit.DISK}
    assert images.tries == tries
    assert states(db) == {"paid": IMAGES}


def test_a_page_that_cannot_be_read_stops_the_run_and_nothing_else(db: Flaky, tmp_path: Path) -> None:
    """An exception would cancel other people's paid calls."""

    async def play() -> Scene:
        clock = VirtualClock()
        await _left_by_an_earlier_run(db, tmp_path, clock)
        scene = Scene(db, FakeImages(tmp_path), tmp_path, clock)
        db.full = lambda sql: sql.lstrip().startswith("SELECT")
        return await _fetched(scene)

    with virtual_network():
        assert {stop.exit for _, stop in simulate(play).stops} == {Exit.DISK}
    db.full = lambda _sql: False
    assert states(db) == {"paid": IMAGES}
