"""The paid connections: how they are made, and how long they may be idle.

Rule 1: what is sent over them is exchange.py's: no redirects, retries, cookies, environment proxies, decompression.
Rule 2: nothing ever waits for a free connection: that wait would count as the call's own time.
"""

import socket
from typing import Any

import aiohttp

CONNECT_TIMEOUT_S = 15.0  # TCP and TLS, for each address of the host
ESTABLISH_TIMEOUT_S = 60.0  # name, all addresses, a proxy's tunnel: everything before the request's first byte
# A server closes idle connections after 5 s or more; one that was idle for less than a second is as good as new, and
# reusing it saves a handshake a call when calls are short.
IDLE_S = 0.9
# A dead link shows within 20 + 3 × 10 s instead of at the deadline.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 20, 10, 3

# macOS calls the first one by another name.
_IDLE_OPTION: int = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 0x10))


def paid_socket(address: tuple[Any, ...]) -> socket.socket:
    """Make the socket of one connection; `address` is an entry of `getaddrinfo`."""
    family, kind, protocol = address[:3]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, _IDLE_OPTION, KEEPALIVE_IDLE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def paid_connector() -> aiohttp.TCPConnector:
    """Make what opens the paid connections."""
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, socket_factory=paid_socket)


def connect_limits() -> aiohttp.ClientTimeout:
    """Return how long making a connection may take; the call itself is timed by its client."""
    return aiohttp.ClientTimeout(total=None, connect=ESTABLISH_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
