"""Whether bytes are a whole image: a walk through its structure, to the end marker.

Rule 1: nothing is decoded. Type, pixels and end are read from headers, markers, lengths and check sums.
Rule 2: memory is bounded by one window, time by the bytes and MAX_PARTS; a header that promises more than
        MAX_PIXELS ends the walk at once.
Rule 3: a prefix of an image is never whole (a JPEG's end marker can't stand inside its data).
Rule 4: bytes after the end marker are counted, not refused: what was paid for is kept where it is harmless.
"""

import os
import re
import zlib
from dataclasses import dataclass
from typing import Protocol

MAX_PIXELS = 200_000_000
MAX_PARTS = 1_000_000  # chunks, segments or blocks; no encoder comes near, an attack would take minutes
WINDOW_BYTES = 1 << 18

_TEXT_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*[<{\[]")
_JPEG_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # a marker in entropy-coded data
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_CHUNK_NAME = re.compile(rb"[A-Za-z]{4}")


class Source(Protocol):
    """Bytes that can be read at any place."""

    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, fewer only at the end."""


class BytesSource:
    """A body in memory."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.size = len(body)

    def read(self, offset: int, count: int) -> bytes:
        """Return a slice."""
        return self._body[offset : offset + count]


class FileSource:
    """An open file, read in windows.

    Not mapped into memory: a page that can't be read is then an OSError and not the end of the process.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size
        self._start = 0
        self._window = b""

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes of the file.

        Raises:
            OSError: the disk can't read them.
        """
        at = offset - self._start
        if at < 0 or at + count > len(self._window):
            self._window = os.pread(self._fd, max(count, WINDOW_BYTES), offset)
            self._start, at = offset, 0
        return self._window[at : at + count]


@dataclass(frozen=True, slots=True)
class Whole:
    """An image with its end.

    Attributes:
        trailing_bytes: What comes after the end marker.
    """

    content_type: str
    width: int
    height: int
    trailing_bytes: int


@dataclass(frozen=True, slots=True)
class NotWhole:
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


class _Broken(Exception):
    """The structure ends or contradicts itself."""

    def __init__(self, reason: str, *, pixels: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pixels = pixels


def examine(source: Source) -> Whole | NotWhole:
    """Tell what the bytes are.

    Raises:
        OSError: a file that can't be read.
    """
    head = source.read(0, 32)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        walk, content_type = _walk_png, "image/png"
    elif head.startswith(b"\xff\xd8\xff"):
        walk, content_type = _walk_jpeg, "image/jpeg"
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        walk, content_type = _walk_webp, "image/webp"
    elif head[:6] in (b"GIF87a", b"GIF89a"):
        walk, content_type = _walk_gif, "image/gif"
    else:
        text = _TEXT_START.match(head) is not None
        return NotWhole("a web page or another text, no image" if text else "no image of a known type", text=text)
    try:
        width, height, end = walk(source)
    except _Broken as broken:
        return NotWhole(broken.reason, content_type, pixels=broken.pixels)
    return Whole(content_type, width, height, source.size - end)


def _exactly(source: Source, offset: int, count: int) -> bytes:
    data = source.read(offset, count)
    if len(data) < count:
        raise _Broken(f"cut off after {source.size:,} bytes")
    return data


def _checked(width: int, height: int) -> tuple[int, int]:
    if width == 0 or height == 0:
        raise _Broken("no width or no height")
    if width * height > MAX_PIXELS:
        raise _Broken(f"{width} x {height} pixels, more than {MAX_PIXELS:,}", pixels=True)
    return width, height


def _walk_png(source: Source) -> tuple[int, int, int]:
    header = _exactly(source, 8, 21)
    if header[:8] != b"\x00\x00\x00\rIHDR":
        raise _Broken("no PNG header")
    width, height = _checked(int.from_bytes(header[8:12], "big"), int.from_bytes(header[12:16], "big"))
    offset, data_seen = 8, False
    for _ in range(MAX_PARTS):
        frame = _exactly(source, offset, 8)
        length, name = int.from_bytes(frame[:4], "big"), frame[4:]
        end = offset + 12 + length
        if _CHUNK_NAME.fullmatch(name) is None:
            raise _Broken(f"no chunk where one must begin, at byte {offset:,}")
        if end > source.size:
            raise _Broken(f"cut off after {source.size:,} bytes")
        if _crc(source, offset + 4, length + 4) != int.from_bytes(_exactly(source, end - 4, 4), "big"):
            raise _Broken(f"check sum of the chunk at byte {offset:,} does not fit")
        data_seen = data_seen or name == b"IDAT"
        if name == b"IEND":
            if not data_seen:
                raise _Broken("no picture data")
            return width, height, end
        offset = end
    raise _Broken("too many chunks")


def _crc(source: Source, offset: int, count: int) -> int:
    crc, end = 0, offset + count
    while offset < end:
        data = _exactly(source, offset, min(WINDOW_BYTES, end - offset))
        crc = zlib.crc32(data, crc)
        offset += len(data)
    return crc


def _walk_jpeg(source: Source) -> tuple[int, int, int]:
    size: tuple[int, int] | None = None
    scanned, offset = False, 2
    for _ in range(MAX_PARTS):
        lead, marker = _exactly(source, offset, 2)
        if lead != 0xFF:
            raise _Broken(f"no marker where one must stand, at byte {offset:,}")
        if marker == 0xFF:  # padding before a marker
            offset += 1
            continue
        if marker == 0xD9:
            if size is None or not scanned:
                raise _Broken("an end without a picture")
            return *size, offset + 2
        end = _jpeg_segment_end(source, offset, marker)
        if marker in _JPEG_FRAMES and size is None:
            size = _jpeg_size(_exactly(source, offset + 4, 5))
        if marker == 0xDA:
            if size is None:
                raise _Broken("picture data before its header")
            scanned, end = True, _jpeg_scan_end(source, end)
        offset = end
    raise _Broken("too many segments")


def _jpeg_segment_end(source: Source, offset: int, marker: int) -> int:
    if marker <= 0x01 or 0xD0 <= marker <= 0xD8:
        raise _Broken(f"marker {marker:02x} outside picture data, at byte {offset:,}")
    length = int.from_bytes(_exactly(source, offset + 2, 2), "big")
    if length < 2:
        raise _Broken(f"a segment without length, at byte {offset:,}")
    if offset + 2 + length > source.size:
        raise _Broken(f"cut off after {source.size:,} bytes")
    return offset + 2 + length


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    return _checked(int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big"))


def _jpeg_scan_end(source: Source, offset: int) -> int:
    """Return where the next marker stands that is not part of the entropy-coded data."""
    while offset < source.size:
        window = source.read(offset, WINDOW_BYTES)
        found = _JPEG_NEXT.search(window)
        if found is not None:
            return offset + found.start()
        if len(window) < 2:
            break
        offset += len(window) - 1  # a marker may lie across two windows
    raise _Broken(f"cut off after {source.size:,} bytes")


def _walk_webp(source: Source) -> tuple[int, int, int]:
    end = 8 + int.from_bytes(_exactly(source, 4, 4), "little")
    if end > source.size:
        raise _Broken(f"cut off after {source.size:,} of {end:,} bytes")
    size: tuple[int, int] | None = None
    offset, data_seen = 12, False
    for _ in range(MAX_PARTS):
        if offset >= end:
            break
        frame = _exactly(source, offset, 8)
        name, length = frame[:4], int.from_bytes(frame[4:], "little")
        if offset + 8 + length > end:
            raise _Broken(f"the chunk at byte {offset:,} is longer than the file")
        if name in (b"VP8 ", b"VP8L", b"VP8X") and size is None:
            size = _webp_size(name, _exactly(source, offset + 8, min(length, 10)))
        data_seen = data_seen or (name in (b"VP8 ", b"VP8L", b"ANMF") and length > 0)
        offset += 8 + length + (length & 1)
    else:
        raise _Broken("too many chunks")
    if size is None or not data_seen:
        raise _Broken("no picture data")
    return *size, end


def _webp_size(name: bytes, head: bytes) -> tuple[int, int]:
    if name == b"VP8X" and len(head) == 10:
        return _checked(int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1)
    if name == b"VP8L" and len(head) >= 5 and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return _checked((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if name == b"VP8 " and len(head) == 10 and head[3:6] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
        return _checked(width & 0x3FFF, height & 0x3FFF)
    raise _Broken("no picture header")


def _walk_gif(source: Source) -> tuple[int, int, int]:
    head = _exactly(source, 0, 13)
    width, height = _checked(int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    offset, data_seen, parts = 13 + _colour_table(head[10]), False, 0
    while parts < MAX_PARTS:
        kind = _exactly(source, offset, 1)
        if kind == b";":
            if not data_seen:
                raise _Broken("no picture data")
            return width, height, offset + 1
        if kind == b"!":
            offset += 2
        elif kind == b",":
            offset += 11 + _colour_table(_exactly(source, offset, 10)[9])
            data_seen = True
        else:
            raise _Broken(f"no block where one must begin, at byte {offset:,}")
        offset, blocks = _gif_blocks_end(source, offset, MAX_PARTS - parts)
        parts += blocks
    raise _Broken("too many blocks")


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks_end(source: Source, offset: int, most: int) -> tuple[int, int]:
    """Return the end of a chain of sub-blocks, and how many there were."""
    for blocks in range(1, most + 1):
        length = _exactly(source, offset, 1)[0]
        offset += 1 + length
        if length == 0:
            return offset, blocks
    raise _Broken("too many blocks")
