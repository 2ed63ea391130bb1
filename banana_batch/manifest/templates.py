"""Texts with places for a row's columns: prompts and file names.

Rule 1: `{name}` puts a column's text in, `{{` and `}}` are braces, and that is the whole language: no attribute,
        no index, no code, no format but the width of a number (`{index:05d}`).
Rule 2: a name matches a column without case, spaces or dashes, as header names do.
Rule 3: a column that says nothing can't be put in: a prompt with a hole in it would be paid for.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches

from msgspec import Struct

from banana_batch.models import INDEX_MARK

from . import names

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}:]*)(?::([^{}]*))?\}|[{}]")
_WIDTH = re.compile(r"0(\d)d?")
_SEPARATORS = re.compile(r"[\s\-]+")

FILENAME_FIELDS = ("index", "id", "slug", "model", "aspect_ratio", "image_size", "copy", "hash")
_NUMBERS = ("index", "copy")
_INDEX_ROOM_BYTES = 12  # digits of an index may grow beyond the template's width


class TemplateError(ValueError):
    """A template that can't be understood; `str()` says what is allowed."""


class NoColumn(Exception):
    """A row has no text for a name in a template.

    Attributes:
        name: As the template has it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Slot(Struct, frozen=True):
    """A place in a template.

    Attributes:
        name: Folded (see `fold`).
        written: As the template has it.
        width: Digits to fill with zeros; 0: as many as it takes.
    """

    name: str
    written: str
    width: int = 0


def fold(name: str) -> str:
    """Return a column's name as names are compared: lower case, underscores for spaces and dashes."""
    return _SEPARATORS.sub("_", name.strip()).casefold()


def parse(template: str) -> list[str | Slot]:
    """Split a template into texts and slots.

    Raises:
        TemplateError: a brace that is not closed or not opened, an empty name, a format.
    """
    parts: list[str | Slot] = []
    end = 0
    for token in _TOKEN.finditer(template):
        parts.append(template[end : token.start()])
        end = token.end()
        if token[0] in ("{{", "}}"):
            parts.append(token[0][0])
        elif token[1] is None:
            raise TemplateError(f"{token[0]} alone: write {token[0] * 2} for a brace, {{name}} for a column")
        else:
            parts.append(_slot(token[1], token[2]))
    parts.append(template[end:])
    return [part for part in parts if part != ""]


def _slot(written: str, width: str | None) -> Slot:
    name = fold(written)
    if not name:
        raise TemplateError("{} names no column: write {name}")
    if width is None:
        return Slot(name, written)
    match = _WIDTH.fullmatch(width)
    if match is None or name not in _NUMBERS:
        raise TemplateError(f"{{{written}:{width}}}: only index and copy take a width, such as {{index:05d}}")
    return Slot(name, written, int(match[1]))


class TextTemplate:
    """A prompt, or an id, with places for a row's columns."""

    def __init__(self, template: str) -> None:
        self._parts = parse(template)
        if any(isinstance(part, Slot) and part.width for part in self._parts):
            raise TemplateError("a column's name without a width")

    def render(self, columns: Mapping[str, str]) -> str:
        """Put a row's columns in; keys are folded names.

        Raises:
            NoColumn: the row has no text for one of the names.
        """
        return "".join(part if isinstance(part, str) else _column(columns, part) for part in self._parts)


def _column(columns: Mapping[str, str], slot: Slot) -> str:
    text = columns.get(slot.name, "")
    if not text:
        raise NoColumn(slot.written)
    return text


def likely(name: str, columns: Mapping[str, str]) -> str:
    """Say which columns a row has, with the likely meaning of a near miss."""
    have = ", ".join(list(columns)[:12]) or "none"
    close = get_close_matches(fold(name), list(columns), 1, 0.6)
    return f"a column of this row: {have}" + (f" (did you mean {{{close[0]}}}?)" if close else "")


class FilenameTemplate:
    """A file name, under `images/` and without extension, made from a row.

    Attributes:
        index_width: Digits of the index, filled with zeros; 0: as many as it takes.
        slots: The places to fill, but for the index, which the batch puts in (INDEX_MARK).
        tells_copies: Whether copies of a row get different names by themselves.
    """

    def __init__(self, template: str) -> None:
        parts = parse(template)
        self.slots = [part for part in parts if isinstance(part, Slot) and part.name != "index"]
        indexes = [part for part in parts if isinstance(part, Slot) and part.name == "index"]
        self.index_width = indexes[0].width if indexes else 0
        self.tells_copies = bool(indexes) or any(slot.name == "copy" for slot in self.slots)
        if any(slot.width != self.index_width for slot in indexes):
            raise TemplateError("one width for all {index}")
        if any(slot.name == "prompt" for slot in self.slots):
            raise TemplateError("{slug} for words of the prompt")
        self._format = "".join(map(_percent, parts))
        literal = "".join(part for part in parts if isinstance(part, str))
        if INDEX_MARK in literal:
            raise TemplateError("no control characters")
        self._limit = names.MAX_STEM_BYTES - _INDEX_ROOM_BYTES * len(indexes)
        self._room = self._limit - names.size(literal)
        if reason := names.complaint(self._format.replace(INDEX_MARK, "1") % (("x",) * len(self.slots))):
            raise TemplateError(reason)
        if not self.slots and not indexes:
            raise TemplateError("at least one of " + ", ".join(f"{{{name}}}" for name in FILENAME_FIELDS))
        if self._room < 16 * len(self.slots):
            raise TemplateError(f"at most {names.MAX_STEM_BYTES} bytes, with room for what is put in")

    def check_width(self, other: "FilenameTemplate") -> None:
        """Check that the index can be put in alike for files of both templates.

        Raises:
            TemplateError: the widths differ.
        """
        if self.index_width not in (0, other.index_width):
            raise TemplateError("{index} without a width: it is as wide here as --filename has it")

    def fill(self, values: tuple[str, ...], copy_mark: str) -> str:
        """Put the slots' values in, cut to fit, with `copy_mark` at the end."""
        stem = self._format % values
        if (len(stem) if stem.isascii() else names.size(stem)) > self._limit - len(copy_mark):
            stem = self._format % _fitted(values, self._room - len(copy_mark))
        return stem + copy_mark


def _percent(part: str | Slot) -> str:
    if isinstance(part, str):
        return part.replace("%", "%%")
    return INDEX_MARK if part.name == "index" else "%s"


def _fitted(values: tuple[str, ...], room: int) -> tuple[str, ...]:
    share = room // len(values)
    return tuple(names.cut(value, share) for value in values)
