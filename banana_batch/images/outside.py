"""Images fetched by a process of their own, once they come so fast that it pays.

A run's interpreter is busy with its paid calls: what it downloads, checks and writes besides takes turns with them,
and each of seven system calls an image waits for its turn. A process has an interpreter to itself.

    Outside (the run) ──asks: an image──► _Server (the process) ──► ImageFetcher, the same as here
                      ◄──told: stored, failed──

Rule 1: the same fetcher, on the same descriptors; an image is with one of the two at a time.
Rule 2: of what the process does not tell, nothing is known: once it is certain that it does no more, the image is
        fetched here. That is free, and a file that has its name already is known by its bytes.
Rule 3: it ends when the run does, however that ends, with the group that it is storing then. Until then it holds the
        lock of `images/`, for which the next run waits (`lock_images`): a part of that run is never given a name by it.
Rule 4: it gets no arguments but numbers and paths, and of the environment only where certificates are. The key, which
        it keeps out of what hosts say, comes over the socket; what could send a paid request is not even loaded there.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import TracebackType

from msgspec import Struct, msgpack

from banana_batch import __version__
from banana_batch.loading import CERTIFICATE_PLACES, keep_what_is_loaded
from banana_batch.models import SMALL_BYTES, FetchFailed, PaidImage, StoredImage
from banana_batch.secret import NO_SECRET, Secret

from .fetcher import COMMIT_THREADS, DISK_THREADS, GATHER_S, ImageFetcher
from .frames import Frames

MANY = 8  # small images that are stored within one group: from some 400 a second on
SOON_S = 0.3  # the sockets of the first wave come first
# It has nothing left to do when it is told to end; one that is stuck is killed, as a second signal may not take longer.
END_S = 1.0

# Neither site nor environment: the path is this process's own.
_PYTHON = ("-I", "-S", "-c")
_START = """
import gc, sys
gc.disable()  # while everything is loaded
sys.path += sys.argv[4:]
from banana_batch.loading import nobody_trusted
with nobody_trusted():
    from banana_batch.images.outside import serve
serve(*sys.argv[1:4])
"""
_READY = __version__.encode()  # a program that is replaced while it runs must not talk to its successor


class _Terms(Struct, array_like=True):
    """What a fetcher is made with."""

    gateway: str
    allow_hosts: list[str]
    proxy: str | None
    ca_file: str | None
    secret: str


class _Asked(Struct, array_like=True):
    """An image to be fetched."""

    number: int
    image: PaidImage


class _Told(Struct, array_like=True):
    """What became of it; neither: it could not be told, or must end the run, which the other side finds out."""

    number: int
    stored: StoredImage | None = None
    failed: FetchFailed | None = None


_pack = msgpack.Encoder().encode
_terms = msgpack.Decoder(_Terms).decode
_asked = msgpack.Decoder(_Asked).decode
_told = msgpack.Decoder(_Told).decode


class _Helper(Frames):
    """The process as the run sees it. Make it where the loop runs.

    Attributes:
        ready: It may be asked.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", disk: Executor) -> None:
        super().__init__()
        self.ready = False
        self._process = process
        self._disk = disk
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[_Told | None]] = {}
        self._ended: asyncio.Future[None] | None = None

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed | None:
        """Return what became of an image; None: that is not known, and the process does no more for it."""
        number = next(self._numbers)
        try:
            frame = _pack(_Asked(number, image))
        except ValueError:  # a url that is no text
            return None
        told: asyncio.Future[_Told | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = told
        self.send(frame)
        try:
            answer = await told
        finally:
            self._waiting.pop(number, None)
        return None if answer is None else answer.stored or answer.failed

    def take(self, frame: bytes) -> None:
        """See Frames."""
        if not self.ready:
            if frame != _READY:
                raise ValueError("another program")
            self.ready = True
            return
        answer = _told(frame)
        waiting = self._waiting.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio.Protocol. Who waits goes on without the process, once that has ended."""
        self.ready = False
        self._end(0.0).add_done_callback(self._give_back)

    def _give_back(self, _: object) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)

    async def close(self) -> None:
        """Let the process end, and wait for it."""
        ended = self._end(END_S)
        self.transport.close()
        await asyncio.shield(ended)

    def _end(self, patience_s: float) -> "asyncio.Future[None]":
        if self._ended is None:
            self._ended = asyncio.get_running_loop().run_in_executor(self._disk, _reap, self._process, patience_s)
        return self._ended


def _reap(process: "subprocess.Popen[bytes]", patience_s: float) -> None:
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Outside:
    """Fetches paid images (`ports.Images`): here, until many come at once; then in a process of its own.

    Args and raises as ImageFetcher's, and:
        soon: Many will come, at the latest when the first calls end: start the process while nothing else is to do.
        many: Small images stored within one group from which on a process pays; None: never.
    """

    def __init__(
        self,
        out: Path,
        *,
        gateway: str,
        committer: Executor,
        disk: Executor,
        allow_hosts: Iterable[str] = (),
        proxy: str | None = None,
        ca_file: Path | None = None,
        secret: Secret = NO_SECRET,
        soon: bool = False,
        many: int | None = MANY,
    ) -> None:
        self._gateway = gateway
        self._allow_hosts = list(allow_hosts)
        self._proxy = proxy
        self._ca_file = ca_file
        self._secret = secret
        self._disk = disk
        self._here = ImageFetcher(
            out,
            gateway=gateway,
            committer=committer,
            disk=disk,
            allow_hosts=self._allow_hosts,
            proxy=proxy,
            ca_file=ca_file,
            secret=secret,
        )
        # A frozen program is no interpreter: it would be started once more itself.
        self._many = None if getattr(sys, "frozen", False) or not sys.executable else many
        self._soon = soon
        self._timer: asyncio.TimerHandle | None = None
        self._stored: deque[float] = deque(maxlen=many)
        self._launched: tuple[subprocess.Popen[bytes], socket.socket, bytes] | None = None
        self._helper: _Helper | None = None

    async def __aenter__(self) -> "Outside":
        await self._here.__aenter__()
        if self._soon and self._many is not None:
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self._launch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._launched is not None:
                await self._attach()
            if self._helper is not None:
                await self._helper.close()
        finally:
            await self._here.__aexit__(kind, raised, trace)

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed:
        """See ImageFetcher."""
        if self._launched is not None:
            await self._attach()
        if self._helper is not None and self._helper.ready:
            result = await self._helper.fetch(image)
            if result is not None:
                return result
        result = await self._here.fetch(image)
        if self._many is not None and isinstance(result, StoredImage) and result.bytes <= SMALL_BYTES:
            now_s = asyncio.get_running_loop().time()
            self._stored.append(now_s)
            if len(self._stored) == self._many and now_s - self._stored[0] < GATHER_S:
                self._launch()
        return result

    def _launch(self) -> None:
        """Start the process, once a run: one that ended is not missed. Where none can be had, none is needed."""
        if self._many is None:
            return
        self._many = None
        ca_file = None if self._ca_file is None else str(self._ca_file)
        try:
            terms = _pack(_Terms(self._gateway, self._allow_hosts, self._proxy, ca_file, self._secret.reveal()))
            ours, theirs = socket.socketpair()
        except (OSError, ValueError):  # ValueError: a path that is no text
            return
        with theirs:
            try:
                self._launched = self._started(theirs), ours, terms
            except (OSError, ValueError):
                ours.close()

    async def _attach(self) -> None:
        """Talk to the process; it is asked once it says that it is ready."""
        assert self._launched is not None
        (process, ours, terms), self._launched = self._launched, None
        helper = _Helper(process, self._disk)
        ours.setblocking(False)
        try:
            await asyncio.get_running_loop().create_connection(lambda: helper, sock=ours)
        except BaseException as failed:
            ours.close()
            process.kill()
            if isinstance(failed, OSError):
                await asyncio.get_running_loop().run_in_executor(self._disk, _reap, process, END_S)
                return
            raise
        self._helper = helper
        helper.send(terms)

    def _started(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        descriptors = theirs.fileno(), *self._here.descriptors
        return subprocess.Popen(  # noqa: S603  # this very interpreter, on code of our own
            [sys.executable, *_PYTHON, _START, *map(str, descriptors), str(Path(__file__).parents[2]), *sys.path],
            pass_fds=descriptors,
            env={name: os.environ[name] for name in CERTIFICATE_PLACES if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )


class _Server(Frames):
    """The run as its process sees it."""

    def __init__(self) -> None:
        super().__init__()
        loop = asyncio.get_running_loop()
        self.terms: asyncio.Future[_Terms] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self._fetcher: ImageFetcher | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, fetcher: ImageFetcher) -> None:
        """Say that images may come."""
        self._fetcher = fetcher
        self.send(_READY)

    def take(self, frame: bytes) -> None:
        """See Frames."""
        if not self.terms.done():
            self.terms.set_result(_terms(frame))
            return
        assert self._fetcher is not None
        asked = _asked(frame)
        task = asyncio.get_running_loop().create_task(self._fetch(self._fetcher, asked), name=f"fetch-{asked.number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, fetcher: ImageFetcher, asked: _Asked) -> None:
        told = _Told(asked.number)
        try:
            result = await fetcher.fetch(asked.image)
            if isinstance(result, StoredImage):
                told.stored = result
            else:
                told.failed = result
            frame = _pack(told)
        except Exception:  # noqa: BLE001  # it comes to light, and is told of, where the image is fetched next
            frame = _pack(_Told(asked.number))
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
    asyncio.run(_serve(*map(int, descriptors)))


async def _serve(asker: int, out: int, images: int) -> None:
    _, server = await asyncio.get_running_loop().create_connection(_Server, sock=socket.socket(fileno=asker))
    terms = await server.terms
    with ThreadPoolExecutor(COMMIT_THREADS) as committer, ThreadPoolExecutor(DISK_THREADS) as disk:
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
