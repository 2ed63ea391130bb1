"""The structure of each image format, as walks that say which bytes they want next.

A walk yields what it wants, (offset, least, most), and is sent the bytes from there: `least` of them or more, fewer
only at the end of all. It never goes back behind what it wanted last, and never needs more than LEAST_BYTES at once:
so it runs over bytes that come as well as over bytes that are there, and none have to be kept for it (verify.py).
"""

import re
import sys
from collections.abc import Generator
from typing import TypeVar

from .sums import crc32

MAX_PIXELS = 200_000_000
MAX_PARTS = 1_000_000  # chunks, segments or blocks; no encoder comes near, an attack would take minutes
LEAST_BYTES = 32  # that a walk may insist on having in one piece

Found = TypeVar("Found")
Wanted = tuple[int, int, int]
Ask = Generator[Wanted, memoryview, Found]
Walk = Ask[tuple[int, int, int]]  # returns width, height, and where the image ends

_JPEG_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # a marker in entropy-coded data
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_CHUNK_NAME = re.compile(rb"[A-Za-z]{4}")


class Broken(Exception):
    """The structure contradicts itself."""

    def __init__(self, reason: str, *, pixels: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pixels = pixels


class Cut(Exception):
    """The bytes end before the image does."""


def walk_of(head: bytes) -> tuple[Walk, str] | None:
    """Return the walk for bytes that begin with `head` (32 of them), and their content type; None: no known type."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(), "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(), "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(), "image/webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _gif(), "image/gif"
    return None


def _exactly(offset: int, count: int) -> Ask[bytes]:
    data = bytes((yield offset, count, count))
    if len(data) < count:
        raise Cut
    return data


def _checked(width: int, height: int) -> tuple[int, int]:
    if width == 0 or height == 0:
        raise Broken("no width or no height")
    if width * height > MAX_PIXELS:
        raise Broken(f"{width} x {height} pixels, more than {MAX_PIXELS:,}", pixels=True)
    return width, height


def _png() -> Walk:
    header = yield from _exactly(8, 21)
    if header[:8] != b"\x00\x00\x00\rIHDR":
        raise Broken("no PNG header")
    width, height = _checked(int.from_bytes(header[8:12], "big"), int.from_bytes(header[12:16], "big"))
    offset, frame, data_seen = 8, header[:8], False
    for _ in range(MAX_PARTS):
        length, name = int.from_bytes(frame[:4], "big"), frame[4:]
        end = offset + 12 + length
        if _CHUNK_NAME.fullmatch(name) is None:
            raise Broken(f"no chunk where one must begin, at byte {offset:,}")
        crc = yield from _crc(offset + 4, length + 4)
        # The check sum, and with it how the next chunk begins, where that is here.
        tail = bytes((yield end - 4, 4, 12))
        if len(tail) < 4:
            raise Cut
        if crc != int.from_bytes(tail[:4], "big"):
            raise Broken(f"check sum of the chunk at byte {offset:,} does not fit")
        data_seen = data_seen or name == b"IDAT"
        if name == b"IEND":
            if not data_seen:
                raise Broken("no picture data")
            return width, height, end
        offset, frame = end, tail[4:] if len(tail) == 12 else (yield from _exactly(end, 8))
    raise Broken("too many chunks")


def _crc(offset: int, count: int) -> Ask[int]:
    crc, end = 0, offset + count
    while offset < end:
        data = yield offset, 1, end - offset
        if not data:
            raise Cut
        crc = crc32(data, crc)
        offset += len(data)
    return crc


def _jpeg() -> Walk:
    size: tuple[int, int] | None = None
    scanned, offset = False, 2
    for _ in range(MAX_PARTS):
        lead, marker = yield from _exactly(offset, 2)
        if lead != 0xFF:
            raise Broken(f"no marker where one must stand, at byte {offset:,}")
        if marker == 0xFF:  # padding before a marker
            offset += 1
            continue
        if marker == 0xD9:
            if size is None or not scanned:
                raise Broken("an end without a picture")
            return *size, offset + 2
        end = yield from _jpeg_segment_end(offset, marker)
        if marker in _JPEG_FRAMES and size is None:
            size = _jpeg_size((yield from _exactly(offset + 4, 5)))
        if marker == 0xDA:
            if size is None:
                raise Broken("picture data before its header")
            scanned, end = True, (yield from _jpeg_scan_end(end))
        offset = end
    raise Broken("too many segments")


def _jpeg_segment_end(offset: int, marker: int) -> Ask[int]:
    if marker <= 0x01 or 0xD0 <= marker <= 0xD8:
        raise Broken(f"marker {marker:02x} outside picture data, at byte {offset:,}")
    length = int.from_bytes((yield from _exactly(offset + 2, 2)), "big")
    if length < 2:
        raise Broken(f"a segment without length, at byte {offset:,}")
    return offset + 2 + length


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    return _checked(int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big"))


def _jpeg_scan_end(offset: int) -> Ask[int]:
    """Return where the next marker stands that is not part of the entropy-coded data."""
    while True:
        window = yield offset, 2, sys.maxsize
        found = _JPEG_NEXT.search(window)
        if found is not None:
            return offset + found.start()
        if len(window) < 2:
            raise Cut
        offset += len(window) - 1  # a marker may lie across two windows


def _webp() -> Walk:
    end = 8 + int.from_bytes((yield from _exactly(4, 4)), "little")
    size: tuple[int, int] | None = None
    offset, data_seen = 12, False
    for _ in range(MAX_PARTS):
        if offset >= end:
            break
        frame = yield from _exactly(offset, 8)
        name, length = frame[:4], int.from_bytes(frame[4:], "little")
        if offset + 8 + length > end:
            raise Broken(f"the chunk at byte {offset:,} is longer than the file")
        if name in (b"VP8 ", b"VP8L", b"VP8X") and size is None:
            size = _webp_size(name, (yield from _exactly(offset + 8, min(length, 10))))
        data_seen = data_seen or (name in (b"VP8 ", b"VP8L", b"ANMF") and length > 0)
        offset += 8 + length + (length & 1)
    else:
        raise Broken("too many chunks")
    if size is None or not data_seen:
        raise Broken("no picture data")
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
    raise Broken("no picture header")


def _gif() -> Walk:
    head = yield from _exactly(0, 13)
    width, height = _checked(int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    offset, data_seen, parts = 13 + _colour_table(head[10]), False, 0
    while parts < MAX_PARTS:
        kind = yield from _exactly(offset, 1)
        if kind == b";":
            if not data_seen:
                raise Broken("no picture data")
            return width, height, offset + 1
        if kind == b"!":
            offset += 2
        elif kind == b",":
            offset += 11 + _colour_table((yield from _exactly(offset, 10))[9])
            data_seen = True
        else:
            raise Broken(f"no block where one must begin, at byte {offset:,}")
        offset, blocks = yield from _gif_blocks_end(offset, MAX_PARTS - parts)
        parts += blocks
    raise Broken("too many blocks")


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks_end(offset: int, most: int) -> Ask[tuple[int, int]]:
    """Return the end of a chain of sub-blocks, and how many there were."""
    for blocks in range(1, most + 1):
        length = (yield from _exactly(offset, 1))[0]
        offset += 1 + length
        if length == 0:
            return offset, blocks
    raise Broken("too many blocks")
