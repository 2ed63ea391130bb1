"""The body of a large image, straight from the socket into a buffer.

The parser's way costs twice the CPU a byte: it copies each piece into an object of its own. What it is needed for,
the head and chunked bodies, it still does; a body whose length was announced needs no reading, only counting.

Rule 1: the connection is paused whenever nobody waits in `fill`: memory is bounded by the caller's one buffer.
Rule 2: not a byte more than was announced is taken.
"""

import asyncio
from collections.abc import Callable

import aiohttp


class Intake(asyncio.BufferedProtocol):
    """Takes `left` further bytes from a connection. Hand it to `Exchange.divert`.

    Args:
        seen: Called whenever bytes came.
    """

    def __init__(self, left: int, seen: Callable[[], None]) -> None:
        self.left = left
        self._seen = seen
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(b"")
        self._filled = 0
        self._waiting: asyncio.Future[None] | None = None
        self._lost: BaseException | None = None

    def divert_from(self, transport: asyncio.Transport, come: int) -> None:
        """Take over a connection of whose body `come` bytes were read before."""
        self._transport = transport
        self.left -= come
        transport.pause_reading()
        transport.set_protocol(self)

    async def fill(self, buffer: memoryview) -> int:
        """Fill `buffer`, which is not empty; return how many bytes came: fewer at the body's end, or its connection's.

        Raises:
            aiohttp.ClientOSError: the connection broke.
        """
        self._buffer, self._filled = buffer[: self.left], 0
        if self._transport is not None and self.left:
            self._waiting = asyncio.get_running_loop().create_future()
            self._transport.resume_reading()
            await self._waiting
        if isinstance(self._lost, OSError):
            raise aiohttp.ClientOSError(*self._lost.args)
        return self._filled

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the protocol's signature
        """See asyncio.BufferedProtocol."""
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio.BufferedProtocol."""
        self._filled += nbytes
        self.left -= nbytes
        self._seen()
        if self._filled == len(self._buffer) and self._transport is not None:
            self._transport.pause_reading()
            self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.BufferedProtocol."""
        self._transport, self._lost = None, exc
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
