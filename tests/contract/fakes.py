"""What tests put at the ports in place of the real parts. The tests beside this file ask the same of both."""

import asyncio
import hashlib
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from banana_batch.endpoint import classify
from banana_batch.images import failures
from banana_batch.models import Answer, FetchFailed, Outcome, PaidImage, QueuedJob, Reply, SendTrace, StoredImage
from banana_batch.ports import Clock

CREDIT = 1_000_000
URL = "https://example.test/x.png"


class VirtualClock:
    """The time of a loop that runs on virtual time; the wall clock runs along, unless a test moves it.

    Attributes:
        wall_offset_s: The wall clock when the loop's is 0, seconds since the epoch.
    """

    def __init__(self, wall_offset_s: float = 1_700_000_000.0) -> None:
        self.wall_offset_s = wall_offset_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_us(self) -> int:
        return round((self.wall_offset_s + self.monotonic_s()) * 1e6)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that a test turns; it needs no loop."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_us(self) -> int:
        return round((1_700_000_000.0 + self.now_s) * 1e6)

    async def sleep(self, seconds: float) -> None:
        due_s = self.now_s + seconds
        await asyncio.sleep(0)
        while self.now_s < due_s:
            await asyncio.sleep(0)


class FakeEndpoint:
    """Answers at once, as it is told to; sells an image where it is told nothing.

    Args:
        answers: From the number of a call, from 1, to its answer.

    Attributes:
        calls: Requests so far.
        answering: Answers wait for it.
    """

    def __init__(self, clock: Clock, answers: Mapping[int, Reply] | None = None) -> None:
        self._clock = clock
        self._answers = answers or {}
        self.calls = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def generate(self, _job: QueuedJob, trace: SendTrace) -> Reply:
        reply = self._answers.get(self.calls + 1, sold())
        if reply.verdict.outcome is Outcome.NOT_SENT:
            return reply
        self.calls += 1
        trace.sent_at_s = self._clock.monotonic_s()
        await asyncio.sleep(0)
        await self.answering.wait()
        return reply

    def rest(self) -> None:
        """Nothing is kept."""


def sold(micro: int | None = 13 * CREDIT) -> Reply:
    """Return the answer that sells an image; None: without a usable price."""
    return Reply(classify.OK, Answer(URL, micro), status=200, latency_s=1.0)


class FakeImages:
    """A host that has a small file for every image but those that are gone.

    Args:
        out: The output folder.
        size: Of an image, bytes.
        gone: Indexes of images that the host does not have.
    """

    def __init__(self, out: Path, size: int = 64, gone: Container[int] = ()) -> None:
        self._out = out
        self._size = size
        self._gone = gone

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed:
        if image.index in self._gone:
            return failures.GONE.failed("HTTP 404")
        body = image.stem.encode().ljust(self._size, b".")
        path = f"images/{image.stem}.png"
        self._store(self._out / path, body)
        return StoredImage(path, len(body), hashlib.sha256(body).hexdigest(), 1, 1, "image/png")

    @staticmethod
    def _store(path: Path, body: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)


class Told:
    """Collects events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, /, **facts: object) -> None:
        self.events.append((event, dict(facts)))

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


class FakeDisk:
    """Room for so many images."""

    moved = False

    def __init__(self, images: int = 1_000_000) -> None:
        self._images = images

    def has_room(self, images: int) -> bool:
        return images <= self._images
