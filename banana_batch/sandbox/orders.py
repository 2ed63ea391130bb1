"""What a paid request may say: the documentation's body, checked to the letter.

Rule 1: a documented field takes its documented values and nothing else; null is none of them.
Rule 2: fields that the documentation does not name are taken and mean nothing here.
"""

from hashlib import blake2b
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from banana_batch.capabilities import DEFAULT_ASPECT_RATIO, DEFAULT_IMAGE_SIZE, MAX_REFERENCES, MODELS
from banana_batch.job import AspectRatio, ImageSize, ThinkingLevel
from banana_batch.text import printable

ModelId = Literal[
    "gemini-2.5-flash-image-preview",
    "gemini-2.5-flash-image",
    "gemini-3-pro-image-preview",
    "gemini-3.1-flash-image-preview",
]
_FLAGS = {"true": True, "false": False}


class BadOrder(Exception):
    """The request can't be filled; `str()` is the endpoint's message."""


def _flag(value: object) -> bool:
    """Read a search flag: the documentation's example sends strings, its older page types a boolean."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _FLAGS:
        return _FLAGS[value]
    raise PydanticCustomError("flag", 'true, false, "true" or "false"')


Flag = Annotated[bool, BeforeValidator(_flag)]
Reference = Annotated[str, StringConstraints(min_length=1)]


class Order(BaseModel):
    """One paid request as it came.

    Attributes:
        aspect_ratio, image_size, thinking_level: None where the request leaves them out.
        refer_images: Urls and data URLs; None where the request leaves them out.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    prompt: str
    model: ModelId
    refer_images: Annotated[list[Reference], Field(max_length=MAX_REFERENCES)] | None = None
    aspect_ratio: AspectRatio | None = None
    image_size: ImageSize | None = None
    google_search: Flag = False
    image_search: Flag = False
    thinking_level: ThinkingLevel | None = None

    @field_validator("refer_images", "aspect_ratio", "image_size", "thinking_level", mode="before")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise PydanticCustomError("null", "a value, or the field left out")
        return value

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value or value.isspace():
            raise PydanticCustomError("blank", "a text that is not blank")
        return value

    @property
    def ratio(self) -> str:
        """The aspect ratio in force."""
        return self.aspect_ratio or DEFAULT_ASPECT_RATIO

    @property
    def size(self) -> str:
        """The image size in force."""
        return self.image_size or DEFAULT_IMAGE_SIZE

    def key(self) -> bytes:
        """Return what makes two orders the same request, 16 bytes; a default spelled out changes nothing."""
        filled = self.model_copy(update={"aspect_ratio": self.ratio, "image_size": self.size})
        return blake2b(filled.model_dump_json().encode(), digest_size=16).digest()

    def echoed_references(self) -> list[str] | None:
        """Return the references for the answer; data URLs only as their kind and length, as answers are small."""
        if self.refer_images is None:
            return None
        return [
            f"{one.partition(',')[0]} ({len(one)} characters)" if one.startswith("data:") else one
            for one in self.refer_images
        ]


def read_order(body: bytes) -> Order:
    """Read a request's body.

    Raises:
        BadOrder: no JSON object, a field with a value that is not documented, or a ratio for a 2.5 model.
    """
    try:
        order = Order.model_validate_json(body)
    except ValidationError as failed:
        error = failed.errors(include_url=False, include_input=False, include_context=False)[0]
        where = "".join(f"{part}: " for part in error["loc"][:2])
        raise BadOrder(printable(f"Parameter error: {where}{error['msg']}")) from None
    if order.ratio != DEFAULT_ASPECT_RATIO and not MODELS[order.model].takes_ratio:
        raise BadOrder("Parameter error: aspect_ratio: only supported by gemini-3 and above")
    return order
