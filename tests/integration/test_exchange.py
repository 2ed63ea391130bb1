"""One request over aiohttp's connections without its session: written once, over a connection that holds nothing else."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import uvloop
from yarl import URL

from banana_batch.exchange import MAX_STALE, ONE_PIECE_BYTES, Exchange, Route, exchange
from banana_batch.peer import Garbled
from tests.tls import server_tls

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
    async with connecting() as connector:
        route = route_over(connector, url, idle_s)
        try:
            yield route
        finally:
            route.close()


@asynccontextmanager
async def connecting() -> AsyncIterator[aiohttp.TCPConnector]:
    connector = aiohttp.TCPConnector(limit=0)
    try:
        yield connector
    finally:
        await connector.close()


def route_over(connector: aiohttp.TCPConnector, url: URL, idle_s: float = 5.0) -> Route:
    return Route(
        connector,
        url,
        idle_s=idle_s,
        limits=LIMITS,
        proxy=None,
        tls=ssl.create_default_context,
        headers={"X-Test": "yes"},
    )


async def body_of(answer: Exchange) -> bytes:
    try:
        return await answer.content.read()
    finally:
        answer.end()


def interrupting(said: bytes, when: asyncio.Event, spoken: asyncio.Event) -> Script:
    """Answer the first request of a connection; on the first connection say something unasked afterwards."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        if not spoken.is_set():
            await writer.drain()
            await when.wait()
            writer.write(said)
            await writer.drain()
            spoken.set()
        await reader.read()

    return script


async def turn_of_the_wire() -> None:
    """Hear another server out: what was sent to this process before has arrived by then."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()

    async with serving(script) as other, route_to(other.url) as elsewhere:
        assert await body_of(await exchange(elsewhere, "GET", "/")) == b"ok"


async def test_connections_are_used_again() -> None:
    """An answer that was read to its end leaves a connection for the next request."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)

    async with serving(script) as peer, route_to(peer.url) as route:
        for _ in range(3):
            assert await body_of(await exchange(route, "GET", "/")) == b"ok"
        assert peer.connections == 1


async def test_connections_that_wait_are_let_go_and_no_other() -> None:
    """The server hears of their end at once; an answer that is under way comes whole."""
    ended = asyncio.Event()
    may = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /slow"):
            await may.wait()
        writer.write(OK)
        await reader.read()
        ended.set()

    async with asyncio.timeout(5), serving(script) as peer, route_to(peer.url) as route:
        slow = asyncio.ensure_future(exchange(route, "GET", "/slow"))
        assert await body_of(await exchange(route, "GET", "/quick")) == b"ok"
        route.let_go()
        await ended.wait()
        may.set()
        assert await body_of(await slow) == b"ok"
        assert peer.connections == 2


def _one_answer(listener: socket.socket, tls: ssl.SSLContext) -> bytes:
    """Answer one request over TLS and say nothing more; return what else comes until the other side is gone."""
    made, _ = listener.accept()
    with tls.wrap_socket(made, server_side=True) as wrapped:
        while b"\r\n\r\n" not in wrapped.recv(1 << 16):
            pass
        wrapped.sendall(OK)
        raw = socket.socket(fileno=wrapped.detach())
    with raw:
        raw.settimeout(10)
        came = b""
        try:
            while more := raw.recv(1 << 16):
                came += more
        except ConnectionResetError:
            pass
        return came


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_connection_over_tls_that_is_let_go_is_gone(run: Callable[[Coroutine[Any, Any, bytes]], bytes]) -> None:
    """At once, though its peer says no farewell: nothing is open when a run has ended."""
    any_side = ssl.create_default_context()
    any_side.check_hostname, any_side.verify_mode = False, ssl.CERT_NONE

    async def rest(listener: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        served = loop.run_in_executor(None, _one_answer, listener, server_tls("good"))
        url = URL(f"https://127.0.0.1:{listener.getsockname()[1]}")
        async with asyncio.timeout(8), connecting() as connector:
            route = Route(connector, url, idle_s=5, limits=LIMITS, proxy=None, tls=lambda: any_side, headers={})
            assert await body_of(await exchange(route, "GET", "/")) == b"ok"
            route.let_go()
            ended = await served
            route.close()
            return ended

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        run(rest(listener))


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
    go_on, spoken = asyncio.Event(), asyncio.Event()
    script = interrupting(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", go_on, spoken)
    async with serving(script) as peer, route_to(peer.url) as route:
        assert await body_of(await exchange(route, "GET", "/1")) == b"ok"
        go_on.set()
        await spoken.wait()
        await turn_of_the_wire()
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


@pytest.mark.parametrize("rest", [OK.replace(b"ok", b"no"), OK[:20], OK[:30]], ids=["all of it", "a start", "a line"])
async def test_another_answer_behind_the_first_answers_no_later_request(rest: bytes) -> None:
    """Both came in one piece, before anything else was asked."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + rest)
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)

    async with serving(script) as peer, route_to(peer.url) as route:
        for _ in range(2):
            assert await body_of(await exchange(route, "GET", "/")) == b"ok"
        assert peer.connections == 2


async def test_what_comes_after_a_route_was_closed_answers_no_request_of_the_next() -> None:
    """The connector keeps the connection, and hears what comes on it meanwhile."""
    left, spoken = asyncio.Event(), asyncio.Event()
    script = interrupting(OK.replace(b"ok", b"no"), left, spoken)
    async with serving(script) as peer, connecting() as connector:
        first, second = route_over(connector, peer.url), route_over(connector, peer.url)
        assert await body_of(await exchange(first, "GET", "/")) == b"ok"
        first.close()
        left.set()
        await spoken.wait()
        await turn_of_the_wire()
        assert await body_of(await exchange(second, "GET", "/")) == b"ok"
        second.close()
        assert peer.connections == 2


@pytest.mark.parametrize("rest", [b"zz\r\n", b"5\r\nhalf", b""], ids=["no chunk", "half a chunk", "cut off"])
async def test_a_body_that_breaks_off_says_so_at_once(rest: bytes) -> None:
    """Whatever breaks it, who reads it hears of it, and the connection is used no more."""

    begun = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        await begun.wait()
        writer.write(rest)
        if rest.startswith(b"zz"):
            await reader.read()

    async with serving(script) as peer, route_to(peer.url) as route:
        for tries in (1, 2):
            begun.clear()
            async with asyncio.timeout(5):
                answer = await exchange(route, "GET", "/")
                begun.set()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await body_of(answer)
            assert peer.connections == tries


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_nobody_reads_is_held_back(chunked: bool) -> None:
    """Memory is bounded by what may wait to be read; read at last, it is whole."""
    piece, pieces = b"\x5a" * 65_536, 256

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (len(piece) * pieces)
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        for _ in range(pieces):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n" if chunked else b"")
        await reader.read()

    async with serving(script) as peer, route_to(peer.url) as route:
        answer = await exchange(route, "GET", "/", read_bufsize=1 << 16)
        waiting = -1
        while answer.content.total_bytes > waiting:
            waiting = answer.content.total_bytes
            for _ in range(50):
                await asyncio.sleep(0.001)
        assert 0 < waiting <= 1 << 20
        async with asyncio.timeout(20):
            assert await body_of(answer) == piece * pieces


async def test_what_the_parser_kept_back_comes_when_it_is_wanted() -> None:
    """All of a body came in one piece, in more chunks than may wait: no further bytes will push it on."""
    piece, pieces = b"\x5a" * 4096, 48

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        chunks = b"%x\r\n%b\r\n" % (len(piece), piece) * pieces
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        await reader.read()

    async with serving(script) as peer, route_to(peer.url) as route:
        async with asyncio.timeout(10):
            answer = await exchange(route, "GET", "/", read_bufsize=1 << 13)
            assert answer.content.total_bytes < 10 * len(piece)
            came = b""
            while chunk := await answer.content.readany():
                came += chunk
            answer.end()
            assert came == piece * pieces


async def test_connections_that_were_ended_while_idle_cost_a_request_no_try() -> None:
    """A server that says so first (408) ends as many as it likes: the next request goes over a new one."""
    idle = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        if not idle.is_set():
            await idle.wait()
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        else:
            await reader.read()

    connections = 2 * MAX_STALE
    async with serving(script) as peer, route_to(peer.url) as route:
        answers = await asyncio.gather(*(exchange(route, "GET", "/") for _ in range(connections)))
        assert [await body_of(answer) for answer in answers] == [b"ok"] * connections
        idle.set()
        for _ in range(20):
            await turn_of_the_wire()
        assert await body_of(await exchange(route, "GET", "/")) == b"ok"
        assert peer.connections == connections + 1


async def test_answers_behind_an_answer_are_not_gathered() -> None:
    """Who has it all may take a while over it, as with a busy disk: memory does not grow meanwhile."""
    over = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await go_on.wait()
        try:
            while True:
                writer.write(OK * 1000)
                await writer.drain()
        finally:
            over.set()

    go_on = asyncio.Event()
    async with serving(script) as peer, route_to(peer.url) as route:
        answer = await exchange(route, "GET", "/")
        assert await answer.content.read() == b"ok"
        go_on.set()
        async with asyncio.timeout(10):
            await over.wait()  # nobody listens to it any more
        answer.end()
        assert peer.connections == 1
