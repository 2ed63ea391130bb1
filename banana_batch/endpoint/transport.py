"""The paid connections: how they are made, and how long they may be idle.

Rule 1: what is sent over them is exchange.py's: no redirects, retries, cookies, environment proxies, decompression.
Rule 2: nothing ever waits for a free connection: that wait would count as the call's own time.
"""

import asyncio
import socket
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from banana_batch.dialing import Dialer

CONNECT_TIMEOUT_S = 15.0  # TCP and TLS, for each address of the host
ESTABLISH_TIMEOUT_S = 60.0  # name, all addresses, a proxy's tunnel: everything before the request's first byte
# A server closes idle connections after 5 s or more; one that was idle for less than a second is as good as new, and
# reusing it saves a handshake a call when calls are short.
IDLE_S = 0.9
# A dead link shows within 20 + 3 × 10 s instead of at the deadline.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 20, 10, 3

# macOS calls the first one by another name.
_IDLE_OPTION: int = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 0x10))


class PaidConnector(Dialer):
    """Opens the paid connections."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE_S)

    async def _wrap_create_connection(self, *args: Any, **kwargs: Any) -> tuple[asyncio.Transport, ResponseHandler]:
        transport, handler = await super()._wrap_create_connection(*args, **kwargs)
        try:
            watch_for_silence(transport.get_extra_info("socket"))
        except BaseException:  # some systems say so of one that was cut off already
            transport.abort()
            raise
        return transport, handler


def watch_for_silence(connected: socket.socket) -> None:
    """Have the system ask a silent peer whether it is still there."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, _IDLE_OPTION, KEEPALIVE_IDLE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def connect_limits() -> aiohttp.ClientTimeout:
    """Return how long making a connection may take; the call itself is timed by its client."""
    return aiohttp.ClientTimeout(total=None, connect=ESTABLISH_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
