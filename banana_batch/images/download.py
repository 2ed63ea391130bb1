"""The image connections: fetches bytes from a url that somebody else chose.

Rule 1: no key, no cookies, no environment proxies, no netrc: connections of their own (exchange.py).
Rule 2: no redirect is followed but here: each hop is judged like the first (guard.py).
Rule 3: each connect is judged by its actual socket address. A resolver guard is not enough: the library skips the
        resolver for literals.
Rule 4: bytes, memory and time of a body are bounded (bodies.py); nothing is decompressed.
"""

import asyncio
import mmap
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from functools import cache, partial
from pathlib import Path
from typing import Any

import aiohttp

from banana_batch import __version__
from banana_batch.dialing import Dialer
from banana_batch.exchange import Exchange, Route, exchange
from banana_batch.models import FetchFailed, PaidImage
from banana_batch.trust import tls_context

from . import bodies, classify, failures
from .committer import Received
from .folders import Folders
from .guard import Allowed, Blocked, UrlRules, is_public
from .parts import PartStream

READ_BUFFER_BYTES = 256 * 1024  # what one read from a socket brings
MAX_REDIRECTS = 3
MAX_ROUTES = 64  # origins that are remembered
CONNECT_S = 15.0
IDLE_S = 15.0  # an idle connection that its host closed meanwhile costs one further try

AddressInfo = tuple[Any, ...]
SocketFactory = Callable[[AddressInfo], socket.socket]
ConnectorFactory = Callable[[SocketFactory | None], aiohttp.BaseConnector]

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


def tcp_connector(factory: SocketFactory | None) -> aiohttp.BaseConnector:
    """Make a connector over real sockets. A simulation hands in another one."""
    # limit=0: how many downloads run is the engine's decision; the library's limit would only hide the waiting.
    return Dialer(limit=0, socket_factory=factory, resolver=aiohttp.ThreadedResolver(), ttl_dns_cache=10)


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
        self._trust = cache(partial(tls_context, ca_file))  # made where a url is https
        if ca_file is not None:
            self._trust()  # a bad file is told before anything is paid for
        guard = None if proxy else guarded_socket
        # Two pools: a connection to a host that the user vouches for never serves a url that must be guarded.
        self._guarded = connector(guard)
        self._vouched = connector(None)
        self._buffers: list[mmap.mmap] = []
        self._routes: dict[tuple[str, str, bool], Route] = {}

    async def close(self) -> None:
        """Close both pools."""
        self._forget_routes()
        await self._guarded.close()
        await self._vouched.close()

    async def receive(self, image: PaidImage, disk: Executor, folders: Folders) -> Received | FetchFailed:
        """Fetch a body once; a large one arrives as a sealed part in `images/`.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: the network's failures, for `classify.by_exception`.
            PartFailed: the disk's.
        """
        async with asyncio.timeout(bodies.IDLE_S) as limit:
            answer = await self._open(image.url)
            if isinstance(answer, FetchFailed):
                return answer
            try:
                refusal = _refusal(answer)
                return refusal or await bodies.body_of(
                    answer, image, PartStream(disk, folders, image.index), bodies.Patience(limit), self._buffers
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
                return failures.REFUSED.failed("the image's host redirects to nowhere")
            verdict = self._rules.judge_redirect(verdict.url, location)
        return failures.REFUSED.failed(f"more than {MAX_REDIRECTS} redirects")

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

    def _forget_routes(self) -> None:
        for route in self._routes.values():
            route.close()
        self._routes.clear()

    def _route(self, allowed: Allowed) -> Route:
        way = (allowed.url.scheme, allowed.url.raw_authority, allowed.guarded)
        route = self._routes.get(way)
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                self._forget_routes()
            pool = self._guarded if allowed.guarded else self._vouched
            route = self._routes[way] = Route(
                pool,
                allowed.url.origin(),
                idle_s=IDLE_S,
                limits=_LIMITS,
                proxy=self._proxy,
                tls=self._trust,
                headers=_HEADERS,
            )
        return route


def _refusal(answer: Exchange) -> FetchFailed | None:
    if answer.status != 200:
        return classify.by_status(answer.status)
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        # Its name is the host's text, and never shown: cut short it could hold half a key.
        return failures.WRONG_TYPE.failed("an encoded body, not asked for")
    return None
