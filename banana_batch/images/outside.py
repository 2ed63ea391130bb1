"""Images fetched by a process of their own, once they come so fast that it pays.

A run's interpreter is busy with its paid calls: what it downloads, checks and writes besides takes turns with them,
and each of seven system calls an image waits for its turn. A process has an interpreter to itself.

    Outside (the run) ──asks: an image──► served.py (the process) ──► ImageFetcher, the same as here
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
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor
from itertools import count
from pathlib import Path
from types import TracebackType

from banana_batch.loading import CERTIFICATE_PLACES
from banana_batch.models import SMALL_BYTES, FetchFailed, PaidImage, StoredImage
from banana_batch.secret import NO_SECRET, Secret

from .fetcher import GATHER_S, ImageFetcher
from .frames import READY, SIGN, Asked, Frames, Terms, Told, pack, unpack_told

MANY = 8  # small images that are stored within one group: from some 400 a second on
SOON_S = 0.3  # the sockets of the first wave come first
# It has nothing left to do when it is told to end; one that is stuck is killed, as a second signal may not take longer.
END_S = 1.0
# While it is asked for something it has to say that it is there: one that stands still would hold the images up.
SIGN_S, SIGNS = 10.0, 3

# One pool of memory for its few threads, and no stock of freed pieces for each: with them, as glibc has it, a long run
# takes longer to stop growing.
_ENVIRON = {"MALLOC_ARENA_MAX": "1", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
# Neither site nor environment: the path is this process's own.
_PYTHON = ("-I", "-S", "-c")
_START = """
import gc, sys
gc.disable()  # while everything is loaded
sys.path += sys.argv[4:]
from banana_batch.loading import by_itself
with by_itself():
    from banana_batch.images.served import serve
serve(*sys.argv[1:4])
"""


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
        self._waiting: dict[int, asyncio.Future[Told | None]] = {}
        self._ended: asyncio.Future[None] | None = None
        self._watched = False
        self._signs_left = SIGNS

    async def fetch(self, image: PaidImage) -> StoredImage | FetchFailed | None:
        """Return what became of an image; None: that is not known, and the process does no more for it."""
        number = next(self._numbers)
        try:
            frame = pack(Asked(number, image))
        except ValueError:  # a url that is no text
            return None
        told: asyncio.Future[Told | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = told
        self.send(frame)
        if not self._watched:
            self._watched = True
            self._wait_for_sign()
        try:
            answer = await told
        finally:
            self._waiting.pop(number, None)
        return None if answer is None else answer.stored or answer.failed

    def _wait_for_sign(self) -> None:
        asyncio.get_running_loop().call_later(SIGN_S, self._look)

    def _look(self) -> None:
        """End a process that has been asked often enough whether it is there; the end gives back what it had."""
        if not self._waiting or self._ended is not None:
            self._watched, self._signs_left = False, SIGNS
        elif not self._signs_left:
            self._process.kill()
        else:
            self._signs_left -= 1
            self.send(SIGN)
            self._wait_for_sign()

    def take(self, frame: bytes) -> None:
        """See Frames."""
        self._signs_left = SIGNS
        if not self.ready:
            if frame != READY:
                raise ValueError("another program")
            self.ready = True
            return
        answer = unpack_told(frame)
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
            terms = pack(Terms(self._gateway, self._allow_hosts, self._proxy, ca_file, self._secret.reveal()))
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
            env=_ENVIRON | {name: os.environ[name] for name in CERTIFICATE_PLACES if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
