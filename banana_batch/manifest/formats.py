"""Manifest files to rows: `(line, names, values)`, one reader a format.

Rule 1: a reader streams. Memory does not grow with the number of rows.
Rule 2: `line` is where the row starts. `names` is the same tuple for all rows of a table.
Rule 3: a reader never guesses: what is no clean row is told (`Report.problem`) and skipped, and what makes
        the rest of the file uncertain ends it (`Unreadable`).
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from msgspec import MsgspecError
from msgspec.json import Decoder

from .encoding import MAX_ROW_CHARS, Readable, text_chunks, text_lines
from .reporting import Report, Unreadable, shown
from .templates import fold

Row = tuple[int, tuple[str, ...], Sequence[Any]]
Reader = Callable[[Readable, Report], Iterator[Row]]

_JSON_SPACE = " \t\n\r"
_SPACE = re.compile(r"[ \t\n\r]*")
_AN_OBJECT = 'an object such as {"prompt": "a red fox"}'
_AN_ARRAY = "an array of objects: [{…}, {…}]; a file with one object a line is named .jsonl"


class BadJson(ValueError):
    """JSON that the grammar allows and a row can't be made of."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a name that comes twice would silently lose a value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadJson(f"{shown(next(name for name in names if names.count(name) > 1))} comes twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise BadJson(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
# A quarter of that one's time, for objects that hold nothing but texts.
_texts = Decoder(dict[str, str]).decode


def json_value(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        BadJson: with what is wrong and where.
    """
    bare = text.strip(_JSON_SPACE)
    try:
        value, end = _DECODER.raw_decode(bare)
    except json.JSONDecodeError as failed:
        raise BadJson(f"not JSON: {failed.msg} at character {failed.pos + 1}") from None
    except RecursionError:
        raise BadJson("too deeply nested") from None
    except ValueError as failed:
        raise BadJson(str(failed)[:120]) from None
    if end != len(bare):
        raise BadJson(f"not JSON: more than one value, from character {end + 1} on")
    return value


def read_txt(stream: Readable, report: Report) -> Iterator[Row]:
    """A prompt a line; blank lines and lines starting with # are skipped."""
    names = ("prompt",)
    for line, text in enumerate(text_lines(stream), 1):
        prompt = text.removesuffix("\r")
        if not prompt.startswith("#") and prompt and not prompt.isspace():
            report.line = line
            yield line, names, (prompt,)


def read_jsonl(stream: Readable, report: Report) -> Iterator[Row]:
    """An object a line; blank lines are skipped."""
    texts = True
    for line, text in enumerate(text_lines(stream), 1):
        if texts:
            try:
                plain = _texts(text)
            except MsgspecError:
                texts = False  # the rows of a file look alike
            else:
                # Quotes around each name and each text, and no others: none came twice, of which the last would stay.
                if text.count('"') == 4 * len(plain):
                    yield line, tuple(plain), tuple(plain.values())
                    continue
        row = _object(text.removesuffix("\r"), line, report)
        if row is not None:
            yield line, tuple(row), tuple(row.values())


def _object(text: str, line: int, report: Report) -> dict[str, Any] | None:
    """Return the object of a line; None where there is none, and told where there should be."""
    try:
        row, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        end = -1
    if end != len(text):
        # Space around it, a blank line, or no JSON: looked at closely, as few are.
        if not text or text.isspace():
            return None
        report.line = line
        try:
            row = json_value(text)
        except BadJson as bad:
            report.problem("", str(bad), _AN_OBJECT)
            return None
    if type(row) is dict:
        return row
    report.line = line
    report.problem("", shown(row), _AN_OBJECT)
    return None


def read_json(stream: Readable, report: Report) -> Iterator[Row]:
    """An array of objects, read object by object."""
    for line, row in _Elements(stream).read():
        report.line = line
        if type(row) is dict:
            yield line, tuple(row), tuple(row.values())
        else:
            report.problem("", shown(row), _AN_OBJECT)


class _Elements:
    """The elements of a JSON array that is too long to hold, each with its line."""

    def __init__(self, stream: Readable) -> None:
        self._chunks = text_chunks(stream)
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def read(self) -> Iterator[tuple[int, Any]]:
        """Yield the elements.

        Raises:
            Unreadable: it is no array, or no JSON from a line on.
        """
        if not self._skip_space():
            return
        self._expect("[", _AN_ARRAY)
        if self._peek() != "]":
            while True:
                self._skip_space()
                line = self._line
                yield line, self._value()
                if self._peek() != ",":
                    break
                self._move(self._at + 1)
        self._expect("]", "a comma or a closing bracket")
        if self._skip_space():
            raise Unreadable(self._line, shown(self._text[self._at : self._at + 40]), "nothing after the array")

    def _value(self) -> Any:
        while True:
            start = self._at
            try:
                value, end = _DECODER.raw_decode(self._text, start)
            except json.JSONDecodeError as failed:
                # The text at hand may end inside the element: judge only with all of it there.
                if not self._more():
                    line = failed.doc.count("\n", start, failed.pos) + self._line
                    raise Unreadable(line, f"not JSON: {failed.msg}", _AN_OBJECT) from None
            except RecursionError:
                raise Unreadable(self._line, "too deeply nested", _AN_OBJECT) from None
            except ValueError as failed:
                raise Unreadable(self._line, str(failed)[:120], _AN_OBJECT) from None
            else:
                if end < len(self._text) or not self._more():
                    self._move(end)
                    return value

    def _more(self) -> bool:
        if self._ended or len(self._text) - self._at > MAX_ROW_CHARS:
            return False
        # Doubling what is at hand keeps the number of tries, each from the element's start, logarithmic.
        parts = [self._text[self._at :]]
        size = 0
        while size <= len(parts[0]) and not self._ended:
            part = next(self._chunks, None)
            self._ended = part is None
            parts.append(part or "")
            size += len(parts[-1])
        self._text, self._at = "".join(parts), 0
        return size > 0

    def _skip_space(self) -> bool:
        """Go to the next character that is not space; False at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._move(space.end() if space else self._at)
            if self._at < len(self._text):
                return True
            if not self._more() and self._ended:
                return False

    def _peek(self) -> str:
        return self._text[self._at] if self._skip_space() else ""

    def _expect(self, mark: str, allowed: str) -> None:
        if self._peek() != mark:
            found = self._text[self._at : self._at + 40] or "the end of the file"
            raise Unreadable(self._line, shown(found), allowed)
        self._move(self._at + 1)

    def _move(self, at: int) -> None:
        self._line += self._text.count("\n", self._at, at)
        self._at = at


def read_tsv(stream: Readable, report: Report) -> Iterator[Row]:
    """A table split on tabs alone: quotation marks are text."""
    cells = ((line, text.removesuffix("\r").split("\t")) for line, text in enumerate(text_lines(stream), 1))
    return _table(cells, report)


def read_csv(stream: Readable, report: Report) -> Iterator[Row]:
    """A table as RFC 4180 has it; `;` between the columns where the header has that (Excel)."""
    return _table(_csv_cells(stream), report)


def _csv_cells(stream: Readable) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))
    lines = text_lines(stream)
    first = next(lines, "")
    # strict: a stray quotation mark would else swallow rows, or vanish from a prompt.
    reader = csv.reader(_with_ends(first, lines), delimiter=_delimiter(first), strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as failed:
        raise Unreadable(start, f"no clean CSV row ({failed})", _CSV_RULE) from None


_CSV_RULE = (
    'a text with quotation marks, commas or line breaks stands in "…", with "" for a mark inside; LF or CRLF ends'
)


def _with_ends(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first + "\n"
    for line in lines:
        yield line + "\n"


def _delimiter(header: str) -> str:
    if ";" not in header:
        return ","
    by_comma, by_semicolon = (next(csv.reader([header], delimiter=mark), []) for mark in ",;")
    if any(fold(name) == "prompt" for name in by_comma):
        return ","
    if any(fold(name) == "prompt" for name in by_semicolon):
        return ";"
    return ";" if len(by_semicolon) > len(by_comma) else ","


def _table(rows: Iterator[tuple[int, list[str]]], report: Report) -> Iterator[Row]:
    """Rows of a table whose first row that is not blank names the columns."""
    names: tuple[str, ...] = ()
    for line, cells in rows:
        if not any(cells) or not "".join(cells).strip():
            continue  # blank lines, and the rows of bare delimiters that spreadsheets leave at the end
        report.line = line
        if not names:
            names = tuple(name.strip() for name in cells)
            named = len("\0".join(names).rstrip("\0").split("\0"))
            names = names[:named]
            continue
        if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
            _too_wide(cells, names, report)
            continue
        yield line, names, cells if len(cells) == len(names) else _squared(cells, len(names))


def _squared(cells: list[str], width: int) -> list[str]:
    return cells[:width] + [""] * (width - len(cells))


def _too_wide(cells: list[str], names: tuple[str, ...], report: Report) -> None:
    extra = next(cell for cell in cells[len(names) :] if cell.strip())
    report.problem(
        "",
        f"{len(cells)} columns, with {shown(extra)} beyond the last",
        f"the {len(names)} columns that the header names",
    )


READERS: dict[str, Reader] = {
    "txt": read_txt,
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "ndjson": read_jsonl,
    "json": read_json,
}
LINE_FORMATS = ("txt", "csv", "tsv", "jsonl", "ndjson")
