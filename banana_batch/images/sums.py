"""Check sums of small bodies, taken without letting go of the interpreter.

Both libraries release it for whatever they take to be long, a few microseconds of work. Beside a busy event loop it
takes five times as long to get it back: 65 µs for the hash of 20 KB instead of 15.
"""

import hashlib
import zlib

SMALL_BYTES = 64 * 1024  # a larger body takes longer than the interpreter should be held
_HASH_KEEPS = 2047  # hashlib, _hashopenssl.c: HASHLIB_GIL_MINSIZE is 2,048
_CRC_KEEPS = 5 * 1024  # zlibmodule.c: it is released above


def sha256(body: bytes) -> str:
    """Return a body's SHA-256, hexadecimal."""
    if len(body) > SMALL_BYTES:
        return hashlib.sha256(body).hexdigest()
    digest, view = hashlib.sha256(), memoryview(body)
    for start in range(0, len(body), _HASH_KEEPS):
        digest.update(view[start : start + _HASH_KEEPS])
    return digest.hexdigest()


def crc32(data: memoryview, crc: int) -> int:
    """Return a CRC-32 carried on over `data`."""
    if not _CRC_KEEPS < len(data) <= SMALL_BYTES:
        return zlib.crc32(data, crc)
    for start in range(0, len(data), _CRC_KEEPS):
        crc = zlib.crc32(data[start : start + _CRC_KEEPS], crc)
    return crc
