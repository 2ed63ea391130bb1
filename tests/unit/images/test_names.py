"""What images are called, and that nothing gets a name outside `images/`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banana_batch.errors import OutputError
from banana_batch.images import names


def test_folders_are_numbered_from_ten_thousand_on() -> None:
    """images/ holds 9,999; then images/1/ with 10,000, and so on."""
    assert names.split_stem(9_999, "09999-cat") == (("images",), "09999-cat")
    assert names.split_stem(10_000, "10000-cat") == (("images", "1"), "10000-cat")
    assert names.split_stem(25_000, "pets/a cat") == (("images", "2", "pets"), "a cat")


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "/",
        "/etc/passwd",
        "../x",
        "a/../x",
        "a//b",
        ".",
        "..",
        ".hidden",
        "a/.git",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 252,
    ],
)
def test_a_stem_that_leads_elsewhere_is_refused(stem: str) -> None:
    """The plan has checked them; a name from another version or a changed state file is checked again."""
    with pytest.raises(OutputError):
        names.split_stem(1, stem)


def test_a_name_is_counted_in_bytes() -> None:
    """128 x é is 256 bytes: too long for any file system."""
    with pytest.raises(OutputError):
        names.split_stem(1, "é" * 128)
    assert len(names.file_name(names.split_stem(1, "é" * 125)[1], "image/webp").encode()) == 255


@given(st.text(max_size=300), st.integers(1, 10**7))
def test_any_stem_stays_below_images_or_is_refused(stem: str, index: int) -> None:
    """No text makes a path that leaves `images/`, hides, or does not fit."""
    try:
        place, name = names.split_stem(index, stem)
    except OutputError:
        return
    for part in (*place, name):
        assert part not in ("", ".", "..")
        assert not part.startswith(".")
        assert "/" not in part
        assert len(part.encode("utf-8", "surrogatepass")) <= 250
    assert place[0] == "images"


def test_a_part_is_hidden_and_known_again() -> None:
    """Only names that we make are removed at start."""
    assert names.PART.fullmatch(names.part_name(12))
    for name in (".part", ".x.part", "12.part", ".12.part2", ".12.part\n", ".-1.part"):
        assert not names.PART.fullmatch(name)


def test_a_numbered_name_fits_too() -> None:
    """In `conflicts/`, the copies of the longest name stay within 255 bytes and whole characters."""
    assert names.numbered("cat.png", 1) == "cat.png"
    assert names.numbered("cat.png", 3) == "cat~3.png"
    assert len(names.numbered("é" * 125 + ".webp", 1_000).encode()) <= 255


def test_damaged_bytes_are_named_by_index_and_content() -> None:
    """What is kept for a person to look at says which job it was."""
    assert names.damaged_name(7, "ab" * 32, "image/png") == "00007-abababababab.png"
    assert names.damaged_name(7, "ab" * 32, None) == "00007-abababababab.bin"
