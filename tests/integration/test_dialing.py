"""Connections made in fewer steps: to the same hosts, with the same failures, on both loops."""

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from yarl import URL

from banana_batch.dialing import Dialer
from banana_batch.endpoint import transport
from banana_batch.images.classify import AddressBlocked
from banana_batch.images.download import guarded_socket, tcp_connector

Runner = Callable[[Coroutine[Any, Any, Any]], Any]
LIMITS = aiohttp.ClientTimeout(total=None, connect=10, sock_connect=5)
NOBODY = "127.9.9.9"  # loopback, where no test listens
both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class Names(AbstractResolver):
    """Knows one host, at the addresses of a test."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        return [
            ResolveResult(hostname=host, host=at, port=port, family=socket.AF_INET, proto=0, flags=0)
            for at in self.hosts
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def dialled(connector: aiohttp.TCPConnector, host: str, port: int) -> Connection:
    request = ClientRequest("GET", URL(f"http://{host}:{port}/"), loop=asyncio.get_running_loop())
    return await connector.connect(request, [], LIMITS)


def listening(stack: socket.socket) -> int:
    stack.bind(("127.0.0.1", 0))
    stack.listen()
    port: int = stack.getsockname()[1]
    return port


@both_loops
@pytest.mark.parametrize("hosts", [("127.0.0.1",), (NOBODY, "127.0.0.1")], ids=["one address", "the second of two"])
def test_a_paid_connection_finds_a_dead_link_within_a_minute(run: Runner, hosts: tuple[str, ...]) -> None:
    """Keepalive after 20 s of silence, then every 10 s, three times; small writes leave at once."""

    async def dial(port: int) -> None:
        connector = transport.PaidConnector()
        connector._resolver = Names(*hosts)
        try:
            connection = await dialled(connector, "gateway.example", port)
            assert connection.transport is not None
            made = connection.transport.get_extra_info("socket")
            assert made.getpeername() == ("127.0.0.1", port)
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert made.getsockopt(socket.IPPROTO_TCP, transport._IDLE_OPTION) == 20
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            connection.close()
        finally:
            await connector.close()

    with socket.socket() as server:
        run(dial(listening(server)))


@both_loops
@pytest.mark.parametrize("host", [NOBODY, "gateway.example"], ids=["one address", "two"])
def test_a_refusal_is_told_as_aiohttp_tells_it(run: Runner, host: str) -> None:
    """What the table of failures goes by: the class, and the system's own number."""

    async def dial(port: int, kind: type[aiohttp.TCPConnector]) -> aiohttp.ClientConnectorError:
        connector = kind(resolver=Names(NOBODY, "127.9.9.8"))
        try:
            with pytest.raises(aiohttp.ClientConnectorError) as raised:
                await dialled(connector, host, port)
            return raised.value
        finally:
            await connector.close()

    with socket.socket() as elsewhere:
        port = listening(elsewhere)
        ours, theirs = (run(dial(port, kind)) for kind in (Dialer, aiohttp.TCPConnector))
    assert type(ours) is type(theirs)
    assert type(ours.os_error) is type(theirs.os_error)
    assert ours.os_error.errno == theirs.os_error.errno == errno.ECONNREFUSED


@both_loops
def test_one_that_is_given_up_leaves_no_connection(run: Runner) -> None:
    """A call that is cancelled while it connects: its socket is closed, and the server hears of it."""

    async def dial() -> bytes:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.set_result(await reader.read())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        connector = transport.PaidConnector()
        async with server:
            dialling = asyncio.ensure_future(dialled(connector, "127.0.0.1", server.sockets[0].getsockname()[1]))
            for _ in range(2):  # the system has been asked for it, and its answer was not heard yet
                await asyncio.sleep(0)
            assert not dialling.done()
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            try:
                return await asyncio.wait_for(heard, 5)
            finally:
                await connector.close()

    assert run(dial()) == b""


def test_a_guarded_connector_judges_each_address() -> None:
    """The fewer steps are not for it: its sockets are made by the guard alone."""

    async def dial() -> None:
        connector = tcp_connector(guarded_socket)
        assert isinstance(connector, aiohttp.TCPConnector)
        try:
            with pytest.raises(aiohttp.ClientConnectorError) as raised:
                await dialled(connector, "127.0.0.1", 9)
            assert isinstance(raised.value.os_error, AddressBlocked)
        finally:
            await connector.close()

    asyncio.run(dial())
