"""What jobs and their files are called: ids and stems from a row, or from a template over its columns."""

from collections.abc import Callable
from typing import Any

from banana_batch.text import slug

from . import names
from .layout import Draft
from .reporting import Report, shown
from .rows import read_id
from .templates import FILENAME_FIELDS, FilenameTemplate, NoColumn, Slot, TextTemplate, likely

HASH_DIGITS = 12


def tell_no_column(field: str, missing: NoColumn, draft: Draft, report: Report) -> None:
    """Tell that a row has nothing to put into a template."""
    columns = {name: text for name, text in draft.columns().items() if text}
    report.problem(field, f"nothing for {shown('{' + missing.name + '}')}", likely(missing.name, columns))


def _hash(draft: Draft) -> str:
    return draft.key.hex()[:HASH_DIGITS]


# What a file name's template may use beside the user's own columns; the index is put in by the batch.
_PARTS: dict[str, Callable[[Draft], str]] = {
    "id": lambda draft: names.clean(draft.id) if draft.id else _hash(draft),
    "slug": lambda draft: slug(draft.prompt),
    "model": lambda draft: names.clean(draft.shape.kind.model),
    "aspect_ratio": lambda draft: draft.shape.aspect_ratio.replace(":", "x"),
    "image_size": lambda draft: draft.shape.kind.image_size,
    "copy": lambda draft: str(draft.copy),
    "hash": _hash,
}


class Namer:
    """Names the jobs of one file.

    Args:
        filename: For rows without a `filename`.
        id: For rows without an `id`; None: the request itself names them.
    """

    def __init__(self, filename: FilenameTemplate, id: TextTemplate | None, report: Report) -> None:
        self._template = filename
        self._id = id
        self._report = report
        self._parts = [_part(slot) for slot in filename.slots]

    @property
    def makes_ids(self) -> bool:
        """Whether rows without an id get one."""
        return self._id is not None

    def made_id(self, draft: Draft) -> str | None:
        """Return the id that the template makes of a row; None, and told, where it can't."""
        if self._id is None:
            return None
        try:
            return read_id(self._id.render(draft.columns()), self._report)
        except NoColumn as missing:
            tell_no_column("id", missing, draft, self._report)
            return None

    def given_filename(self, value: Any) -> str:
        """Check a row's own file name."""
        if type(value) is not str:
            self._report.problem("filename", shown(value), "a text")
            return ""
        stem = names.nfc(value)
        if reason := names.complaint(stem):
            self._report.problem("filename", shown(value), reason)
        elif names.has_extension(stem):
            self._report.warning("filename", shown(value), "no extension, as it is added by the image's own type")
        return stem

    def stem(self, draft: Draft) -> str:
        """Return the path under `images/`; different for each copy. What can't be named is told."""
        mark = "" if draft.copy == 1 else f"~{draft.copy}"
        if draft.filename is not None:
            return draft.filename + mark
        parts = self._parts
        try:
            values = (parts[0](draft),) if len(parts) == 1 else tuple(part(draft) for part in parts)
        except NoColumn as missing:
            tell_no_column("filename", missing, draft, self._report)
            return ""
        stem = self._template.fill(values, "" if self._template.tells_copies else mark)
        return stem if names.is_tidy(stem) else names.tidy(stem, _hash(draft))


def _part(slot: Slot) -> Callable[[Draft], str]:
    part = _PARTS.get(slot.name) or _own_column(slot)
    return (lambda draft: part(draft).zfill(slot.width)) if slot.width else part


def _own_column(slot: Slot) -> Callable[[Draft], str]:
    def part(draft: Draft) -> str:
        text = draft.columns().get(slot.name, "")
        if not text:
            raise NoColumn(slot.written)
        return names.clean(text)

    return part


__all__ = ["FILENAME_FIELDS", "HASH_DIGITS", "Namer", "tell_no_column"]
