"""Bodies made to cost memory, time or disk, from the endpoint and from hosts of images (S5, S6)."""

import asyncio
import gzip
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from banana_batch.images import bodies
from banana_batch.models import FetchFailed, Outcome
from tests.integration.answers_peer import answer, buy, serving, success
from tests.integration.images_peer import answer as image_answer
from tests.integration.images_peer import everything, fetching, host

BOUND_MIB = 32.0
LOOK_S = 0.002
HEAD = b"HTTP/1.1 200 OK\r\n"


def _resident_mib() -> float:
    with open("/proc/self/statm", encoding="ascii") as found:
        return int(found.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def growth() -> Iterator[SimpleNamespace]:
    """Watch how far this process grows meanwhile, from a thread of its own, 500 times a second."""
    seen, ended = SimpleNamespace(mib=0.0), threading.Event()
    if not Path("/proc/self/statm").exists():
        yield seen  # elsewhere only the end of the call is asserted
        return
    before = _resident_mib()

    def look() -> None:
        while not ended.wait(LOOK_S):
            seen.mib = max(seen.mib, _resident_mib() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


async def _flood(writer: asyncio.StreamWriter, block: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(block)
        await writer.drain()


Flood = tuple[bytes, bytes, int]
BOMB = zlib.compress(bytes(32 << 20), 9)
NESTED = gzip.compress(gzip.compress(bytes(16 << 20)))

# What is sent first, what is then repeated, and how often: about 48 MiB each, or what such a thing unpacks to.
FLOODS: dict[str, Flood] = {
    "endless chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"A" * 65536 + b"\r\n", 768),
    "chunks of one byte": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nA\r\n" * 10_000, 40),
    "one chunk without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n", b"A" * 65536, 768),
    "a length without end": (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"A" * 65536, 768),
    "no length, no end": (HEAD + b"\r\n", b"A" * 65536, 768),
    "a chunk extension without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"A" * 65536, 768),
    "trailers without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 10_000, 768),
    "a million headers": (HEAD, b"x: y\r\n" * 10_000, 100),
    "one header without end": (HEAD + b"x: ", b"A" * 65536, 768),
    "a status line without end": (b"HTTP/1.1 200 ", b"A" * 65536, 768),
    "continues without end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000, 25),
    "gzip": (HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(NESTED)}\r\n\r\n".encode() + NESTED, b"", 0),
    "deflate": (HEAD + f"Content-Encoding: deflate\r\nContent-Length: {len(BOMB)}\r\n\r\n".encode() + BOMB, b"", 0),
    "brotli": (HEAD + b"Content-Encoding: br\r\nContent-Length: 9\r\n\r\nnine byte", b"", 0),
    "twice encoded": (HEAD + b"Content-Encoding: gzip, gzip\r\nContent-Length: 4\r\n\r\nnine", b"", 0),
    "zstd": (HEAD + b"Content-Encoding: zstd\r\nContent-Length: 4\r\n\r\n\x28\xb5\x2f\xfd", b"", 0),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_no_answer_of_the_endpoint_takes_memory(name: str) -> None:
    """Whatever a paid call gets, it is in doubt, nothing is unpacked, and the process does not grow by it."""
    head, block, times = FLOODS[name]

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await _flood(writer, block, times)

    async with serving(flood) as peer:
        with growth() as grown:
            reply, _ = await buy(peer.url, timeout_s=5.0)
    assert reply.verdict.outcome is Outcome.IN_DOUBT
    assert len(reply.raw or b"") <= 64 * 1024
    assert grown.mib < BOUND_MIB


@pytest.mark.parametrize("name", FLOODS)
async def test_no_body_of_an_image_takes_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Streamed, capped, never unpacked: a failure that leaves no part, or damaged bytes that were counted."""
    monkeypatch.setattr(bodies, "MAX_BYTES", 40_000_000)
    head, block, times = FLOODS[name]

    async def flood(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await _flood(writer, block, times)

    async with host(flood) as peer, fetching(tmp_path, peer.url) as fetcher:
        with growth() as grown:
            async with asyncio.timeout(60):
                outcome = await fetcher.fetch(peer.image)
    assert isinstance(outcome, FetchFailed)
    assert not outcome.lost
    assert everything(tmp_path) == set()
    assert grown.mib < BOUND_MIB


@pytest.mark.parametrize("where", ["prompt", "message", "refer_images"])
async def test_an_answer_of_a_megabyte_is_read_and_bounded(where: str) -> None:
    """Up to the cap an answer is an answer, whatever fills it; what is kept and shown of it is cut."""
    body = success()
    if where == "message":
        body[where] = "m" * 900_000
    else:
        body["data"] = {**dict(body["data"]), where: "p" * 900_000}  # type: ignore[call-overload]  # it is a dict
    async with serving(answer(200, body)) as peer:
        reply, _ = await buy(peer.url)
    assert reply.verdict.outcome is Outcome.PAID
    assert len(reply.raw or b"") <= 64 * 1024
    assert len(reply.message or "") <= 512


def _png_header(width: int, height: int) -> bytes:
    """Return a PNG that says it is that large, with little in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


async def test_a_pixel_bomb_goes_to_damaged_undecoded(tmp_path: Path) -> None:
    """2,500 megapixels in a few kilobytes: refused by the header; twice the same: kept aside, never in images/."""
    async with host(image_answer(_png_header(50_000, 50_000))) as peer, fetching(tmp_path, peer.url) as fetcher:
        with growth() as grown:
            outcome = await fetcher.fetch(peer.image)
    assert isinstance(outcome, FetchFailed)
    assert (outcome.name, outcome.lost) == ("image_too_large", False)
    assert everything(tmp_path) == set()
    assert grown.mib < BOUND_MIB


def test_few_pieces_of_a_body_are_kept() -> None:
    """However small they come: an object a byte would be fifty times the body."""
    pieces: list[bytes] = []
    for number in range(5000):
        bodies._keep(pieces, b"%d" % (number % 10))
        assert len(pieces) <= bodies.MAX_PIECES
    assert b"".join(pieces) == b"0123456789" * 500
