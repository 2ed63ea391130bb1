"""What the endpoint takes, as data: models, ratios, sizes, pixels.

Source of the enums: the endpoint's documentation. What only third parties say about a model
(`suits`) gives warnings, never errors.
"""

from msgspec import Struct

ASPECT_RATIOS = (
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "1:4", "4:1", "1:8", "8:1",
)  # fmt: skip
IMAGE_SIZES = ("1K", "2K", "4K")
THINKING_LEVELS = ("Minimal", "High")

DEFAULT_MODEL = "gemini-3-pro-image-preview"
DEFAULT_ASPECT_RATIO = "1:1"
DEFAULT_IMAGE_SIZE = "1K"

_TEN_RATIOS = frozenset(ASPECT_RATIOS[:10])


class Model(Struct, frozen=True):
    """One model.

    Attributes:
        id: The name on the wire.
        alias: The vendor's product name; several ids may share one.
        takes_ratio: Whether `aspect_ratio` may be sent at all ("only supported by gemini-3 and above").
        ratios: Ratios that are known to work; others are documented too, so they only warn.
        sizes: Sizes that are known to work; others only warn.
        thinking: Whether `thinking_level` has a meaning.
        google_search, image_search: Whether the flag has a meaning.
        max_references: Reference images that the maker allows.
    """

    id: str
    alias: str
    takes_ratio: bool
    ratios: frozenset[str]
    sizes: frozenset[str]
    thinking: bool
    google_search: bool
    image_search: bool
    max_references: int


def _flash_25(model_id: str) -> Model:
    one = frozenset({DEFAULT_ASPECT_RATIO})
    return Model(model_id, "Nano Banana", False, one, frozenset({"1K"}), False, False, False, 3)


_ALL_SIZES = frozenset(IMAGE_SIZES)

MODELS: dict[str, Model] = {
    model.id: model
    for model in (
        _flash_25("gemini-2.5-flash-image-preview"),
        _flash_25("gemini-2.5-flash-image"),
        Model(
            "gemini-3-pro-image-preview", "Nano Banana Pro", True, _TEN_RATIOS, _ALL_SIZES, True, True, False, 14
        ),
        Model(
            "gemini-3.1-flash-image-preview", "Nano Banana 2", True, frozenset(ASPECT_RATIOS), _ALL_SIZES,
            True, True, True, 14,
        ),
    )
}  # fmt: skip

# "Nano Banana" names two ids in the documentation; the one without "preview" is meant.
ALIASES: dict[str, str] = {
    "nano banana": "gemini-2.5-flash-image",
    "nano banana pro": "gemini-3-pro-image-preview",
    "nano banana 2": "gemini-3.1-flash-image-preview",
}

MAX_REFERENCE_BYTES = 7 * 1024 * 1024
MAX_REFERENCES = 14

# Pixels at 1K. 2K and 4K are twice and four times these.
_PIXELS_3: dict[str, tuple[int, int]] = {
    "1:1": (1024, 1024), "2:3": (848, 1264), "3:2": (1264, 848), "3:4": (896, 1200), "4:3": (1200, 896),
    "4:5": (928, 1152), "5:4": (1152, 928), "9:16": (768, 1376), "16:9": (1376, 768), "21:9": (1584, 672),
    "1:4": (512, 2048), "4:1": (2048, 512), "1:8": (384, 3072), "8:1": (3072, 384),
}  # fmt: skip
_PIXELS_25: dict[str, tuple[int, int]] = {
    "1:1": (1024, 1024), "2:3": (832, 1248), "3:2": (1248, 832), "3:4": (864, 1184), "4:3": (1184, 864),
    "4:5": (896, 1152), "5:4": (1152, 896), "9:16": (768, 1344), "16:9": (1344, 768), "21:9": (1536, 672),
}  # fmt: skip
_SCALE = {"1K": 1, "2K": 2, "4K": 4}


def resolve_model(name: str) -> str:
    """Return the model id for an id or an alias in any case; unknown names come back unchanged."""
    folded = " ".join(name.split()).casefold()
    if folded in ALIASES:
        return ALIASES[folded]
    return folded if folded in MODELS else name


def pixels(model_id: str, aspect_ratio: str | None, image_size: str | None) -> tuple[int, int] | None:
    """Return the documented width and height; None for a model we know nothing of."""
    model = MODELS.get(model_id)
    if model is None:
        return None
    ratio = aspect_ratio or DEFAULT_ASPECT_RATIO
    if not model.takes_ratio:
        return _PIXELS_25.get(ratio)
    scale = _SCALE[image_size or DEFAULT_IMAGE_SIZE]
    width, height = _PIXELS_3[ratio]
    return width * scale, height * scale
