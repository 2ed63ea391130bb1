"""The image connections: fetches bytes from a url that somebody else chose.

Rule 1: no key, no cookies, no environment proxies, no netrc: connections of their own (exchange.py).
Rule 2: no redirect is followed but here: each hop is judged like the first (guard.py).
Rule 3: each connect is judged by its actual socket address. A resolver guard is not enough: the library skips the
        resolver for literals.
Rule 4: bytes are bounded by MAX_BYTES, their memory by SMALL_BYTES and CHUNK_BYTES, the time by WALL_S; nothing is
        decompressed.
"""

import asyncio
import mmap
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from banana_batch import __version__
from banana_batch.errors import SettingsError
from banana_batch.exchange import Exchange, Route, exchange
from banana_batch.models import FetchFailed, PaidImage
from banana_batch.text import bytes_text

from . import classify
from .committer import Received
from .folders import Folders
from .guard import Allowed, Blocked, UrlRules, is_public
from .intake import Intake
from .parts import PartStream, StreamedPart
from .verify import NotWhole

SMALL_BYTES = 256 * 1024  # up to here a body stays in memory
CHUNK_BYTES = 1024 * 1024  # of a larger one, for each hop to the disk
READ_BUFFER_BYTES = 256 * 1024  # what one read from a socket brings
MAX_PIECES = 1024  # of a body, waiting to be written
MAX_BYTES = 100_000_000
MAX_REDIRECTS = 3
MAX_ROUTES = 64  # origins that are remembered
CONNECT_S, IDLE_S, WALL_S = 15.0, 30.0, 600.0
RENEW_S = 1.0  # how exactly idling is noticed

AddressInfo = tuple[Any, ...]
SocketFactory = Callable[[AddressInfo], socket.socket]
ConnectorFactory = Callable[[SocketFactory | None, ssl.SSLContext | bool], aiohttp.BaseConnector]

_LIMITS = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
_HEADERS = {"User-Agent": f"banana-batch/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def guarded_socket(address_info: AddressInfo) -> socket.socket:
    """Make the socket for one connect.

    Raises:
        AddressBlocked: it would leave the public internet; nothing was sent, not even a SYN.
    """
    family, kind, protocol, _, address = address_info
    if not is_public(str(address[0])):
        raise classify.AddressBlocked(str(address[0]))
    return socket.socket(family, kind, protocol)


def tcp_connector(factory: SocketFactory | None, tls: ssl.SSLContext | bool) -> aiohttp.BaseConnector:
    """Make a connector over real sockets. A simulation hands in another one."""
    # limit=0: how many downloads run is the engine's decision; the library's limit would only hide the waiting.
    return aiohttp.TCPConnector(
        limit=0, socket_factory=factory, ssl=tls, resolver=aiohttp.ThreadedResolver(), ttl_dns_cache=10
    )


def tls_context(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Return the system's trust, TLS 1.2 or later, names checked (that is what True means), plus a file's.

    Raises:
        SettingsError: the file can't be used.
    """
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as failure:
        raise SettingsError(
            f"--ca-file {ca_file}: {failure.strerror or failure}", "a file of PEM certificates"
        ) from None
    return context


class Downloader:
    """Sends the GETs and receives the bodies. Open it on the loop, close it there.

    Args:
        rules: Which urls may be fetched.
        proxy: All connects go there; then only the literal and the name of a url can be judged.
        ca_file: Trusted beside the system's certificates.
        connector: Makes the connectors.
    """

    def __init__(
        self,
        rules: UrlRules,
        *,
        proxy: str | None = None,
        ca_file: Path | None = None,
        connector: ConnectorFactory = tcp_connector,
    ) -> None:
        self._rules = rules
        self._proxy = proxy
        tls = tls_context(ca_file)
        guard = None if proxy else guarded_socket
        # Two pools: a connection to a host that the user vouches for never serves a url that must be guarded.
        self._guarded = connector(guard, tls)
        self._vouched = connector(None, tls)
        self._buffers: list[mmap.mmap] = []
        self._routes: dict[tuple[URL, bool], Route] = {}

    async def close(self) -> None:
        """Close both pools."""
        await self._guarded.close()
        await self._vouched.close()

    async def receive(self, image: PaidImage, disk: Executor, folders: Folders) -> Received | FetchFailed:
        """Fetch a body once; a large one arrives as a sealed part in `images/`.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: the network's failures, for `classify.by_exception`.
            PartFailed: the disk's.
        """
        async with asyncio.timeout(IDLE_S) as limit:
            answer = await self._open(image.url)
            if isinstance(answer, FetchFailed):
                return answer
            try:
                refusal = _refusal(answer)
                return refusal or await _body(
                    answer, image, PartStream(disk, folders, image.index), Patience(limit), self._buffers
                )
            finally:
                answer.end()

    async def _open(self, text: str) -> Exchange | FetchFailed:
        verdict = self._rules.judge(text)
        for _ in range(MAX_REDIRECTS + 1):
            if isinstance(verdict, Blocked):
                return classify.blocked(verdict)
            answer = await self._get(verdict)
            if answer.status not in _REDIRECTS:
                return answer
            location = answer.headers.get("Location")
            answer.end()
            if not location:
                return classify.REFUSED.failed("the image's host redirects to nowhere")
            verdict = self._rules.judge_redirect(verdict.url, location)
        return classify.REFUSED.failed(f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, allowed: Allowed) -> Exchange:
        try:
            return await self._send(allowed)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            # Most likely a connection that its host closed just when it was used again. Nothing is paid by a GET.
            return await self._send(allowed)

    async def _send(self, allowed: Allowed) -> Exchange:
        route = self._route(allowed)
        return await exchange(route, "GET", allowed.url.raw_path_qs, read_bufsize=READ_BUFFER_BYTES)

    def _route(self, allowed: Allowed) -> Route:
        way = (allowed.url.origin(), allowed.guarded)
        route = self._routes.get(way)
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            pool = self._guarded if allowed.guarded else self._vouched
            route = self._routes[way] = Route(pool, way[0], limits=_LIMITS, proxy=self._proxy, headers=_HEADERS)
        return route


def _refusal(answer: Exchange) -> FetchFailed | None:
    if answer.status != 200:
        return classify.by_status(answer.status)
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        # Its name is the host's text, and never shown: cut short it could hold half a key.
        return classify.WRONG_TYPE.failed("an encoded body, not asked for")
    return None


class Patience:
    """How long to wait for a body: IDLE_S for its next bytes, WALL_S for all of it."""

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._clock = asyncio.get_running_loop().time
        self._seen_s = self._clock()
        self._end_s = self._seen_s + WALL_S

    def renew(self) -> None:
        """Bytes came."""
        now_s = self._clock()
        if now_s - self._seen_s > RENEW_S:
            self._seen_s = now_s
            self._limit.reschedule(min(now_s + IDLE_S, self._end_s))

    def lift(self) -> None:
        """All bytes came: what is left is the disk's, which is not timed."""
        self._limit.reschedule(None)


async def _body(
    answer: Exchange, image: PaidImage, stream: PartStream, patience: Patience, buffers: list[mmap.mmap]
) -> Received | FetchFailed:
    label = answer.headers.get("Content-Type")
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    announced = None if chunked else _length(answer.headers)
    measured = chunked or announced is not None
    if announced is not None and announced > SMALL_BYTES:
        intake = Intake(min(announced, MAX_BYTES), patience.renew)
        begun = answer.divert(intake.divert_from)
        if begun is not None:
            part = await _stored(stream, announced, _take(intake, begun, stream, patience, buffers))
            return part if isinstance(part, FetchFailed) else Received(image, part, label, measured)
    chunks, size = list[bytes](), 0
    while size <= SMALL_BYTES:
        chunk = await _next(answer.content, chunked=chunked)
        if not chunk:
            if announced is not None and size != announced:
                return _short(size, announced)
            return Received(image, b"".join(chunks), label, measured)
        patience.renew()
        _keep(chunks, chunk)
        size += len(chunk)
    part = await _stored(stream, announced, _spill(answer.content, stream, chunks, patience, chunked=chunked))
    return part if isinstance(part, FetchFailed) else Received(image, part, label, measured)


async def _stored(
    stream: PartStream, announced: int | None, written: Coroutine[None, None, int]
) -> StreamedPart | FetchFailed:
    """Return the part with a whole body in it, sealed; a body that is not whole leaves none."""
    sealed = False
    try:
        size = await written
        if announced is not None and size < min(announced, MAX_BYTES):
            return _short(size, announced)
        part = await stream.seal()
        if max(size, announced or 0) > MAX_BYTES:
            part.finding = NotWhole(f"more than {bytes_text(MAX_BYTES)}", part.finding.content_type, pixels=True)
        sealed = True
        return part
    finally:
        if not sealed:
            await stream.discard()


async def _take(intake: Intake, begun: bytes, stream: PartStream, patience: Patience, buffers: list[mmap.mmap]) -> int:
    """Write the body to the part; return how many bytes came."""
    # Of whole pages, as direct writes want it, and used again: memory that was never touched is dear.
    pages = buffers.pop() if buffers else mmap.mmap(-1, CHUNK_BYTES)
    buffer = memoryview(pages)
    size = filled = len(begun)
    buffer[:filled] = begun
    del begun
    while True:
        room = len(buffer) - filled
        came = await intake.fill(buffer[filled:])
        size, filled = size + came, filled + came
        over = came < room or not intake.left
        if over:
            patience.lift()
        await stream.write([buffer[:filled]])
        if over:
            # Not where the fetch was cut short: a write may still be under way.
            buffers.append(pages)
            return size
        filled = 0


def _length(headers: Mapping[str, str]) -> int | None:
    said = headers.get("Content-Length")
    return None if said is None else int(said)  # the parser let nothing but digits through


def _short(size: int, announced: int) -> FetchFailed:
    return classify.SHORT.failed(f"{size:,} of {announced:,} bytes came")


async def _next(content: aiohttp.StreamReader, *, chunked: bool) -> bytes:
    """Return what came, nothing at the end."""
    if chunked:
        # Joined: a host that sends chunks of a byte each would have hundreds of thousands of objects held for it.
        return await content.readany()
    return (await content.readchunk())[0]  # one as it came, not all joined


def _keep(chunks: list[bytes], chunk: bytes) -> None:
    """Append a piece; few are ever kept, however small they come."""
    chunks.append(chunk)
    if len(chunks) > MAX_PIECES:
        chunks[:] = [b"".join(chunks)]


async def _spill(
    content: aiohttp.StreamReader, stream: PartStream, chunks: list[bytes], patience: Patience, *, chunked: bool
) -> int:
    """Write the body to the part, at most MAX_BYTES of it; return how many bytes came, at most a chunk more."""
    size = waiting = sum(map(len, chunks))
    while size <= MAX_BYTES:
        chunk = await _next(content, chunked=chunked)
        if not chunk:
            break
        patience.renew()
        _keep(chunks, chunk)
        size += len(chunk)
        waiting += len(chunk)
        if waiting >= CHUNK_BYTES and size <= MAX_BYTES:
            await stream.write(chunks)
            chunks, waiting = [], 0
    patience.lift()
    if size > MAX_BYTES:
        # What is kept of it always has the same length, so that the same endless body is known again.
        chunks[-1] = chunks[-1][: len(chunks[-1]) - (size - MAX_BYTES)]
    if waiting:
        await stream.write(chunks)
    return size
