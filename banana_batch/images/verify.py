"""Whether bytes are a whole image: a walk through its structure, to the end marker.

Rule 1: nothing is decoded. Type, pixels and end are read from headers, markers, lengths and check sums.
Rule 2: memory is bounded by a few bytes, time by the bytes and MAX_PARTS; a header that promises more than
        MAX_PIXELS ends the walk at once.
Rule 3: a prefix of an image is never whole (a JPEG's end marker can't stand inside its data).
Rule 4: bytes after the end marker are counted, not refused: what was paid for is kept where it is harmless.
Rule 5: bytes are examined as they come, in order: a large image is never read again for it.
"""

import os
import re

from msgspec import Struct

from .walks import LEAST_BYTES, Broken, Cut, Walk, walk_of

WINDOW_BYTES = 1 << 18  # of a file, read at once
_TEXT_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*[<{\[]")


class Whole(Struct, frozen=True):
    """An image with its end.

    Attributes:
        trailing_bytes: What comes after the end marker.
    """

    content_type: str
    width: int
    height: int
    trailing_bytes: int


class NotWhole(Struct, frozen=True):
    """Bytes that hold no whole image.

    Attributes:
        content_type: What they begin like; None: like no image known here.
        text: They are a web page or another text: no image came at all, damaged or not.
        pixels: More than may be decoded safely: the reason for the refusal.
    """

    reason: str
    content_type: str | None = None
    text: bool = False
    pixels: bool = False


class Examination:
    """Examines bytes in the pieces in which they come."""

    def __init__(self) -> None:
        self._walk: Walk | None = None
        self._content_type: str | None = None
        self._wanted = (0, LEAST_BYTES, LEAST_BYTES)
        self._kept = b""  # the last bytes that came, from where the walk wants some that are not all here
        self._size = 0
        self._found: NotWhole | tuple[int, int, int] | None = None

    def feed(self, data: "bytes | memoryview") -> None:
        """Take the next piece."""
        if self._found is None:
            self._serve(memoryview(data))
        self._size += len(data)

    def end(self) -> Whole | NotWhole:
        """Tell what all of it is."""
        while self._found is None:
            # All that is left, though more was wanted.
            offset, _, most = self._wanted
            left = self._kept[max(0, offset - self._size + len(self._kept)) :]
            self._answer(memoryview(left)[:most])
        if isinstance(self._found, NotWhole):
            return self._found
        width, height, end = self._found
        if end > self._size:
            return self._cut()
        assert self._content_type is not None
        return Whole(self._content_type, width, height, self._size - end)

    def _serve(self, data: memoryview) -> None:
        """Give the walk what it wants as long as that is here."""
        end = self._size + len(data)
        bridge_start = self._size - len(self._kept)
        bridge = memoryview(self._kept + bytes(data[:LEAST_BYTES]))
        while self._found is None:
            offset, least, most = self._wanted
            if offset + least > end:
                # Fewer than LEAST_BYTES.
                rest = bridge[offset - bridge_start :] if offset < self._size else data[offset - self._size :]
                self._kept = bytes(rest) if offset < end else b""
                return
            if offset >= self._size:
                self._answer(data[offset - self._size :][:most])
            else:
                self._answer(bridge[offset - bridge_start :][:most])

    def _answer(self, piece: memoryview) -> None:
        try:
            if self._walk is None:
                self._begin(bytes(piece))
            else:
                self._wanted = self._walk.send(piece)
        except StopIteration as ended:
            self._found = ended.value
        except Broken as broken:
            self._found = NotWhole(broken.reason, self._content_type, pixels=broken.pixels)
        except Cut:
            self._found = self._cut()

    def _begin(self, head: bytes) -> None:
        known = walk_of(head)
        if known is None:
            text = _TEXT_START.match(head) is not None
            self._found = NotWhole(
                "a web page or another text, no image" if text else "no image of a known type", text=text
            )
            return
        self._walk, self._content_type = known
        self._wanted = next(self._walk)

    def _cut(self) -> NotWhole:
        return NotWhole(f"cut off after {self._size:,} bytes", self._content_type)


def examine(body: bytes) -> Whole | NotWhole:
    """Tell what a body in memory is."""
    examination = Examination()
    examination.feed(body)
    return examination.end()


def examine_open(fd: int, size: int) -> Whole | NotWhole:
    """Tell what an open file's first `size` bytes are.

    Not mapped into memory: a page that can't be read is then an OSError and not the end of the process.

    Raises:
        OSError: it can't be read.
    """
    examination = Examination()
    for offset in range(0, size, WINDOW_BYTES):
        examination.feed(os.pread(fd, min(WINDOW_BYTES, size - offset), offset))
    return examination.end()
