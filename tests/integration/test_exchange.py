"""One request over aiohttp's connections without its session: written once, over a connection that holds nothing else."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from yarl import URL

from banana_batch.exchange import ONE_PIECE_BYTES, Exchange, Garbled, Route, exchange

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LIMITS = aiohttp.ClientTimeout(total=None, connect=5, sock_connect=5)


class Peer:
    """A server that does what a script says, and counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.url = URL()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Peer]:
    peer = Peer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.connections += 1
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        peer.url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield peer


@asynccontextmanager
async def route_to(url: URL, idle_s: float = 5.0) -> AsyncIterator[Route]:
    connector = aiohttp.TCPConnector(limit=0)
    try:
        route = Route(
            connector,
            url,
            idle_s=idle_s,
            limits=LIMITS,
            proxy=None,
            tls=ssl.create_default_context,
            headers={"X-Test": "yes"},
        )
        try:
            yield route
        finally:
            route.close()
    finally:
        await connector.close()


async def body_of(answer: Exchange) -> bytes:
    try:
        return await answer.content.read()
    finally:
        answer.end()


async def test_connections_are_used_again() -> None:
    """An answer that was read to its end leaves a connection for the next request."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)

    async with serving(script) as peer, route_to(peer.url) as route:
        for _ in range(3):
            assert await body_of(await exchange(route, "GET", "/")) == b"ok"
        assert peer.connections == 1


async def test_a_connection_that_was_idle_too_long_is_not_used_again() -> None:
    """Its server may close it any moment: a request that meets that is in doubt. It is closed here, and in time."""
    closed = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK)
        finally:
            closed.set()

    async with serving(script) as peer, route_to(peer.url, idle_s=0.05) as route:
        assert await body_of(await exchange(route, "GET", "/")) == b"ok"
        async with asyncio.timeout(5):
            await closed.wait()
    async with serving(script) as peer, route_to(peer.url, idle_s=0.0) as route:
        for _ in range(2):
            assert await body_of(await exchange(route, "GET", "/")) == b"ok"
        assert peer.connections == 2


async def test_an_answer_that_nobody_asked_for_answers_no_later_request() -> None:
    """A server that speaks on an idle connection (408, "too slow") must not have that taken for the next answer."""
    spoken = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        if not spoken.is_set():
            await writer.drain()
            await go_on.wait()
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            spoken.set()
        await reader.read()

    go_on = asyncio.Event()
    async with serving(script) as peer, route_to(peer.url) as route:
        assert await body_of(await exchange(route, "GET", "/1")) == b"ok"
        go_on.set()
        await spoken.wait()
        # One more turn of the wire, so that the odd answer has arrived here.
        async with serving(script) as other, route_to(other.url) as elsewhere:
            assert await body_of(await exchange(elsewhere, "GET", "/")) == b"ok"
        answer = await exchange(route, "GET", "/2")
        assert (answer.status, await body_of(answer)) == (200, b"ok")
        assert peer.connections == 2


async def test_a_large_body_arrives_whole_and_in_order() -> None:
    """Parts of any size are one body; small and large ones alike."""
    got: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            got.append(await reader.readexactly(size))
            writer.write(OK)

    large = [b"{", b"x" * (2 * ONE_PIECE_BYTES + 1), b"", b"y" * ONE_PIECE_BYTES, b"}"]
    async with serving(script) as peer, route_to(peer.url) as route:
        for parts in (large, [b"small"], [b""]):
            assert await body_of(await exchange(route, "POST", "/", body=parts)) == b"ok"
        assert got == [b"".join(large), b"small", b""]
        assert peer.connections == 1


async def test_an_answer_before_the_upload_ends_counts() -> None:
    """A server that refuses a large body without reading it is heard, and its connection not used again."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await over.wait()

    over = asyncio.Event()
    async with serving(script) as peer, route_to(peer.url) as route:
        for _ in range(2):
            answer = await exchange(route, "POST", "/", body=[b"x" * (64 * ONE_PIECE_BYTES)])
            assert (answer.status, await body_of(answer)) == (413, b"no")
        assert peer.connections == 2
        over.set()


async def test_interim_answers_are_passed_over() -> None:
    """103 Early Hints and the like are no answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)

    async with serving(script) as peer, route_to(peer.url) as route:
        answer = await exchange(route, "GET", "/")
        assert (answer.status, await body_of(answer)) == (200, b"ok")


async def test_no_http_is_said_so() -> None:
    """Garbage is no cut connection: the server is there and speaks something else."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")

    async with serving(script) as peer, route_to(peer.url) as route:
        with pytest.raises(Garbled):
            await exchange(route, "GET", "/")


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/ä", "/\x00"])
async def test_a_target_cannot_smuggle(target: str) -> None:
    """What would end the request line early is refused before a byte leaves."""
    sent: list[str] = []

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""

    async with serving(script) as peer, route_to(peer.url) as route:
        with pytest.raises(ValueError, match="request"):
            await exchange(route, "GET", target, sending=lambda _cut: sent.append("now"))
    assert not sent
