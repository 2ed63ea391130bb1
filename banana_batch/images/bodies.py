"""The body of an image: a small one into memory, a large one to the disk while it comes.

Rule 1: bytes are bounded by MAX_BYTES, their memory by SMALL_BYTES and one buffer, the time by IDLE_S and WALL_S.
Rule 2: a body that is not whole leaves nothing behind.
"""

import asyncio
import mmap
from collections.abc import Coroutine, Mapping

import aiohttp

from banana_batch.exchange import Exchange
from banana_batch.models import SMALL_BYTES, FetchFailed, PaidImage
from banana_batch.text import bytes_text

from . import failures
from .committer import Received, Sealed
from .intake import Intake
from .parts import PartStream
from .verify import NotWhole

CHUNK_BYTES = 1024 * 1024  # of a larger one, for each hop to the disk
MAX_PIECES = 1024  # of a body, waiting to be written
MAX_BYTES = 100_000_000
IDLE_S, WALL_S = 30.0, 600.0
RENEW_S = 1.0  # how exactly idling is noticed


class Patience:
    """How long to wait for a body: IDLE_S for its next bytes, WALL_S for all of it."""

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._clock = asyncio.get_running_loop().time
        self._seen_s = self._clock()
        self._end_s = self._seen_s + WALL_S

    def renew(self) -> None:
        """Bytes came."""
        now_s = self._clock()
        if now_s - self._seen_s > RENEW_S:
            self._seen_s = now_s
            self._limit.reschedule(min(now_s + IDLE_S, self._end_s))

    def lift(self) -> None:
        """All bytes came: what is left is the disk's, which is not timed."""
        self._limit.reschedule(None)


async def body_of(
    answer: Exchange, image: PaidImage, stream: PartStream, patience: Patience, buffers: list[mmap.mmap]
) -> Received | FetchFailed:
    """Receive the body of an answer; `buffers` are kept there for the next ones.

    Raises:
        aiohttp.ClientError, TimeoutError, OSError: the network's failures.
        PartFailed: the disk's.
    """
    label = answer.headers.get("Content-Type")
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    announced = None if chunked else _length(answer.headers)
    measured = chunked or announced is not None
    if announced is not None and announced > SMALL_BYTES:
        intake = Intake(min(announced, MAX_BYTES), patience.renew)
        begun = answer.divert(intake.divert_from)
        if begun is not None:
            part = await _stored(stream, announced, _take(intake, begun, stream, patience, buffers))
            return part if isinstance(part, FetchFailed) else Received(image, part, label, measured)
    chunks, size = list[bytes](), 0
    while size <= SMALL_BYTES:
        chunk = await _next(answer.content, chunked=chunked)
        if not chunk:
            if announced is not None and size != announced:
                return _short(size, announced)
            return Received(image, b"".join(chunks), label, measured)
        patience.renew()
        _keep(chunks, chunk)
        size += len(chunk)
    part = await _stored(stream, announced, _spill(answer.content, stream, chunks, patience, chunked=chunked))
    return part if isinstance(part, FetchFailed) else Received(image, part, label, measured)


async def _stored(
    stream: PartStream, announced: int | None, written: Coroutine[None, None, int]
) -> Sealed | FetchFailed:
    """Return the part with a whole body in it, sealed; a body that is not whole leaves none."""
    sealed = False
    try:
        size = await written
        if announced is not None and size < min(announced, MAX_BYTES):
            return _short(size, announced)
        part = await stream.seal()
        if max(size, announced or 0) > MAX_BYTES:
            part = part._replace(
                finding=NotWhole(f"more than {bytes_text(MAX_BYTES)}", part.finding.content_type, pixels=True)
            )
        sealed = True
        return part
    finally:
        if not sealed:
            await stream.discard()


async def _take(intake: Intake, begun: bytes, stream: PartStream, patience: Patience, buffers: list[mmap.mmap]) -> int:
    """Write the body to the part; return how many bytes came."""
    # Of whole pages, as direct writes want it, and used again: memory that was never touched is dear.
    pages = buffers.pop() if buffers else mmap.mmap(-1, CHUNK_BYTES)
    buffer = memoryview(pages)
    size = filled = len(begun)
    buffer[:filled] = begun
    del begun
    while True:
        room = len(buffer) - filled
        came = await intake.fill(buffer[filled:])
        size, filled = size + came, filled + came
        over = came < room or not intake.left
        if over:
            patience.lift()
        await stream.write([buffer[:filled]])
        if over:
            # Not where the fetch was cut short: a write may still be under way.
            buffers.append(pages)
            return size
        filled = 0


def _length(headers: Mapping[str, str]) -> int | None:
    said = headers.get("Content-Length")
    return None if said is None else int(said)  # the parser let nothing but digits through


def _short(size: int, announced: int) -> FetchFailed:
    return failures.SHORT.failed(f"{size:,} of {announced:,} bytes came")


async def _next(content: aiohttp.StreamReader, *, chunked: bool) -> bytes:
    """Return what came, nothing at the end."""
    if chunked:
        # Joined: a host that sends chunks of a byte each would have hundreds of thousands of objects held for it.
        return await content.readany()
    return (await content.readchunk())[0]  # one as it came, not all joined


def _keep(chunks: list[bytes], chunk: bytes) -> None:
    """Append a piece; few are ever kept, however small they come."""
    chunks.append(chunk)
    if len(chunks) > MAX_PIECES:
        chunks[:] = [b"".join(chunks)]


async def _spill(
    content: aiohttp.StreamReader, stream: PartStream, chunks: list[bytes], patience: Patience, *, chunked: bool
) -> int:
    """Write the body to the part, at most MAX_BYTES of it; return how many bytes came, at most a chunk more."""
    size = waiting = sum(map(len, chunks))
    while size <= MAX_BYTES:
        chunk = await _next(content, chunked=chunked)
        if not chunk:
            break
        patience.renew()
        _keep(chunks, chunk)
        size += len(chunk)
        waiting += len(chunk)
        if waiting >= CHUNK_BYTES and size <= MAX_BYTES:
            await stream.write(chunks)
            chunks, waiting = [], 0
    patience.lift()
    if size > MAX_BYTES:
        # What is kept of it always has the same length, so that the same endless body is known again.
        chunks[-1] = chunks[-1][: len(chunks[-1]) - (size - MAX_BYTES)]
    if waiting:
        await stream.write(chunks)
    return size
