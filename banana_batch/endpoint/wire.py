"""What the endpoint puts on the wire: its JSON envelope, read strictly and cheaply.

Rule 1: amounts are read as integers or decimals, never as binary floats.
Rule 2: what can be read in two ways (a key given twice, nesting without end) is not read at all.
Rule 3: content decides, never the Content-Type header.
"""

import codecs
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from msgspec import Struct

SUCCESS = "SUCCESS"
FAILED = "FAILED"
QUEUED = frozenset({"PENDING_QUEUE", "ON_QUEUE"})

MAX_ANSWER_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_RETRY_AFTER_S = 300.0
ABSURD_RETRY_AFTER_S = 86_400.0

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_SNIPPET_CHARS = 160


class Flaw(Enum):
    """Why a body is no envelope."""

    NOT_JSON = "not JSON"
    AMBIGUOUS = "JSON with a key given twice, or nested too deeply"
    UNKNOWN = "JSON, but no envelope"


class Envelope(Struct):
    """The endpoint's `{"status", "message", "data"}`.

    Attributes:
        status: Any text; `SUCCESS` and `FAILED` are documented.
        message: The endpoint's words; None if it gave none.
        data: Its `data` object; empty where it is null, absent or no object.
        job_id: Of an asynchronous product's answer.
    """

    status: str
    message: str | None
    data: Mapping[str, Any]
    job_id: str | None


class _KeyTwice(ValueError):
    """An object gives the same key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _KeyTwice
    return made


def _integer(digits: str) -> int | Decimal:
    # int() refuses 4,300 digits with an error that would make an answer with an absurd quota unreadable.
    return int(digits) if len(digits) <= 20 else Decimal(digits)


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return None


def _constant(_name: str) -> None:
    """Read NaN and the infinities as null: no amount, and no reason to lose the rest of the answer."""


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_decimal, parse_int=_integer, parse_constant=_constant
)


def parse(body: bytes) -> Envelope | Flaw:
    """Read an answer's body."""
    try:
        value = _DECODER.decode(body.removeprefix(codecs.BOM_UTF8).decode())
    except (_KeyTwice, RecursionError):
        return Flaw.AMBIGUOUS
    except ValueError:
        return Flaw.NOT_JSON
    # Fewer brackets than levels: deep nesting is impossible, and the walk is saved.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        return Flaw.AMBIGUOUS
    status = value.get("status") if isinstance(value, dict) else None
    if not isinstance(status, str):
        return Flaw.UNKNOWN
    message, data = value.get("message"), value.get("data")
    data = data if isinstance(data, dict) else {}
    job_id = _job_id(value, data) if status in QUEUED else None
    return Envelope(status, message if isinstance(message, str) else None, data, job_id)


def _job_id(value: dict[str, Any], data: dict[str, Any]) -> str | None:
    for place in (data, value):
        for name in ("jobId", "job_id"):
            if isinstance(place.get(name), str | int):
                return str(place[name])
    return None


def _deeper_than(value: object, levels: int) -> bool:
    """Tell whether containers nest deeper than `levels`; breadth first, so that depth costs no stack."""
    layer: list[object] = [value]
    for _ in range(levels + 1):
        containers = [item for item in layer if isinstance(item, dict | list)]
        if not containers:
            return False
        layer = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return True


def image_url(data: Mapping[str, Any]) -> str | None:
    """Return the url of a paid image: any text that is not empty."""
    url = data.get("image_url")
    if not isinstance(url, str) or not url:
        return None
    # A lone surrogate can't be written to the state file; the job is paid all the same.
    return _LONE_SURROGATE.sub("\ufffd", url)


def snippet(body: bytes) -> str:
    """Return the start of a body that is no envelope, for a message: an HTML page's title, else its first words."""
    text = body[:4096].decode("utf-8", "replace")
    title = _TITLE.search(text)
    return " ".join((title[1] if title else text).split())[:_SNIPPET_CHARS]


def retry_after_s(value: str | None, date: str | None) -> float | None:
    """Return the wait that a Retry-After header asks for, seconds, at most 300; None if it says nothing usable.

    Args:
        value: Seconds or an HTTP date.
        date: The answer's own Date header, against which a date is read: our clock may be wrong.
    """
    if not value:
        return None
    text = value.strip()
    wait = float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) else _seconds_between(date, text)
    if wait is None or not 0 <= wait <= ABSURD_RETRY_AFTER_S:
        return None
    return min(wait, MAX_RETRY_AFTER_S)


def _seconds_between(start: str | None, end: str) -> float | None:
    if not start:
        return None
    try:
        return (_aware(parsedate_to_datetime(end)) - _aware(parsedate_to_datetime(start))).total_seconds()
    except (ValueError, OverflowError):
        return None


def _aware(when: datetime) -> datetime:
    return when if when.tzinfo else when.replace(tzinfo=UTC)  # "-0000" means UTC of an unknown place
