"""One request and its answer over aiohttp's connections and its parser (peer.py), without its session.

aiohttp makes the connections (names, addresses, TLS, proxies) and reads the answers. What its session adds on
top, cookies, redirects, retries, tracing, decompression, no paid call wants, and it costs 60 % of a call's CPU:
measured 105 µs with the session, 42 µs without.

Rule 1: one request is written, once. Nothing here repeats, follows or rewrites it.
Rule 2: `sending` is called right before the first byte is handed to the transport, and never without a connection. It
        is handed what cuts the connection off: the exchange ends then, like one whose connection broke.
Rule 3: a connection is used again only when its answer was read to its end and nothing else came.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.helpers import strip_auth_from_url
from aiohttp.http import StreamWriter
from yarl import URL

from .loop_time import time_of
from .peer import Peer, is_final

# A larger body is handed to the transport in slices, each when the one before it is on its way.
ONE_PIECE_BYTES = 256 * 1024
MAX_STALE = 3  # connections in a row on which something came before a request was sent


Sending = Callable[[Callable[[], None]], None]


def _nothing(_cut: Callable[[], None]) -> None:
    """Nobody wants to know when a request leaves."""


class Route:
    """The way to one origin, and what every request to it begins with. Make it where the loop runs, and close it.

    Its idle connections wait here and not with the connector, which looks at more than is needed each time: a tenth of
    what a request costs.

    Args:
        connector: Makes the connections.
        idle_s: How long a connection may wait for its next request.
        limits: Of making a connection; the rest of an exchange is the caller's to time.
        proxy: Url of an HTTP(S) proxy, with its user and password if it wants them.
        tls: Returns what certificates are judged by; asked where the origin or the proxy is https.
        headers: Of every request; names and values are plain ASCII without controls.
    """

    def __init__(
        self,
        connector: aiohttp.BaseConnector,
        origin: URL,
        *,
        idle_s: float,
        limits: aiohttp.ClientTimeout,
        proxy: str | None,
        tls: Callable[[], ssl.SSLContext],
        headers: Mapping[str, str],
    ) -> None:
        self._connector = connector
        self._idle_s = idle_s
        self._idle: deque[tuple[Peer, float]] = deque()  # the one that was used last is at the end
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._now_s = time_of(self._loop)
        self._limits = limits
        proxy_url, proxy_auth = strip_auth_from_url(URL(proxy)) if proxy else (None, None)
        # What a connector wants to know of a request: the origin, the proxy. It is never sent itself.
        self._request = ClientRequest(
            "GET",
            origin,
            proxy=proxy_url,
            proxy_auth=proxy_auth,
            ssl=tls() if "https" in (origin.scheme, proxy_url and proxy_url.scheme) else True,
            loop=self._loop,
        )
        # A plain proxy is asked for the whole url, a tunnel and a server for the path.
        self._prefix = str(origin.origin()) if proxy and origin.scheme == "http" else ""
        lines = {"Host": self._request.headers["Host"], **headers}
        self._headers = "".join(f"\r\n{name}: {_line(value)}" for name, value in lines.items())

    async def connect(self) -> Peer:
        """Return a connection that nothing came on yet.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: there is none to be had.
        """
        for _ in range(MAX_STALE):
            peer = self._kept()
            if peer is None:
                peer = Peer(await self._connector.connect(self._request, [], self._limits), self._loop)
                if peer.closed:
                    peer.close()
                    raise aiohttp.ServerDisconnectedError
            # Bytes that nobody asked for, sent while it was idle, would be taken for this request's answer.
            if peer.clean:
                return peer
            peer.close()
        raise aiohttp.ClientConnectionError("the server speaks before it is asked")

    def _kept(self) -> Peer | None:
        oldest_s = self._now_s() - self._idle_s
        while self._idle:
            peer, since_s = self._idle.pop()
            if since_s >= oldest_s and not peer.closed:
                return peer
            peer.close()
        return None

    def keep(self, peer: Peer) -> None:
        """Keep a connection whose answer was read to its end for the next request."""
        if self._closed or peer.closed or not peer.clean:
            peer.leave()  # its end is waited for by the connector's
            return
        self._idle.append((peer, self._now_s()))
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self._idle_s, self._sweep)

    def _sweep(self) -> None:
        oldest_s = self._now_s() - self._idle_s
        while self._idle and self._idle[0][1] <= oldest_s:
            self._idle.popleft()[0].close()
        self._sweeping = self._loop.call_later(self._idle_s, self._sweep) if self._idle else None

    def let_go(self) -> None:
        """Close the connections that wait."""
        while self._idle:
            self._idle.pop()[0].drop()

    def close(self) -> None:
        """Leave the connections that wait to the connector, whose end waits for theirs; those under way are closed."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        while self._idle:
            self._idle.pop()[0].leave()

    def head(self, method: str, target: str, length: int | None = None) -> bytes:
        """Return a request's head.

        Args:
            target: Path and query, percent-encoded.
            length: Of the body, bytes; None: no body.

        Raises:
            ValueError: `target` holds what can't stand in a request line.
        """
        if " " in target:
            raise ValueError("a space in a request's target")
        sized = "" if length is None else f"\r\nContent-Length: {length}"
        # The connector puts a plain proxy's password there when it connects.
        proxy_auth = self._request.headers.get("Proxy-Authorization") if self._prefix else None
        auth = f"\r\nProxy-Authorization: {proxy_auth}" if proxy_auth else ""
        return f"{method} {self._prefix}{_line(target)} HTTP/1.1{self._headers}{auth}{sized}\r\n\r\n".encode("ascii")


def _line(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError("a control or foreign character in a request's head")
    return text


class Exchange:
    """An answer's head, and its body as it comes. `end` it, whatever happened.

    Attributes:
        headers: Names are found in any case.
        content: The body.
    """

    __slots__ = ("_peer", "_read_bufsize", "_route", "_upload", "content", "headers", "status")

    def __init__(
        self,
        route: Route,
        peer: Peer,
        status: int,
        headers: Mapping[str, str],
        content: aiohttp.StreamReader,
        upload: "asyncio.Task[None] | None",
        read_bufsize: int,
    ) -> None:
        self._read_bufsize = read_bufsize
        self.status = status
        self.headers = headers
        self.content = content
        self._route = route
        self._peer = peer
        self._upload = upload

    def divert(self, take: Callable[[asyncio.Transport, int], None]) -> bytes | None:
        """Take the connection from the parser; return what that has read of the body.

        Args:
            take: Gives the transport another protocol; gets the number of bytes that are returned.

        Returns:
            None, and nothing has changed: the connection is over, or the parser holds more than it has handed out.
        """
        transport, content = self._peer.transport, self.content
        if transport.is_closing() or content.exception() is not None or content.is_eof():
            return None
        if content.total_bytes > self._read_bufsize:
            return None
        read = content.read_nowait()
        take(transport, len(read))
        return read

    def end(self) -> None:
        """Keep the connection for another request where that is safe; else close it."""
        if self._peer.over() and (self._upload is None or self._upload.done()):
            self._route.keep(self._peer)
        else:
            _cut_off(self._peer, self._upload)


def _cut_off(peer: Peer, upload: "asyncio.Task[None] | None") -> None:
    if upload is not None:
        # The server answered without taking all of the request.
        upload.cancel()
    peer.close()


async def exchange(
    route: Route,
    method: str,
    target: str,
    *,
    body: Sequence[bytes] | None = None,
    sending: Sending = _nothing,
    read_bufsize: int = 1 << 16,
) -> Exchange:
    """Send a request; return when the answer's head is there.

    Args:
        target: See Route.head.
        body: In parts, that are not copied together where they are large.
        sending: Called once, right before the first byte may leave (rule 2).
        read_bufsize: Bytes of the answer that wait to be read, before the connection is held back.

    Raises:
        Garbled: no HTTP came.
        aiohttp.ClientError, OSError, TimeoutError: no connection, or it ended.
        ValueError: see Route.head.
    """
    peer = await route.connect()
    upload: asyncio.Task[None] | None = None
    try:
        size = None if body is None else sum(map(len, body))
        head = route.head(method, target, size)
        peer.ask(read_bufsize)
        sending(peer.transport.abort)
        parts = (head, *(body or ()))
        if size is None or size <= ONE_PIECE_BYTES:
            peer.transport.write(b"".join(parts))
        else:
            upload = asyncio.get_running_loop().create_task(_upload(peer, parts), name="upload")
        body, parts, head = None, (), b""  # an answer takes minutes, and thousands are waited for
        while True:
            message, content = await peer.answer()
            if is_final(message.code):
                return Exchange(route, peer, message.code, message.headers, content, upload, read_bufsize)
    except BaseException:
        _cut_off(peer, upload)
        raise


async def _upload(peer: Peer, parts: Sequence[bytes]) -> None:
    writer = StreamWriter(peer.handler, asyncio.get_running_loop())
    try:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(part), ONE_PIECE_BYTES):
                await writer.write(bytes(view[start : start + ONE_PIECE_BYTES]))
    except (OSError, aiohttp.ClientError):
        # The connection is gone: its reader is told so, and an answer that came before counts.
        return
