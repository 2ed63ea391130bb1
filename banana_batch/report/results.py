"""results.jsonl and its CSV form: one object per job, in the order of the rows handed in.

Rule 1: the keys and their order are fixed (KEYS); what the row and the defaults left out is null.
Rule 2: a million rows pass through in flat memory.
Rule 3: JSON is ASCII, so that no terminal, log or spreadsheet meets a raw control character or bidi mark.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from pydantic_core import from_json, to_json

from banana_batch.models import RunResult
from banana_batch.money import credits_text
from banana_batch.text import csv_cell, plain_json

from .atomic import replaced
from .moments import rfc3339

FILE_NAME = "results.jsonl"

KEYS: tuple[str, ...] = tuple(field.name for field in fields(RunResult))

COLUMNS: tuple[str, ...] = (
    "job", "id", "state", "request", "unsent", "meta", "path", "bytes", "sha256", "width", "height", "content_type",
    "image_url", "credits", "attempts", "latency_s", "sent_at_us", "done_at_us", "error_class", "error_message",
    "warning",
)  # fmt: skip

_FLAGS = {"true": True, "false": False}
_SURROGATE = re.compile("[\ud800-\udfff]")


def result_dict(row: Iterable[Any]) -> dict[str, Any]:
    """Return a job's line of results.jsonl as an object, with KEYS in order.

    Args:
        row: The columns COLUMNS, in their order. `job` is the index, `request` the wire body and `unsent` and `meta`
            JSON texts (the last two may be null), `path` relative to the output folder, `sha256` bytes, `credits` in
            millionths, `sent_at_us` and `done_at_us` microseconds since the epoch. All but `job`, `id`, `state`,
            `request` and `attempts` may be null.
    """
    (
        job, name, state, request, unsent, meta, path, size, sha256, width, height, content_type, image_url, micro,
        attempts, latency_s, sent_us, done_us, error_class, error_message, warning,
    ) = row  # fmt: skip
    asked = _object(request)
    if unsent:
        asked = _object(unsent) | asked
    said = asked.get
    return {
        "id": name,
        "index": job,
        "state": state,
        "prompt": said("prompt"),
        "model": said("model"),
        "aspect_ratio": said("aspect_ratio"),
        "image_size": said("image_size"),
        "thinking_level": said("thinking_level"),
        "google_search": _flag(said("google_search")),
        "image_search": _flag(said("image_search")),
        "refer_images": said("refer_images"),
        "meta": _object(meta) if meta else None,
        "image": path,
        "bytes": size,
        "sha256": None if sha256 is None else sha256.hex(),
        "width": width,
        "height": height,
        "content_type": content_type,
        "image_url": image_url,
        "credits": None if micro is None else credits_text(micro),
        "attempts": attempts,
        "latency_s": latency_s,
        "sent_at": None if sent_us is None else rfc3339(sent_us),
        "done_at": None if done_us is None else rfc3339(done_us),
        "error": None if error_class is None else {"class": error_class, "message": error_message or ""},
        "warning": warning,
    }


def json_line(result: Mapping[str, Any]) -> bytes:
    """Return an object as a line of ASCII JSON."""
    plain = plain_json(result)
    return _escaped_line(result) if plain is None else plain + b"\n"


def _escaped_line(result: Mapping[str, Any]) -> bytes:
    try:
        line = to_json(result, ensure_ascii=True, inf_nan_mode="null") + b"\n"
    except ValueError:
        # Lone surrogates: JSON can spell them, UTF-8 can't hold them, and to_json goes by UTF-8.
        finite = json.loads(json.dumps(result), parse_constant=lambda _: None)
        line = json.dumps(finite, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
    return line.replace(b"\x7f", b"\\u007f")  # ASCII too, and a control


def add_results(file: BinaryIO, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a line for each object; return how many.

    Args:
        rows: From `result_dict`, in manifest order.
    """
    count = 0
    for row in rows:
        file.write(json_line(row))
        count += 1
    return count


def write_results(folder: Path | int, rows: Iterable[Mapping[str, Any]]) -> int:
    """Replace results.jsonl by these objects; return how many.

    Args:
        folder: The output folder, or an open descriptor of it.
        rows: See `add_results`.

    Raises:
        DiskError: it could not be written; the old file is as it was.
    """
    with replaced(folder, FILE_NAME) as file:
        return add_results(file, rows)


def write_csv(stream: TextIO, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the objects as CSV with a header; return how many.

    `meta` becomes a column `meta.<name>` for each name that occurs, `error` `class: message`, and `refer_images` what a
    CSV manifest takes. A cell that a spreadsheet would take for a formula gets an apostrophe in front.

    Args:
        stream: Opened with `newline=""`, in UTF-8.
        rows: From `result_dict`; gone through twice, so no iterator.
    """
    if iter(rows) is rows:
        raise ValueError("write_csv goes through its rows twice: hand in what can be iterated again")
    names = list(dict.fromkeys(name for row in rows for name in row["meta"] or ()))
    place = KEYS.index("meta")
    before, behind = KEYS[:place], KEYS[place + 1 :]
    writer = csv.writer(stream)
    writer.writerow([*before, *(_cell(f"meta.{name}") for name in names), *behind])
    count = 0
    for row in rows:
        meta = row["meta"] or {}
        cells = [_cell(row[key]) for key in before]
        cells += [_cell(meta.get(name)) for name in names]
        cells += [_cell(row[key] if key != "error" else _error_text(row[key])) for key in behind]
        writer.writerow(cells)
        count += 1
    return count


def _object(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = from_json(text)
    except ValueError:
        # Lone surrogates in escapes, which Python's own parser takes.
        found = json.loads(text)
    return found


def _flag(value: object) -> object:
    return _FLAGS.get(value, value) if isinstance(value, str) else value


def _error_text(error: Mapping[str, str] | None) -> str | None:
    if error is None:
        return None
    return f"{error['class']}: {error['message']}" if error["message"] else error["class"]


def _cell(value: object) -> str | int | float | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list) and all(isinstance(part, str) and "|" not in part for part in value):
        value = "|".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return csv_cell(text if text.isascii() else _SURROGATE.sub("\ufffd", text))
