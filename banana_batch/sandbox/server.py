"""The sandbox as something that listens: in process beside its client, or alone.

Rule 1: only calls that every loop has (sleep, time, create_server, run_in_executor), so that it runs on a virtual
        clock as well. There, hand in an executor that runs inline.
Rule 2: 127.0.0.1 only. It takes any key and sells for nothing: no one else has any business here.
"""

import asyncio
import errno
import secrets
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from banana_batch.errors import SettingsError

from .app import App, Script, Stats
from .charges import Charge, ChargeLog
from .config import REHEARSAL, SandboxConfig
from .faults import Canned, Fault
from .gallery import ImageScript

HOST = "127.0.0.1"

# Below the ports that systems hand out by themselves (from 32,768 on Linux, 49,152 on macOS): a batch that
# comes back after a kill finds its port free, unless another program was told to use the very same.
_PORTS = range(20_000, 32_000)
_PORT_TRIES = 64
_BACKLOG = 4096
# 14 references of 7 MB each as data URLs, and some.
_MAX_BODY_BYTES = 160 * 1024 * 1024
# A sandbox that is told to stop has nobody left to wait for.
_SHUTDOWN_S = 0.05


def choose_port() -> int:
    """Return a port that is free now and that a batch may come back to.

    Raises:
        SettingsError: none was found.
    """
    for _ in range(_PORT_TRIES):
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise SettingsError(
        f"no free port for the sandbox between {_PORTS.start} and {_PORTS.stop}", "End programs that listen there."
    )


class Sandbox:
    """The embedded endpoint.

    Args:
        folder: Where the charge log lives, so that urls outlive the process; None: in memory.
        config: How it behaves.
        port: To listen on; 0: any free one.
        executor: For the log and the drawing; a simulation hands in one that runs inline. None: threads of its own.
        now: The wall clock, for the charge log.
    """

    def __init__(
        self,
        folder: Path | None = None,
        config: SandboxConfig = REHEARSAL,
        port: int = 0,
        *,
        executor: Executor | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.config = config
        self.port = port
        self._folder = folder
        self._executor = executor
        self._now = now
        self._artist: ThreadPoolExecutor | None = None
        self._log: ChargeLog | None = None
        self._app: App | None = None
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None

    @property
    def base_url(self) -> str:
        """The gateway's address, once started."""
        return f"http://{HOST}:{self.port}"

    @property
    def stats(self) -> Stats:
        """What happened since the start; stays readable after the stop."""
        return self._started.stats

    @property
    def canned(self) -> deque[Fault | Canned | None]:
        """Answers for the next calls, in order; None: the call goes well."""
        return self._started.canned

    def follow(self, script: Script | None, images: ImageScript | None = None) -> None:
        """Let functions decide what calls, and fetches of pictures, meet; None ends it."""
        self._started.script, self._started.gallery.script = script, images

    def charges(self) -> Iterator[Charge]:
        """Go through everything that was ever charged, in order."""
        assert self._log is not None, "not started"
        return iter(self._log)

    @property
    def _started(self) -> App:
        assert self._app is not None, "not started"
        return self._app

    async def start(self) -> None:
        """Open the log and listen.

        Raises:
            SettingsError: the port is taken, or the folder can't be used.
            BatchLocked: another sandbox has the folder.
        """
        self._log = ChargeLog(self._folder, self._executor, self._now)
        if self._executor is None:
            self._artist = ThreadPoolExecutor(1, "pictures")
        self._app = App(self.config, self._log, self._executor or self._artist)
        server = web.Server(self._app.handle, request_factory=_request, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
        await self._runner.setup()
        try:
            await self._listen()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening, drop what is in flight, close the log. Charges on their way are finished first."""
        runner, self._runner, self._site = self._runner, None, None
        if runner is None or self._app is None or self._log is None:
            return
        self._app.closing.set()
        await runner.cleanup()
        # Those whose caller had left before are known to no connection any more.
        left = list(self._app.serving)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._log.close()
        if self._artist is not None:
            self._artist.shutdown(wait=True)

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop."""
        await self.stop()

    @asynccontextmanager
    async def outage(self, kind: Literal["refuse", "drop"] = "refuse") -> AsyncIterator[None]:
        """Be out of reach for a while.

        `refuse`: new connections are refused; idle ones are closed, calls in flight still end well.
        `drop`: connections are taken and cut as soon as a request was sent; so are all that are open now.
        """
        if kind == "refuse":
            await self._hush()
            try:
                yield
            finally:
                await self._listen()
        else:
            self._started.dropping = True
            self.cut()
            try:
                yield
            finally:
                self._started.dropping = False

    def cut(self) -> None:
        """Cut every connection that is open, whatever is on it."""
        assert self._runner is not None, "not started"
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _hush(self) -> None:
        assert self._site is not None, "not started"
        assert self._runner is not None
        assert self._runner.server is not None
        await self._site.stop()
        busy = set(self._started.serving.values())
        for connection in self._runner.server.connections:
            # close() lets a busy connection finish, but leaves an idle one open and deaf.
            if connection in busy:
                connection.close()
            else:
                connection.force_close()

    async def _listen(self) -> None:
        assert self._runner is not None, "not started"
        site = web.TCPSite(self._runner, HOST, self.port, backlog=_BACKLOG, reuse_address=True)
        try:
            await site.start()
        except OSError as failed:
            taken = failed.errno == errno.EADDRINUSE
            reason = "is taken by another program" if taken else f"can't be used: {failed.strerror}"
            hint = f"End what listens there (`lsof -i :{self.port}` names it), then run again."
            raise SettingsError(f"port {self.port} of the sandbox {reason}", hint) from failed
        self._site = site
        self.port = self._runner.addresses[0][1]
        self._started.base_url = self.base_url


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> web.BaseRequest:
    """Make a request that may be as large as the endpoint's own: aiohttp's limit is 1 MiB."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES)
