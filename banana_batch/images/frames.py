"""What a run and the process that fetches for it say to each other: messages, each with its length before it."""

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import cast

from msgspec import Struct, msgpack

from banana_batch import __version__
from banana_batch.models import FetchFailed, PaidImage, StoredImage

_LENGTH = struct.Struct("!I")


READY = __version__.encode()  # a program that is replaced while it runs must not talk to its successor


class Terms(Struct, array_like=True):
    """What a fetcher is made with."""

    gateway: str
    allow_hosts: list[str]
    proxy: str | None
    ca_file: str | None
    secret: str


class Asked(Struct, array_like=True):
    """An image to be fetched; none: a sign of life is wanted."""

    number: int
    image: PaidImage | None


class Told(Struct, array_like=True):
    """What became of it; neither: a sign of life, or what can't be told: then the run fetches it, and finds out."""

    number: int
    stored: StoredImage | None = None
    failed: FetchFailed | None = None


pack = msgpack.Encoder().encode
unpack_terms = msgpack.Decoder(Terms).decode
unpack_asked = msgpack.Decoder(Asked).decode
unpack_told = msgpack.Decoder(Told).decode
SIGN = pack(Asked(-1, None))


class Frames(asyncio.Protocol, ABC):
    """Byte strings both ways; those that are sent in one turn of the loop leave together."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._came = bytearray()
        self._leaving: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast(asyncio.Transport, transport)  # another loop's are no subclass of it

    def send(self, frame: bytes) -> None:
        """Send a byte string."""
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._flush)
        self._leaving += _LENGTH.pack(len(frame)), frame

    def _flush(self) -> None:
        self.transport.write(b"".join(self._leaving))
        self._leaving.clear()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._came += data
        try:
            for frame in self._whole():
                self.take(frame)
        except Exception:  # noqa: BLE001  # whoever sends something else is not the other half of this file
            self.transport.abort()

    def _whole(self) -> Iterator[bytes]:
        came, start = self._came, 0
        while len(came) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _LENGTH.unpack_from(came, start)[0]
            if end > len(came):
                break
            yield bytes(came[start + _LENGTH.size : end])
            start = end
        del came[:start]

    @abstractmethod
    def take(self, frame: bytes) -> None:
        """Act on a byte string that came. Whatever it raises ends the connection."""
