"""What a paid request may say."""

import json
from typing import Any

import pytest

from banana_batch.capabilities import ASPECT_RATIOS, IMAGE_SIZES, MODELS, THINKING_LEVELS
from banana_batch.sandbox.orders import BadOrder, read_order

PRO = "gemini-3-pro-image-preview"


def body(**fields: Any) -> bytes:
    return json.dumps({"prompt": "a cute cat", "model": PRO} | fields).encode()


@pytest.mark.parametrize(
    "fields",
    [{"model": model} for model in MODELS]
    + [{"aspect_ratio": ratio} for ratio in ASPECT_RATIOS]
    + [{"image_size": size} for size in IMAGE_SIZES]
    + [{"thinking_level": level} for level in THINKING_LEVELS]
    + [{flag: value} for flag in ("google_search", "image_search") for value in (True, False, "true", "false")]
    + [{"refer_images": []}, {"refer_images": ["https://cdn.ttapi.io/xxx1.png"]}, {"sync_return": "true"}]
    + [{"model": "gemini-2.5-flash-image", "aspect_ratio": "1:1"}, {"prompt": " \u202e\x00 x "}],
)
def test_documented_values_are_taken(fields: dict[str, Any]) -> None:
    """Every documented value of every field makes an order; undocumented fields do no harm."""
    read = read_order(body(**fields)).model_dump()
    flags = {"true": True, "false": False}
    assert {name: read[name] for name in fields} == {
        name: flags.get(value, value) if name.endswith("_search") else value for name, value in fields.items()
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None},
        {"prompt": ""},
        {"prompt": " \n\u3000"},
        {"prompt": 5},
        {"model": "Nano Banana Pro"},
        {"model": None},
        {"image_size": "2k"},
        {"image_size": None},
        {"aspect_ratio": "16/9"},
        {"aspect_ratio": "16:9", "model": "gemini-2.5-flash-image"},
        {"thinking_level": "high"},
        {"google_search": "True"},
        {"google_search": 1},
        {"image_search": None},
        {"refer_images": "https://cdn.ttapi.io/xxx1.png"},
        {"refer_images": [""]},
        {"refer_images": ["x"] * 15},
    ],
)
def test_anything_else_is_refused(fields: dict[str, Any]) -> None:
    """A value that the documentation does not list is refused, and the message names the field."""
    with pytest.raises(BadOrder, match=f"Parameter error: .*{next(iter(fields))}"):
        read_order(body(**fields))


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b'{"prompt": "\xff"}', body(prompt="\ud800"), b"[" * 9999])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    """Neither broken JSON, nor bytes that are no UTF-8, nor deep nesting gets further than the check."""
    with pytest.raises(BadOrder):
        read_order(raw)


def test_a_default_spelled_out_is_the_same_request() -> None:
    """The key of a request does not change with defaults written down or the form of a flag."""
    plain = read_order(body())
    spelled = read_order(body(aspect_ratio="1:1", image_size="1K", google_search="false"))
    assert plain.key() == spelled.key()
    assert plain.key() != read_order(body(google_search=True)).key()


def test_an_answer_stays_small_whatever_was_sent() -> None:
    """Urls are echoed as they came, megabytes of data url only by kind and length."""
    order = read_order(body(refer_images=["https://cdn.ttapi.io/1.png", "data:image/png;base64," + "A" * 5_000_000]))
    assert order.echoed_references() == ["https://cdn.ttapi.io/1.png", "data:image/png;base64 (5000022 characters)"]
