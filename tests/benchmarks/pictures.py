"""A picture of a wanted size in bytes: noise, which no transfer can shrink."""

import math
import os
import struct
import zlib


def noise_png(size_bytes: int) -> bytes:
    """Return a whole, valid square PNG of about that many bytes."""
    side = max(1, math.isqrt(size_bytes // 3))
    rows = b"".join(b"\0" + os.urandom(3 * side) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(rows, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
