"""What a user asks for: one row, in the endpoint's own words."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

AspectRatio = Literal[
    "1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "1:4", "4:1", "1:8", "8:1"
]
ImageSize = Literal["1K", "2K", "4K"]
ThinkingLevel = Literal["Minimal", "High"]


class Job(BaseModel):
    """One row of a manifest: what to make, in the endpoint's own words, and what to call it.

    Attributes:
        prompt: Any text with a character that is not space; sent exactly as given.
        model: A model id or the vendor's product name; None: the run's default.
        refer_images: Urls (sent as they are) or local paths (sent as data URLs).
        aspect_ratio: Only for gemini-3 and later.
        image_size: `1K`, `2K` or `4K`, with a capital K.
        google_search, image_search: Whether the model may search; sent only when on.
        thinking_level: `Minimal` or `High`.
        id: Names the job across runs; unique in a batch. None: the request itself names it.
        filename: File name without extension, instead of the run's template.
        copies: How many images to make of this row, each paid for.
        extra: Further request fields, passed through as they are.
        meta: Columns of the user's own; they reappear in the results.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    prompt: str
    model: str | None = None
    refer_images: tuple[str, ...] | None = None
    aspect_ratio: AspectRatio | None = None
    image_size: ImageSize | None = None
    google_search: bool | None = None
    image_search: bool | None = None
    thinking_level: ThinkingLevel | None = None
    id: str | None = None
    filename: str | None = None
    copies: Annotated[int, Field(ge=1, le=10_000)] = 1
    extra: dict[str, Any] | None = None
    meta: dict[str, Any] | None = None
