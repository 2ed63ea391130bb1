"""Pictures: real, of the documented size, the same each time."""

import io

import pytest
from PIL import Image

from banana_batch.capabilities import ASPECT_RATIOS, MODELS, pixels
from banana_batch.sandbox.pictures import draw, plain

FLASH = "gemini-3.1-flash-image-preview"


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_a_picture_has_the_documented_size(ratio: str) -> None:
    """Every ratio gives a whole PNG of exactly the documented pixels, drawn or plain."""
    for data in (draw("a cat", FLASH, ratio, "1K"), plain(FLASH, ratio, "1K", "x")):
        image = opened(data)
        assert (image.format, image.size) == ("PNG", pixels(FLASH, ratio, "1K"))


@pytest.mark.parametrize("model", MODELS)
def test_larger_sizes_are_larger(model: str) -> None:
    """2K doubles the sides where the model has sizes at all."""
    assert opened(draw("a cat", model, None, "2K")).size == pixels(model, None, "2K")


@pytest.mark.parametrize(
    "prompt", ["a", "x" * 5000, "word " * 3000, "夜の東京 \u202e\x1b[31m\n\n", "\ud800", "é" * 40 + " b"]
)
def test_any_prompt_can_be_drawn(prompt: str) -> None:
    """Neither length, nor script, nor control characters stop a picture, even on the narrowest format."""
    for ratio in ("1:1", "1:8", "8:1"):
        assert opened(draw(prompt, FLASH, ratio)).format == "PNG"


def test_pictures_tell_their_subject_apart() -> None:
    """The same subject gives the same bytes; another prompt, ratio or number gives others."""
    subjects = [("a cat", "1:1", ()), ("a dog", "1:1", ()), ("a cat", "5:4", ()), ("a cat", "1:1", ("no. 2",))]
    drawn = [draw(prompt, FLASH, ratio, None, details) for prompt, ratio, details in subjects]
    assert drawn == [draw(prompt, FLASH, ratio, None, details) for prompt, ratio, details in subjects]
    assert len(set(drawn)) == len(subjects)
    assert plain(FLASH, None, None, "one") != plain(FLASH, None, None, "two")


def test_a_mislabelled_picture_is_a_real_jpeg() -> None:
    """What is served under the wrong label can be opened all the same."""
    assert opened(draw("a cat", FLASH, jpeg=True)).format == "JPEG"
