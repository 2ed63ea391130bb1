"""Check sums in small pieces are those of the whole."""

import hashlib
import zlib

import pytest

from banana_batch.images import sums

LENGTHS = [0, 1, 2047, 2048, 5120, 5121, 20_000, sums.SMALL_BYTES, sums.SMALL_BYTES + 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_sum_does_not_depend_on_how_it_is_taken(length: int) -> None:
    """Whichever way its length leads, a body has one SHA-256 and one CRC-32."""
    body = bytes(number % 251 for number in range(length))
    assert sums.sha256(body) == hashlib.sha256(body).hexdigest()
    assert sums.crc32(memoryview(body), 7) == zlib.crc32(body, 7)
