"""The walk through an image's structure."""

import os
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banana_batch.images import verify, walks
from banana_batch.images.verify import Examination, NotWhole, Whole, examine, examine_open
from tests.unit.images.samples import WHOLE, chunk, png

KINDS = sorted(WHOLE)


def look(body: bytes) -> Whole | NotWhole:
    return examine(body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_image_is_known_with_its_pixels(kind: str) -> None:
    """Type and pixels come from the content."""
    content_type, body = WHOLE[kind]
    assert look(body) == Whole(content_type, 64, 48, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_judged_like_its_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows change nothing, not even windows so small that every marker lies across two of them."""
    monkeypatch.setattr(verify, "WINDOW_BYTES", 7)
    content_type, body = WHOLE[kind]
    path = tmp_path / "image"
    path.write_bytes(body + b"tail")
    with path.open("rb") as file:
        assert examine_open(file.fileno(), len(body) + 4) == Whole(content_type, 64, 48, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_prefix_of_an_image_is_whole(kind: str) -> None:
    """However short of its end a body is cut, it is noticed."""
    body = WHOLE[kind][1]
    cuts = {0, 1, 7, 8, 11, 12, 13, 20, 29, 30, 33, 40, *range(max(0, len(body) - 40), len(body)), len(body) // 2}
    assert [cut for cut in sorted(cuts) if isinstance(look(body[:cut]), Whole)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_the_end_are_counted_not_refused(kind: str) -> None:
    """A harmless oddity never costs a paid image."""
    content_type, body = WHOLE[kind]
    assert look(body + b"\xff\xd9PK\x03\x04") == Whole(content_type, 64, 48, 6)


def _second_half_lost(body: bytes) -> bytes:
    return body[: len(body) // 2]


def _end_lost(body: bytes) -> bytes:
    return body[:-1]


def _start_lost(body: bytes) -> bytes:
    return body[1:]


def _middle_lost(body: bytes) -> bytes:
    return body[: len(body) // 2] + body[len(body) // 2 + 3 :]


def _zeroed_tail(body: bytes) -> bytes:
    return body[: len(body) // 2] + bytes(len(body) - len(body) // 2)


def _no_pixels(body: bytes) -> bytes:
    return body.replace((64).to_bytes(4, "big") + (48).to_bytes(4, "big"), bytes(8), 1)


def _magic_broken(body: bytes) -> bytes:
    return b"\x00" + body[1:]


def _header_only(body: bytes) -> bytes:
    return body[:16]


def _doubled_start(body: bytes) -> bytes:
    return body[:20] + body[: len(body) - 20]


MUTATIONS = (_second_half_lost, _end_lost, _start_lost, _magic_broken, _header_only, _doubled_start)
ENDED = [kind for kind in KINDS if "webp" not in kind]  # WebP has lengths, but neither end marker nor check sum


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__.strip("_"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_not_whole(kind: str, mutate: object) -> None:
    """What a cut, a lost block or a zeroed tail leaves is never taken for an image."""
    assert callable(mutate)
    assert isinstance(look(mutate(WHOLE[kind][1])), NotWhole)


@pytest.mark.parametrize("kind", ENDED)
def test_a_zeroed_tail_is_noticed_by_its_missing_end(kind: str) -> None:
    """What a host with a sparse file serves has the right length and no end marker."""
    assert isinstance(look(_zeroed_tail(WHOLE[kind][1])), NotWhole)


@pytest.mark.parametrize("mutate", [_middle_lost, _no_pixels])
def test_a_png_with_a_wrong_check_sum_is_not_whole(mutate: object) -> None:
    """PNG is the only one that can tell changed bytes in its middle."""
    assert callable(mutate)
    assert isinstance(look(mutate(WHOLE["png"][1])), NotWhole)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_any_changed_byte_of_a_png_is_noticed(place: int, mask: int) -> None:
    """Every byte of it lies under a check sum, a length or a magic number."""
    body = bytearray(WHOLE["png"][1])
    body[place % len(body)] ^= mask
    assert isinstance(look(bytes(body)), NotWhole)


@given(st.binary(max_size=200), st.sampled_from(KINDS), st.integers(0, 60))
@settings(max_examples=300)
def test_the_walk_never_fails_on_any_bytes(junk: bytes, kind: str, keep: int) -> None:
    """Hostile bytes end in a finding, whatever they are."""
    assert isinstance(look(WHOLE[kind][1][:keep] + junk), Whole | NotWhole)


@given(st.sampled_from(KINDS), st.integers(min_value=0))
def test_a_cut_anywhere_is_noticed(kind: str, place: int) -> None:
    """The rule of the prefixes, at random places."""
    body = WHOLE[kind][1]
    assert isinstance(look(body[: place % len(body)]), NotWhole)


@given(st.sampled_from(KINDS), st.integers(min_value=0), st.binary(min_size=1, max_size=4))
def test_overwritten_bytes_never_crash_the_walk(kind: str, place: int, junk: bytes) -> None:
    """Lengths and counts of an attacker lead nowhere outside the bytes."""
    body = WHOLE[kind][1]
    at = place % len(body)
    assert isinstance(look(body[:at] + junk + body[at + len(junk) :]), Whole | NotWhole)


@given(
    st.sampled_from(KINDS), st.integers(min_value=0), st.binary(max_size=3), st.lists(st.integers(1, 90), max_size=60)
)
@settings(max_examples=300)
def test_pieces_are_judged_like_the_whole(kind: str, place: int, junk: bytes, lengths: list[int]) -> None:
    """However a body comes apart on its way, what is found is the same: for whole, cut and damaged ones."""
    body = WHOLE[kind][1]
    at = place % len(body)
    for made in (body, body[:at], body[:at] + junk + body[at + len(junk) :], body + junk):
        examination, begin = Examination(), 0
        for length in (*lengths, len(made)):
            examination.feed(made[begin : begin + length])
            begin += length
        assert examination.end() == look(made)


def test_a_pixel_bomb_is_refused_by_its_header() -> None:
    """50,000 x 50,000 pixels in 300 KB: refused in under 10 ms and 5 MiB, nothing decoded."""
    bomb = png(50_000, 50_000, bytes(304_000))
    tracemalloc.start()
    started = time.perf_counter()
    finding = look(bomb)
    elapsed_s = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(finding, NotWhole)
    assert finding.pixels
    assert elapsed_s < 0.01
    assert peak < 5 << 20


@pytest.mark.parametrize(
    "body",
    [
        b"RIFF\xff\xff\xff\x00WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(64),
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + bytes(12) + b"\xff\xda\x00\x02\xff\xd9",
        b"GIF89a\xff\xff\xff\xff\x00\x00\x00;",
    ],
)
def test_every_type_has_its_pixel_limit(body: bytes) -> None:
    """16 million or 65,535 pixels a side are refused before anything else is read."""
    padded = body + bytes(0x1000000 if body[:4] == b"RIFF" else 0)
    finding = look(padded)
    assert isinstance(finding, NotWhole)
    assert finding.pixels


def test_endless_small_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred megabytes of empty chunks must not hold the disk thread for minutes."""
    monkeypatch.setattr(walks, "MAX_PARTS", 50)
    body = png()
    assert look(body[:33] + chunk(b"tEXt", b"") * 60 + body[33:]) == NotWhole("too many chunks", "image/png")
    assert look(b"\xff\xd8\xff\xe0\x00\x02" + b"\xff\xe0\x00\x02" * 60) == NotWhole("too many segments", "image/jpeg")
    assert look(b"GIF89a\x01\x00\x01\x00\x00\x00\x00!\xfe" + b"\x01a" * 60) == NotWhole("too many blocks", "image/gif")
    assert isinstance(look(b"GIF89a\x01\x00\x01\x00\x00\x00\x00" + b"!\xfe\x00" * 60), NotWhole)
    riff = b"WEBP" + b"JUNK\x00\x00\x00\x00" * 60
    assert look(b"RIFF" + len(riff).to_bytes(4, "little") + riff) == NotWhole("too many chunks", "image/webp")


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\x00\x02\xff\xd9",
        b"\xff\xd8\xff\xe0\x00\x01",
        b"\xff\xd8\xff\x01\x00\x00",
        b"\xff\xd8\xff\xe0\x00\x02\x00\x00",
        b"\xff\xd8\xff\xda\x00\x02" + b"\xff",
        b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01\x11\x00\xff\xda\x00\x02" + b"\xff",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\x00\x00\x00\x01" * 2 + b"\x08\x02\0\0\0") + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"\x00\x00\x00\x01" * 2 + b"\x08\x02\0\0\0") + chunk(b"IEND", b""),
        png()[:33] + b"\x00\x00\x00\x00\x00\x00\x00\x00" + bytes(12),
        b"RIFF\x04\x00\x00\x00WEBP",
        b"RIFF\x0c\x00\x00\x00WEBPJUNK\x10\x00\x00\x00",
        b"RIFF\x10\x00\x00\x00WEBPVP8 \x04\x00\x00\x00\x00\x00\x00\x00",
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00?",
        b"GIF89a\x00\x00\x01\x00\x00\x00\x00;",
    ],
)
def test_a_structure_without_a_picture_is_not_whole(body: bytes) -> None:
    """An end marker alone proves nothing."""
    finding = look(body)
    assert isinstance(finding, NotWhole)
    assert finding.reason


def test_padding_between_jpeg_segments_is_allowed() -> None:
    """Any number of FF bytes may stand before a marker."""
    body = WHOLE["jpeg"][1]
    assert look(body[:2] + b"\xff\xff\xff" + body[2:]) == Whole("image/jpeg", 64, 48, 0)


@pytest.mark.parametrize("page", [b"<!doctype html>", b"\xef\xbb\xbf\n <svg/>", b'{"error": "no"}'])
def test_a_page_is_told_from_a_damaged_image(page: bytes) -> None:
    """A maintenance page twice the same must never make a paid image lost."""
    finding = look(page)
    assert isinstance(finding, NotWhole)
    assert finding.text


def test_a_file_that_shrank_is_cut_off_not_a_crash(tmp_path: Path) -> None:
    """Whatever happens to the file meanwhile, the walk ends in a finding."""
    path = tmp_path / "image"
    path.write_bytes(WHOLE["png"][1][:100])
    fd = os.open(path, os.O_RDONLY)
    try:
        assert isinstance(examine_open(fd, 10_000), NotWhole)
    finally:
        os.close(fd)
