"""The part of a large image: bytes stream to the disk while they come, hashed as they are written.

Rule 1: what blocks runs on the disk executor, in chunks so large that the hop does not count; aiofiles carries it.
Rule 2: a write that has begun ends before its file is closed or removed, whoever was cancelled meanwhile.
Rule 3: a part is examined and synced before it can get a name.
Rule 4: whole blocks go past the page cache where the system lets them: nobody reads these bytes again soon, and making
        room for them took more CPU than all else that is done to an image.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from io import BufferedIOBase
from typing import TYPE_CHECKING, TypeVar

from aiofiles.threadpool import wrap

from .committer import Sealed
from .files import create_part, remove_part, require_room, sync_part, write_all
from .folders import Folders
from .verify import Examination

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Result = TypeVar("Result")

MAX_VECTOR = 256  # buffers a call; systems take 1,024
BLOCK_BYTES = 4096  # what direct writes are multiples of
_DIRECT = getattr(os, "O_DIRECT", 0)  # elsewhere than on Linux there is none


class PartFailed(Exception):
    """The local disk did not take the bytes of a part. No OSError, as the network's errors are those too."""

    def __init__(self, failure: OSError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class StreamedPart(BufferedIOBase):
    """The file itself. Every method blocks and belongs on the disk executor."""

    def __init__(self, folders: Folders, index: int) -> None:
        self._fd = create_part(folders.images, index)
        self._folders = folders
        self._index = index
        self._hash = hashlib.sha256()
        self._examination = Examination()
        self._direct = _set_direct(self._fd, on=True)
        self._busy = threading.Lock()
        self._written = 0

    def writelines(self, chunks: Iterable["ReadableBuffer"], /) -> None:
        """Write and hash the chunks as they are: no copy is made to join them.

        Raises:
            OSError: the disk is full or broken.
        """
        with self._busy:
            views = [memoryview(chunk) for chunk in chunks]
            require_room(self._fd, sum(view.nbytes for view in views))
            self._put(views)
            for view in views:
                self._hash.update(view)
                self._examination.feed(view)
                self._written += view.nbytes

    def _put(self, views: Sequence[memoryview]) -> None:
        if self._direct and len(views) == 1 and views[0].nbytes % BLOCK_BYTES == 0:
            try:
                written = os.write(self._fd, views[0])
            except OSError as refused:
                # A file system that takes the flag and not the writes, or a buffer that lies otherwise than it wants.
                if refused.errno != errno.EINVAL:
                    raise
                written = 0
            views = [views[0][written:]]
            if not views[0]:
                return
        if self._direct:
            self._direct = _set_direct(self._fd, on=False)
        for start in range(0, len(views), MAX_VECTOR):
            group = views[start : start + MAX_VECTOR]
            written = os.writev(self._fd, group)
            if written < sum(view.nbytes for view in group):
                write_all(self._fd, b"".join(group)[written:])  # so that the next call names the reason

    def close(self) -> None:
        """Close the descriptor, once."""
        if not self.closed:
            super().close()
            os.close(self._fd)

    def seal(self) -> Sealed:
        """Sync what was written, judge it, and close.

        Raises:
            OSError: the disk is full or broken.
        """
        with self._busy:
            sync_part(self._fd)
            self.close()
            return Sealed(self._written, self._hash.hexdigest(), self._examination.end())

    def discard(self) -> None:
        """Close and remove it, once a write that is under way has ended."""
        with self._busy:
            with suppress(OSError):
                self.close()
            remove_part(self._folders.images, self._index)


def _set_direct(fd: int, *, on: bool) -> bool:
    """Turn direct writes on or off; tell whether they are on."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
    except OSError:  # a file system without them
        return False
    return on


class PartStream:
    """The same as the loop sees it; the file is made with the first write.

    Each method but `discard` raises PartFailed if the disk is full or broken.
    """

    def __init__(self, disk: Executor, folders: Folders, index: int) -> None:
        self._disk = disk
        self._folders = folders
        self._index = index
        self._opening: Future[StreamedPart] | None = None

    async def write(self, chunks: Sequence["ReadableBuffer"]) -> None:
        """Append, in one hop."""
        part = await self._opened()
        try:
            await wrap(part, loop=asyncio.get_running_loop(), executor=self._disk).writelines(chunks)
        except OSError as failure:
            raise PartFailed(failure) from None

    async def seal(self) -> Sealed:
        """Examine, sync and close; return what is in it."""
        part = await self._opened()
        return await _settled(self._disk.submit(part.seal))

    async def discard(self) -> None:
        """Remove the part, once what runs on it has ended; goes on when the caller is cancelled."""
        await _settled(self._disk.submit(self._discard))

    async def _opened(self) -> StreamedPart:
        if self._opening is None:
            self._opening = self._disk.submit(StreamedPart, self._folders, self._index)
        return await _settled(self._opening)

    def _discard(self) -> None:
        # The opening was submitted before, so it has ended or runs on another thread: this never waits for itself.
        with suppress(OSError):
            if self._opening is not None:
                self._opening.result().discard()


async def _settled(future: Future[Result]) -> Result:
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except OSError as failure:
        raise PartFailed(failure) from None
