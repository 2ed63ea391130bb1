"""The words of a prompt in a file's name."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banana_batch.text import slug


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red fox", "a-red-fox"),
        ("  -- a -- red,  fox!? ", "a-red-fox"),
        ("Crème brûlée, 4 × 5", "creme-brulee-4-5"),
        ("漢字", ""),
        ("", ""),
        ("x" * 70, "x" * 60),
        ("y" * 50 + " and more of it", "y" * 50 + "-and-more"),
        ("z" * 60 + " more", "z" * 60),
    ],
)
def test_words_are_joined_by_single_dashes_and_kept_whole(text: str, expected: str) -> None:
    """Nothing but lower-case ASCII letters, digits and dashes between them; at most 60 bytes."""
    assert slug(text) == expected


@given(st.text(alphabet=st.one_of(st.sampled_from("aZ09 -_,.\t\n"), st.characters()), max_size=600))
def test_a_slug_is_the_words_of_its_text(text: str) -> None:
    """The same as word by word, for any text."""
    words = re.findall("[a-z0-9]+", _plain(text[:480]))
    whole = "-".join(words)
    made = slug(text)
    assert whole.startswith(made)
    assert made == whole if len(whole) <= 60 else len(made) <= 60
    assert not made.endswith("-")


def _plain(text: str) -> str:
    """Return what ASCII there is in it; what is left out leaves no gap."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
