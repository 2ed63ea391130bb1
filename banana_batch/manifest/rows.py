"""What a row may say: its fields, their types, and what to tell where a value is wrong.

Rule 1: where the endpoint's documentation speaks, a wrong value is an error; a near miss is named, never mended.
Rule 2: the habits of spreadsheets (`TRUE`, `1.0`, empty cells) are understood where they can mean one thing only.
Rule 3: `Row` is the one description of a row; the JSON Schema that is shipped is made from it.
"""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from banana_batch.capabilities import ALIASES, ASPECT_RATIOS, IMAGE_SIZES, MODELS, THINKING_LEVELS
from banana_batch.job import AspectRatio, ImageSize, ThinkingLevel

from .formats import BadJson, json_value
from .reporting import Report, one_of, shown

MAX_ID_BYTES = 200
MAX_COPIES = 10_000

_UNSAFE_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_NEAR_WORDS = {"yes": "true", "on": "true", "y": "true", "t": "true", "wahr": "true", "no": "false", "off": "false"}
_WHOLE = re.compile(r"(\d{1,9})(?:\.0+)?")


def says_nothing(value: Any) -> bool:
    """Tell whether a cell is empty; a prompt of spaces is another matter."""
    return value is None or (type(value) is str and (not value or value.isspace()))


def _flag(value: Any) -> Any:
    if type(value) is str:
        return _WORDS.get(value.casefold(), value)
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


Flag = Annotated[bool, BeforeValidator(_flag, json_schema_input_type=bool | str)]


class Choices(BaseModel):
    """What rows choose from the endpoint's lists; few combinations occur, so each is validated once."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str | None = Field(
        None, description="Model id, or the vendor's product name such as 'Nano Banana Pro', in any case"
    )
    aspect_ratio: AspectRatio | None = Field(None, description="Only for gemini-3 and later")
    image_size: ImageSize | None = Field(None, description="With a capital K")
    google_search: Flag | None = Field(None, description="Let the model search the web")
    image_search: Flag | None = Field(None, description="Let the model search images")
    thinking_level: ThinkingLevel | None = Field(None, description="How long the model thinks")


CHOICES: tuple[str, ...] = tuple(Choices.model_fields)


class RequestFields(Choices):
    """What goes to the endpoint. As `[defaults]` of a job file, `prompt` is a template over a row's columns."""

    model_config = ConfigDict(defer_build=True)  # most runs validate Choices alone

    prompt: str | None = Field(
        None, description="Any text with a character that is not space; sent exactly as given", pattern=r"\S"
    )
    refer_images: list[str] | str | None = Field(
        None, description="Urls, sent as they are, or paths relative to this file; in a cell separated by |"
    )
    extra: dict[str, Any] | str | None = Field(None, description="Further request fields, passed through as they are")


class Row(RequestFields):
    """One row: what to make and what to call it. Other columns are kept as the job's `meta`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str | int | None = Field(None, description="Names the job across runs; unique in a batch")
    filename: str | None = Field(None, description="File name without extension; folders with /")
    copies: Annotated[int, Field(ge=1, le=MAX_COPIES)] | str | None = Field(
        None, description="How many images to make of this row, each paid for"
    )


FIELDS: tuple[str, ...] = tuple(Row.model_fields)
REQUEST_FIELDS: tuple[str, ...] = (*CHOICES, "prompt", "refer_images")


def read_choices(given: Mapping[str, Any], report: Report) -> Choices | None:
    """Validate what a row chooses; None, and told, where a value is wrong."""
    said = {name: value for name, value in given.items() if not says_nothing(value)}
    try:
        return Choices(**said)
    except ValidationError as failed:
        for name in dict.fromkeys(str(error["loc"][0]) for error in failed.errors(include_url=False)):
            report.problem(name, shown(said[name]), allowed(name, said[name]))
        return None


def allowed(name: str, value: Any) -> str:
    """Say what a field takes, with the likely meaning of a near miss."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if name == "model":
        rule, near = f"{', '.join(MODELS)}; any other with --allow-unknown-model", _near_model(text)
    elif name == "aspect_ratio":
        rule, near = one_of(ASPECT_RATIOS), _near_ratio(text)
    elif name == "image_size":
        rule, near = one_of(IMAGE_SIZES), _near_size(text)
    elif name == "thinking_level":
        rule, near = one_of(THINKING_LEVELS), _closest(text.strip().capitalize(), THINKING_LEVELS)
    else:
        word = text.strip().casefold()
        rule, near = "true or false", word if word in _WORDS else _NEAR_WORDS.get(word)
    return f"{rule} (did you mean {near}?)" if near else rule


def _closest(text: str, names: tuple[str, ...], cutoff: float = 0.6) -> str | None:
    return next(iter(get_close_matches(text, names, 1, cutoff)), None)


def _near_model(text: str) -> str | None:
    folded = " ".join(text.split()).casefold()
    started = [name for name in MODELS if folded and name.startswith(folded)]
    if len(started) == 1:
        return started[0]
    near = _closest(folded, (*MODELS, *ALIASES))
    return ALIASES.get(near, near) if near else None


def _near_ratio(text: str) -> str | None:
    # `16/9`, `16x9`, `16 : 9`, and `16:09` or `16:09:00`, which spreadsheets make of a ratio.
    numbers = re.findall(r"\d+", text)
    near = ":".join(str(int(number)) for number in numbers[:2]) if 2 <= len(numbers) <= 3 else ""
    return near if near in ASPECT_RATIOS else None


def _near_size(text: str) -> str | None:
    compact = re.sub(r"\s", "", text).upper().removesuffix("PX")
    near = {"1024": "1K", "2048": "2K", "4096": "4K", "1": "1K", "2": "2K", "4": "4K"}.get(compact, compact)
    return near if near in IMAGE_SIZES else None


def read_id(value: Any, report: Report) -> str | None:
    """Return a row's own id; None where it has none that can be used (then told)."""
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        report.problem("id", shown(value), "a text, or a whole number")
    elif "~" in value:
        report.problem("id", shown(value), "a text without ~, which marks copies (x~2)")
    elif _UNSAFE_ID.search(value):
        report.problem("id", shown(value), "a text without control characters")
    elif len(value.encode()) > MAX_ID_BYTES:
        report.problem("id", shown(value), f"at most {MAX_ID_BYTES} bytes")
    else:
        return value
    return None


def read_copies(value: Any, report: Report) -> int:
    """Return how many images a row wants; 1, and told, where that can't be understood."""
    if type(value) is str and (match := _WHOLE.fullmatch(value.strip())):
        value = int(match[1])
    elif type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 1 <= value <= MAX_COPIES:
        return value
    report.problem("copies", shown(value), f"a whole number from 1 to {MAX_COPIES:,}")
    return 1


def read_extra(value: Any, report: Report) -> dict[str, Any]:
    """Return a row's further request fields; none, and told, where they can't be used."""
    rule = 'an object such as {"seed": 7}'
    if type(value) is str:
        try:
            value = json_value(value)
        except BadJson as bad:
            report.problem("extra", str(bad), rule)
            return {}
    if type(value) is not dict:
        report.problem("extra", shown(value), rule)
        return {}
    for name in value:
        if name in REQUEST_FIELDS:
            report.problem("extra", shown(name), f"fields that have no column of their own: give {name} as a column")
    return value


def read_references(value: Any, report: Report) -> tuple[str, ...]:
    """Return a row's reference images as it names them; none, and told, where they can't be understood."""
    rule = "a list of urls or paths; in a cell separated by |"
    if type(value) is str:
        if value.lstrip().startswith("["):
            try:
                value = json_value(value)
            except BadJson as bad:
                report.problem("refer_images", str(bad), rule)
                return ()
        else:
            value = [part for part in map(str.strip, value.split("|")) if part]
    if type(value) in (list, tuple) and all(type(part) is str and part and not part.isspace() for part in value):
        return tuple(value)
    report.problem("refer_images", shown(value), rule)
    return ()
