"""The process that fetches a run's images: its own side of outside.py, with the rules that are written there."""

import asyncio
import contextlib
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from banana_batch.loading import keep_what_is_loaded, take_memory_ahead
from banana_batch.models import PaidImage, StoredImage
from banana_batch.secret import Secret

from .fetcher import COMMIT_THREADS, DISK_THREADS, ImageFetcher
from .frames import READY, Frames, Terms, Told, pack, unpack_asked, unpack_terms

AHEAD_BYTES = 2 << 20  # more than a run at full speed was seen to reach here in 800,000 images; 1 MiB was less


class _Server(Frames):
    """The run as its process sees it."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.terms: asyncio.Future[Terms] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self._fetcher: ImageFetcher | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, fetcher: ImageFetcher) -> None:
        """Say that images may come."""
        self._fetcher = fetcher
        self.send(READY)

    def take(self, frame: bytes) -> None:
        """See Frames."""
        if not self.terms.done():
            self.terms.set_result(unpack_terms(frame))
            return
        assert self._fetcher is not None
        asked = unpack_asked(frame)
        if asked.image is None:
            self.send(pack(Told(asked.number)))
            return
        fetching = self._fetch(self._fetcher, asked.number, asked.image)
        task = asyncio.get_running_loop().create_task(fetching, name=f"fetch-{asked.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, fetcher: ImageFetcher, number: int, image: PaidImage) -> None:
        told = Told(number)
        try:
            result = await fetcher.fetch(image)
            if isinstance(result, StoredImage):
                told.stored = result
            else:
                told.failed = result
            frame = pack(told)
        except Exception:  # noqa: BLE001  # it comes to light, and is told of, where the image is fetched next
            frame = pack(Told(number))
        self.send(frame)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio.Protocol: the run is over, or has had enough."""
        if not self.terms.done():
            self.terms.cancel()
        if not self.over.done():
            self.over.set_result(None)

    async def stop(self) -> None:
        """Leave what is being fetched."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def serve(*descriptors: str) -> None:
    """Be the process: fetch what is asked for until the other end closes.

    Args:
        descriptors: Of the socket, of OUT, of `images/`.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They are for the run, which ends this process when it has come to its own end.
        signal.signal(ignored, signal.SIG_IGN)
    keep_what_is_loaded()
    take_memory_ahead(AHEAD_BYTES)
    uvloop.run(_serve(*map(int, descriptors)))


def _stay() -> set[int]:
    """Keep this thread, and those it starts, on one processor; return those that there are.

    They take turns in one interpreter, several times an image, and waking each other across processors was a twentieth
    of a run's CPU. What streams large images works beside the interpreter, and goes where there is room.
    """
    try:
        everywhere = os.sched_getaffinity(0)
    except (AttributeError, OSError):  # not on Linux
        return set()
    _run_on({sorted(everywhere)[os.getpid() % len(everywhere)]})
    return everywhere


def _run_on(processors: set[int]) -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, processors)


async def _serve(asker: int, out: int, images: int) -> None:
    _, server = await asyncio.get_running_loop().create_connection(_Server, sock=socket.socket(fileno=asker))
    terms = await server.terms
    everywhere = _stay()
    with (
        ThreadPoolExecutor(COMMIT_THREADS) as committer,
        ThreadPoolExecutor(DISK_THREADS, initializer=_run_on, initargs=(everywhere,)) as disk,
    ):
        fetcher = ImageFetcher(
            Path(),
            gateway=terms.gateway,
            committer=committer,
            disk=disk,
            allow_hosts=terms.allow_hosts,
            proxy=terms.proxy,
            ca_file=None if terms.ca_file is None else Path(terms.ca_file),
            secret=Secret(terms.secret),
            held=(out, images),
        )
        async with fetcher:
            server.begin(fetcher)
            await server.over
            await server.stop()
        os._exit(0)  # nothing is left to be done, and the run waits for this end
