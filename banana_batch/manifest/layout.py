"""Which column holds what, and the row that is being planned.

Rule 1: columns are matched to fields once per layout, not once per row; a file has few layouts.
Rule 2: one `Draft` per file, filled anew for each row: a million rows make no million objects.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from json.encoder import encode_basestring as quoted
from operator import itemgetter
from typing import Any

from .reporting import Report, shown
from .requests import Mould, Request
from .rows import CHOICES, FIELDS
from .templates import fold

_RARE = ("id", "filename", "copies", "refer_images", "extra")


class Layout:
    """The columns of rows that look alike.

    Attributes:
        folded: Names as they are compared.
        prompt: Place of the prompt; -1: no such column.
        rare: Places of fields that most files do not have.
        meta: Place, and quoted name with a colon, of each of the user's own columns.
        chosen: Choices (model, size …) that have a column.
        choose: Takes their values out of a row, as a key of `moulds`.
        moulds: By these values: what they ask for.
    """

    __slots__ = ("choose", "chosen", "folded", "meta", "moulds", "places", "prompt", "rare")

    def __init__(self, names: Sequence[str], fields: Sequence[str | None]) -> None:
        """Lay out columns by their names and the field that each one holds; None: the user's own."""
        self.folded = [fold(name) for name in names]
        self.places = {name: place for place, name in enumerate(fields) if name is not None}
        self.prompt = self.places.get("prompt", -1)
        self.rare = {name: self.places[name] for name in _RARE if name in self.places}
        pairs = enumerate(zip(names, fields, strict=True))
        self.meta = [(place, f"{quoted(name)}:") for place, (name, held) in pairs if held is None]
        self.chosen = tuple(name for name in CHOICES if name in self.places)
        places = [self.places[name] for name in self.chosen]
        self.choose: Callable[[Sequence[Any]], Any] = itemgetter(*places) if places else _no_choice
        self.moulds: dict[Any, tuple[Request, Mould]] = {}

    def choices(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return what a row chooses."""
        return {name: values[self.places[name]] for name in self.chosen}

    def columns(self, values: Sequence[Any]) -> dict[str, str]:
        """Return a row's texts by folded name, for templates."""
        return {name: _text(value) for name, value in zip(self.folded, values, strict=True)}


# What people call a field that has another name here.
_MEANT = {
    **dict.fromkeys(("ratio", "aspect", "ar"), "aspect_ratio"),
    **dict.fromkeys(("size", "resolution"), "image_size"),
    **dict.fromkeys(("images", "image_urls", "references", "reference_images"), "refer_images"),
    "thinking": "thinking_level",
}


def _near_field(name: str) -> str | None:
    return _MEANT.get(name) or next(iter(get_close_matches(name, FIELDS, 1, 0.8)), None)


def read_layout(names: tuple[str, ...], report: Report) -> Layout | None:
    """Match columns to fields; None, and told, where two of them can't be told apart."""
    folded = [fold(name) for name in names]
    for place, name in enumerate(folded):
        if name in folded[:place]:
            report.problem("", f"two columns {shown(names[place])}", "names that differ, whatever their case")
            return None
        if name not in FIELDS and (near := _near_field(name)):
            report.warning(shown(names[place]), "kept as a column of your own", f"did you mean {near}?")
    return Layout(names, [name if name in FIELDS else None for name in folded])


def _no_choice(_values: Sequence[Any]) -> None:
    return None


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    return "" if value is None or isinstance(value, dict | list | tuple) else json.dumps(value)


class Draft:
    """The row that is being planned.

    Attributes:
        values: By place.
        copy: 1-based.
        id, filename, copies, references, extra: What the row says; for most rows nothing.
        shape, prompt, key: What it comes to.
    """

    __slots__ = (
        "copies", "copy", "extra", "filename", "id", "key", "layout", "prompt", "references", "shape", "values",
    )  # fmt: skip

    layout: Layout
    values: Sequence[Any]
    shape: Mould
    prompt: str
    key: bytes
    copy: int
    id: str | None
    filename: str | None
    copies: int
    references: tuple[str, ...]
    extra: Mapping[str, Any]

    def begin(self, layout: Layout, values: Sequence[Any]) -> None:
        """Start with a new row that says nothing of the rare fields."""
        self.layout = layout
        self.values = values
        self.copy = self.copies = 1
        self.id = self.filename = None
        self.references = ()
        self.extra = _EMPTY

    def columns(self) -> dict[str, str]:
        """Return the row's texts by folded name."""
        return self.layout.columns(self.values)


_EMPTY: Mapping[str, Any] = {}
