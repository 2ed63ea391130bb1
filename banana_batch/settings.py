"""The settings of a run: one model for options, job-file keys, environment variables and their help.

Rule 1: a setting exists once, here. `cli/options.py` makes the options from it, `[run]` of a job file takes the
        same names, and `BANANA_<NAME>` the same values.
Rule 2: command line > environment > job file > default.
Rule 3: nothing is read here: the environment and the job file are handed in.
"""

import re
from collections.abc import Mapping
from datetime import time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct, convert
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from . import money
from .addresses import is_loopback
from .job import AspectRatio, ImageSize, ThinkingLevel
from .run_settings import RunSettings

ENV_PREFIX = "BANANA_"
DEFAULT_BASE_URL = "https://api.ttapi.org"

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_UNITS_S = (3600.0, 60.0, 1.0)


class Option(Struct, frozen=True):
    """How a setting looks on the command line.

    Attributes:
        metavar: What stands for its value in the help.
        short: One-letter form.
        group: Heading in the help.
    """

    metavar: str = ""
    short: str | None = None
    group: str = "Options"


MAIN = "Often used"
REQUEST = "For rows that say nothing"
MONEY = "Money and doubts"
NIGHT = "Time and outages"
FILES = "Names and manifests"
WIRE = "Endpoint and network"
OUTPUT = "Output"


def parse_duration(value: object) -> object:
    """Turn `90`, `90s`, `15m`, `6h`, `1h30m` into seconds; numbers pass through."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError("a duration such as 90, 90s, 15m or 6h")
    return sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS_S, strict=True) if part)


def _parse_amount(value: object) -> object:
    if isinstance(value, str):
        return money.parse_credits(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return money.parse_credits(str(Decimal(str(value))))
    return value


def _parse_clock(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,2}):(\d{2})", value.strip())
        if match is None or int(match[1]) > 23 or int(match[2]) > 59:
            raise ValueError("a time of day such as 06:30")
        return time(int(match[1]), int(match[2]))
    return value


def _parse_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, le=31 * 86400)]
Amount = Annotated[int, BeforeValidator(_parse_amount), Field(ge=0)]
# Nothing set aside for a call would be no cap on calls.
Price = Annotated[int, BeforeValidator(_parse_amount), Field(gt=0)]
ClockTime = Annotated[time, BeforeValidator(_parse_clock)]
NameList = Annotated[list[str], BeforeValidator(_parse_list)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]


class Settings(BaseModel):
    """Everything `run` can be told. `Settings(out="outputs/cats", budget="$5")` does for the Python API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Annotated[Path | None, Option("DIR", "o", MAIN)] = Field(
        None, description="Output folder [default: outputs/<manifest stem> beside the manifest]"
    )
    concurrency: Annotated[int, Option("N", "c", MAIN)] = Field(
        8, ge=1, le=10_000, description="Paid calls in flight at most; the governor moves below it"
    )
    budget: Annotated[Amount | None, Option("CREDITS|'$USD'", None, MAIN)] = Field(
        None, description="Hard cap over the life of the batch: spent + at risk + reserved [default: none]"
    )
    rpm: Annotated[Positive | None, Option("N", None, MAIN)] = Field(
        None, description="Paid calls started per minute at most [default: none]"
    )
    limit: Annotated[Positive | None, Option("N", None, MAIN)] = Field(
        None, description="Send at most N jobs for the first time in this run [default: none]"
    )
    stop_by: Annotated[ClockTime | None, Option("HH:MM", None, MAIN)] = Field(
        None, description="Start no call that is likely to end later (local time); drain, exit 7"
    )
    max_duration: Annotated[Duration | None, Option("DURATION", None, MAIN)] = Field(
        None, description="The same, counted from the start: 90s, 15m, 6h"
    )
    sandbox: Annotated[bool, Option("", None, MAIN)] = Field(
        False, description="Use the embedded sandbox endpoint: free, needs no key"
    )
    dry_run: Annotated[bool, Option("", "n", MAIN)] = Field(False, description="Only plan: send nothing, write nothing")
    yes: Annotated[bool, Option("", "y", MAIN)] = Field(False, description="Answer yes to every question")

    model: Annotated[str | None, Option("MODEL", None, REQUEST)] = Field(
        None, description="Model id or product name such as 'Nano Banana Pro'"
    )
    aspect_ratio: Annotated[AspectRatio | None, Option("RATIO", None, REQUEST)] = Field(
        None, description="Such as 16:9"
    )
    image_size: Annotated[ImageSize | None, Option("SIZE", None, REQUEST)] = Field(None, description="1K, 2K or 4K")
    thinking_level: Annotated[ThinkingLevel | None, Option("LEVEL", None, REQUEST)] = Field(
        None, description="Minimal or High"
    )
    google_search: Annotated[bool | None, Option("", None, REQUEST)] = Field(
        None, description="Let the model search the web"
    )
    image_search: Annotated[bool | None, Option("", None, REQUEST)] = Field(
        None, description="Let the model search images"
    )
    prompt: Annotated[str | None, Option("TEMPLATE", None, REQUEST)] = Field(
        None, description="Prompt made from a row's columns: 'a {product} in {color}'"
    )

    in_doubt: Annotated[Literal["ask", "keep", "resend", "drop"], Option("ask|keep|resend|drop", None, MONEY)] = Field(
        "ask", description="Jobs in doubt at start; ask is keep where there is no terminal"
    )
    run_budget: Annotated[Amount | None, Option("CREDITS", None, MONEY)] = Field(
        None, description="Cap for this run alone [default: none]"
    )
    max_price: Annotated[Price | None, Option("CREDITS", None, MONEY)] = Field(
        None,
        description="The most one image may cost, reserved until a price is seen [default: 50, or what is left]",
    )
    retries: Annotated[int, Option("N", None, MONEY)] = Field(
        2, ge=0, le=100, description="Further attempts of a job after refusals that may pass (429 and 499 not counted)"
    )
    timeout: Annotated[Duration | None, Option("SECONDS", None, NIGHT)] = Field(
        None, gt=0, description="From the send of a request to its whole answer [default: 360, 4K 600]"
    )
    grace: Annotated[Duration | None, Option("SECONDS", None, NIGHT)] = Field(
        None, description="How long a drain waits for calls in flight [default: timeout + 30]"
    )
    give_up_after: Annotated[Duration, Option("DURATION", None, NIGHT)] = Field(
        900.0, description="Keep trying this long while the endpoint only fails, then exit 69 [default: 15m]"
    )
    download_wait: Annotated[Duration, Option("DURATION", None, NIGHT)] = Field(
        900.0,
        description="How long to wait, after the last paid call, for images not to be had yet [default: 15m]",
    )
    on_finish: Annotated[str | None, Option("COMMAND", None, NIGHT)] = Field(
        None, description="Run once when the run ends, the JSON summary on its standard input"
    )

    on_change: Annotated[Literal["refuse", "accept"], Option("refuse|accept", None, FILES)] = Field(
        "refuse", description="A known id with another request, or more than half of the known rows gone"
    )
    dedupe: Annotated[Literal["allow", "reuse", "error"], Option("allow|reuse|error", None, FILES)] = Field(
        "allow", description="Rows with the same request; reuse: pay once, link the image for each"
    )
    filename: Annotated[str, Option("TEMPLATE", None, FILES)] = Field(
        "{index:05d}-{slug}",
        description="Of index, id, slug, model, aspect_ratio, image_size, copy, hash and columns",
    )
    format: Annotated[
        Literal["txt", "csv", "tsv", "jsonl", "ndjson", "json", "toml"] | None, Option("FORMAT", None, FILES)
    ] = Field(None, description="Of the manifest, where its name does not say: txt, csv, tsv, jsonl, json, toml")
    allow_unknown_model: Annotated[bool, Option("", None, FILES)] = Field(
        False, description="Take model ids that this version does not know"
    )

    base_url: Annotated[str, Option("URL", None, WIRE)] = Field(DEFAULT_BASE_URL, description="Gateway")
    proxy: Annotated[str | None, Option("URL", None, WIRE)] = Field(
        None, description="For the gateway and the images; the environment's proxies are not used"
    )
    allow_host: Annotated[NameList, Option("HOST[:PORT]", None, WIRE)] = Field(
        # pydantic copies it; of a factory it would want the signature, and for `list` that is 1 % of a start.
        [],
        description="Images may come from there too, whatever its address (repeatable)",
    )
    ca_file: Annotated[Path | None, Option("FILE", None, WIRE)] = Field(
        None, description="Trust these certificates (PEM) beside the system's"
    )
    key_file: Annotated[Path | None, Option("FILE", None, WIRE)] = Field(
        None, description="File with the key, mode 0600 [default: $CREDENTIALS_DIRECTORY/ttapi_key, then TT_API_KEY]"
    )

    json_output: Annotated[bool, Option("", None, OUTPUT)] = Field(
        False, alias="json", description="One JSON object on standard output, nothing else there"
    )
    quiet: Annotated[bool, Option("", "q", OUTPUT)] = Field(False, description="Say nothing but trouble")
    verbose: Annotated[bool, Option("", "v", OUTPUT)] = Field(False, description="Say more")
    no_progress: Annotated[bool, Option("", None, OUTPUT)] = Field(False, description="No progress bar")
    log_file: Annotated[Path | None, Option("FILE", None, OUTPUT)] = Field(
        None, description="Events as JSON lines [default: run.log in the output folder]"
    )

    @field_validator("base_url")
    @classmethod
    def _gateway_is_private(cls, value: str) -> str:
        parts = urlsplit(value)
        if not parts.hostname or parts.scheme not in ("http", "https") or parts.username or parts.password:
            raise ValueError("an https address such as https://api.ttapi.org")
        if parts.query or parts.fragment or parts.port == 0:
            raise ValueError("an address without ? and #, and with a port that there is")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError("https, as the key and the prompts travel there (http only to this machine itself)")
        return value.rstrip("/")

    @field_validator("proxy")
    @classmethod
    def _proxy_is_one(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError("an http or https address such as http://127.0.0.1:3128")
        return value

    @field_validator("out", mode="before")
    @classmethod
    def _out_is_named(cls, value: object) -> object:
        if value == "":
            raise ValueError("a folder (a variable that is not set?)")
        return value

    @model_validator(mode="after")
    def _quiet_or_verbose(self) -> "Settings":
        if self.quiet and self.verbose:
            raise ValueError("quiet or verbose, not both")
        return self

    @property
    def of_run(self) -> RunSettings:
        """What of them a run needs."""
        return convert(self, RunSettings, from_attributes=True)


def option_name(name: str) -> str:
    """Return a setting's name as users write it in a job file and, with dashes, on the command line."""
    field = Settings.model_fields[name]
    return field.alias or name


def described(field: FieldInfo) -> Option:
    """Return how a setting looks on the command line."""
    return next(part for part in field.metadata if isinstance(part, Option))


class BadSetting(Struct, frozen=True):
    """A setting that can't be used.

    Attributes:
        source: `option`, `environment` or `job file`.
        name: As the user wrote it: `--rpm`, `BANANA_RPM`, `rpm`.
    """

    source: str
    name: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}: {self.found} → {self.allowed}" if self.found else f"{self.name} → {self.allowed}"


class BadSettings(Exception):
    """Settings that can't be used, all of them at once."""

    def __init__(self, bad: list[BadSetting]) -> None:
        super().__init__("; ".join(map(str, bad)))
        self.bad = bad


def environment_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that `BANANA_<NAME>` variables give; empty values say nothing."""
    found = {}
    for name in Settings.model_fields:
        value = environ.get(ENV_PREFIX + option_name(name).upper(), "")
        if value:
            found[option_name(name)] = value
    return found


def wants_json(options: Mapping[str, object], environ: Mapping[str, str]) -> bool:
    """Tell whether a JSON object is wanted even where the settings as a whole can't be used."""
    said = options.get("json", environment_settings(environ).get("json", False))
    try:
        return Settings.model_validate({"json": said}).json_output
    except ValidationError:
        return False


# Who says one has not said the other: a source below may still say it, and does not count.
_OPPOSITE = {"quiet": "verbose", "verbose": "quiet"}


def resolve(options: Mapping[str, object], environ: Mapping[str, str], job_file: Mapping[str, object]) -> Settings:
    """Merge the three sources by precedence.

    Raises:
        BadSettings: each bad value with the source it came from.
    """
    sources: list[tuple[str, Mapping[str, object]]] = [
        ("option", options),
        ("environment", environment_settings(environ)),
        ("job file", job_file),
    ]
    merged: dict[str, object] = {}
    origin: dict[str, str] = {}
    for source, values in sources:
        said = set(merged)
        for name, value in values.items():
            if name not in merged and _OPPOSITE.get(name) not in said:
                merged[name], origin[name] = value, source
    try:
        return Settings.model_validate(merged)
    except ValidationError as failed:
        raise BadSettings([_bad(error, origin) for error in failed.errors()]) from None


_WRITTEN = {
    "option": lambda name: "--" + name.replace("_", "-"),
    "environment": lambda name: ENV_PREFIX + name.upper(),
    "job file": lambda name: name,
}


def _bad(error: Any, origin: Mapping[str, str]) -> BadSetting:
    name = str(error["loc"][0]) if error["loc"] else "quiet"
    source = origin.get(name, "option")
    allowed = "no such setting" if error["type"] == "extra_forbidden" else _allowed(error)
    found = repr(error["input"]) if error["loc"] else "with --verbose"
    if error["type"] == "extra_forbidden":
        found = ""  # whatever it is: a key under a name of the user's own has no place on a screen
    return BadSetting(source, _WRITTEN[source](name), found[:120], allowed)


def _allowed(error: Any) -> str:
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context.get("error", error["msg"]))
    if error["type"] == "literal_error":
        return f"one of {context['expected']}"
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


__all__ = ["BadSetting", "BadSettings", "Option", "Settings", "resolve"]
