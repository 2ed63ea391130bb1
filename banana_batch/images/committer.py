"""From received bytes to durable files, for whatever came meanwhile at once.

Order for each image, fully enumerated by tests/torture: part written -> examined -> fsync(part) -> link to the
final name, never over anything -> unlink(part) -> fsync(folder), once for the group -> the caller may commit DONE.

Rule 1: a final name is given only to whole, synced bytes; what holds no whole image goes to `damaged/`, and only
        when the same bytes came twice.
Rule 2: a name that is taken is not ours: both are kept, ours in `conflicts/`. Unless the bytes are the same: then
        it is ours, from a run that was killed before it could record it.
Rule 3: `commit` runs once at a time; the slow part (fsync) fans out over the threads of its own executor.
"""

import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import NamedTuple

from msgspec import Struct

from banana_batch.errors import BananaError
from banana_batch.models import FetchFailed, PaidImage, StoredImage
from banana_batch.text import bytes_text

from . import failures, names
from .files import hash_open, move, open_file, remove_part, set_aside, sync_part, write_part
from .folders import Folders
from .oddities import oddities
from .sums import sha256
from .verify import NotWhole, Whole, examine

SLICES = 8  # fsyncs of small parts under way at once

Outcome = StoredImage | FetchFailed


class Sealed(NamedTuple):
    """What lies, synced, in the part of a large image.

    Attributes:
        sha256: Of all bytes, hexadecimal.
    """

    bytes: int
    sha256: str
    finding: Whole | NotWhole


class Received(Struct):
    """An image's bytes as they came.

    Attributes:
        body: All of them, until they are in its part; or what is in that.
        label: The Content-Type header; None without one.
        measured: The transfer said where it ends; False: it ended with the connection, so it may have been cut.
    """

    image: PaidImage
    body: bytes | Sealed
    label: str | None
    measured: bool


class _Prepared(Struct):
    """A part that waits for its name.

    Attributes:
        fd: Of a small part until somebody syncs it; a streamed one comes synced and closed.
        broken: Why it could not be synced.
    """

    received: Received
    finding: Whole | NotWhole
    sha256: str
    bytes: int
    synced: bool
    fd: int | None = None
    broken: OSError | None = None


class _Placed(Struct):
    """A file under its name, not durable before its folder is synced."""

    folder: int
    outcome: Outcome


class Committer:
    """Gives synced parts their names.

    Args:
        folders: Where images go.
        executor: Of SLICES threads, one for `commit` and the others for what that fans out.
    """

    def __init__(self, folders: Folders, executor: Executor) -> None:
        self._folders = folders
        self._executor = executor
        self._slices = [_Slice() for _ in range(SLICES)]

    def commit(self, group: Sequence[Received]) -> list[Outcome | BaseException]:
        """Store a group; return what became of each, in order. Blocks."""
        prepared = [self._prepare(received) for received in group]
        self._sync_parts([one for one in prepared if isinstance(one, _Prepared) and one.fd is not None])
        placed = [self._place(one) for one in prepared]
        broken = self._sync_folders({one.folder for one in placed if isinstance(one, _Placed)})
        self._folders.trim()
        return [broken.get(one.folder, one.outcome) if isinstance(one, _Placed) else one for one in placed]

    def _prepare(self, received: Received) -> _Prepared | FetchFailed:
        body = received.body
        if isinstance(body, Sealed):
            prepared = _Prepared(received, body.finding, body.sha256, body.bytes, synced=True)
        else:
            prepared = _Prepared(received, examine(body), sha256(body), len(body), synced=False)
        failure = _refused(prepared)
        if failure is not None:
            if isinstance(body, Sealed):
                remove_part(self._folders.images, received.image.index)
            return failure
        if not isinstance(body, Sealed):
            try:
                prepared.fd = write_part(self._folders.images, received.image.index, body)
            except OSError as broken:
                return failures.by_disk(broken)
            received.body = b""  # while the group is synced the next one comes: both would be in memory
        return prepared

    def _sync_parts(self, written: Sequence[_Prepared]) -> None:
        """Sync and close small parts, several at once: a disk is fast when it has much to do."""
        width = min(SLICES, len(written))
        slices = self._slices[:width]
        for start, part in enumerate(slices):
            part.take(written[start::width])
        with suppress(RuntimeError):  # no thread can be had: all is done by this one
            for part in slices[1:]:
                self._executor.submit(part.sync)
        for part in slices:
            part.sync()

    def _place(self, prepared: _Prepared | FetchFailed) -> _Placed | FetchFailed | BananaError:
        if isinstance(prepared, FetchFailed):
            return prepared
        try:
            if not prepared.synced:
                raise prepared.broken or OSError(errno.EIO, os.strerror(errno.EIO))
            return self._name(prepared)
        except OSError as broken:
            remove_part(self._folders.images, prepared.received.image.index)
            return failures.by_disk(broken)
        except BananaError as broken:
            remove_part(self._folders.images, prepared.received.image.index)
            return broken

    def _name(self, prepared: _Prepared) -> _Placed:
        image, finding = prepared.received.image, prepared.finding
        if isinstance(finding, NotWhole):
            file = names.damaged_name(image.index, prepared.sha256, finding.content_type)
            path, folder, _ = self._give_name(prepared, (names.DAMAGED,), file)
            return _Placed(folder, _lost(finding, prepared, path))
        place, stem = names.split_stem(image.index, image.stem)
        path, folder, conflict = self._give_name(prepared, place, names.file_name(stem, finding.content_type))
        said = [*oddities(image, finding, prepared.received.label), *([conflict] if conflict else [])]
        stored = StoredImage(
            path,
            prepared.bytes,
            prepared.sha256,
            finding.width,
            finding.height,
            finding.content_type,
            "; ".join(said) or None,
        )
        return _Placed(folder, stored)

    def _give_name(self, prepared: _Prepared, place: tuple[str, ...], file: str) -> tuple[str, int, str | None]:
        """Return the path below OUT, its folder, and a warning if the name was taken."""
        images, part = self._folders.images, names.part_name(prepared.received.image.index)
        folder = self._folders.below(place)
        wanted = "/".join((*place, file))
        try:
            move(images, part, folder, file)
        except FileExistsError:
            if not _holds(folder, file, prepared):
                folder = self._folders.below((names.CONFLICTS,))
                path = f"{names.CONFLICTS}/{set_aside(images, part, folder, file)}"
                return path, folder, f"{wanted} was there already and is kept; this image is {path}"
            os.unlink(part, dir_fd=images)
        return wanted, folder, None

    @staticmethod
    def _sync_folders(touched: set[int]) -> dict[int, FetchFailed]:
        """Make the new names durable; return the folders that can't be."""
        broken = {}
        for folder in touched:
            try:
                os.fsync(folder)
            except OSError as failure:
                broken[folder] = failures.by_disk(failure)
        return broken


class _Slice:
    """Parts of a group that one thread syncs: the first that comes to it. Any other waits for it to be done."""

    def __init__(self) -> None:
        self._left: list[_Prepared] = []
        self._lock = threading.Lock()

    def take(self, written: Sequence[_Prepared]) -> None:
        """Have these synced; those before are."""
        self._left = list(written)

    def sync(self) -> None:
        """Sync and close what is left."""
        with self._lock:
            while self._left:
                _sync(self._left.pop())


def _sync(one: _Prepared) -> None:
    fd, one.fd = one.fd, None
    if fd is None:
        return
    try:
        sync_part(fd)
        one.synced = True
    except OSError as failure:
        one.broken = failure
    finally:
        try:  # noqa: SIM105  # quicker than `suppress`, once an image
            os.close(fd)
        except OSError:
            pass  # what is synced is durable


def _holds(folder: int, file: str, prepared: _Prepared) -> bool:
    """Tell whether a file holds these very bytes; if so, make sure that they are durable."""
    opened = open_file(folder, file)
    if opened is None:
        return False
    fd, size = opened
    try:
        same = size == prepared.bytes and hash_open(fd, size) == prepared.sha256
        if same:
            os.fsync(fd)
        return same
    finally:
        os.close(fd)


def _refused(prepared: _Prepared) -> FetchFailed | None:
    """Return why bytes may not be kept; None: they are whole, or the same damaged ones came before."""
    finding, image = prepared.finding, prepared.received.image
    if isinstance(finding, Whole):
        return None
    if prepared.bytes == 0:
        return failures.SHORT.failed("the body is empty")
    if finding.text:
        return failures.WRONG_TYPE.failed(finding.reason)
    if prepared.sha256 == image.damaged_sha256:
        return None
    row = _damaged_row(finding, prepared.received.measured)
    return row.failed(f"{bytes_text(prepared.bytes)} came, no whole image: {finding.reason}", sha256=prepared.sha256)


def _damaged_row(finding: NotWhole, measured: bool) -> failures.Row:
    if finding.pixels:
        return failures.TOO_LARGE
    return failures.DAMAGED if measured else failures.SHORT


def _lost(finding: NotWhole, prepared: _Prepared, path: str) -> FetchFailed:
    row = _damaged_row(finding, measured=True)
    message = (
        f"the same {bytes_text(prepared.bytes)} came twice and hold no whole image: {finding.reason}; kept as {path}"
    )
    return row.failed(message, sha256=prepared.sha256, lost=True)
