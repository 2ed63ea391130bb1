"""File names from other people's text.

Rule 1: a name stays inside the folder, starts with no dot or dash, ends in no dot or space, holds no control,
        bidirectional or reserved character, is no device name of Windows, is NFC, and at most 200 bytes long.
Rule 2: what a row spells out (`filename`) is checked and refused, never bent. What a template puts together
        from a row's values is made to fit.
"""

import re
import unicodedata

from banana_batch.models import INDEX_MARK

MAX_STEM_BYTES = 200
MAX_FOLDERS = 8

_RESERVED = re.compile(
    '[\x00-\x1f\x7f-\x9f"*/:<>?\\\\|\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]'
)
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\.|$)", re.IGNORECASE)
_IMAGE_EXTENSION = re.compile(r"\.(?:png|jpe?g|webp|gif|heic)$", re.IGNORECASE)
_EDGES = " .-"


def complaint(stem: str) -> str | None:
    """Say why a path under `images/`, without extension, can't be used; None: it can."""
    folders = stem.split("/")
    if len(folders) > MAX_FOLDERS:
        return f"at most {MAX_FOLDERS - 1} folders deep"
    if size(stem) > MAX_STEM_BYTES:
        return f"at most {MAX_STEM_BYTES} bytes"
    return next((reason for reason in map(_component_complaint, folders) if reason), None)


def size(stem: str) -> int:
    """Return the length in bytes; text that can't be encoded counts as if it could."""
    return len(stem) if stem.isascii() else len(stem.encode("utf-8", "surrogatepass"))


def has_extension(stem: str) -> bool:
    """Tell whether a name ends like an image file: the extension is added by content, so it would come twice."""
    return _IMAGE_EXTENSION.search(stem) is not None


def nfc(text: str) -> str:
    """Return the composed form, the one that all file systems show alike."""
    return unicodedata.normalize("NFC", text)


def clean(value: str) -> str:
    """Return a row's value as a part of one name: space, and what is not allowed, becomes a dash."""
    return "-".join(_RESERVED.sub(" ", nfc(value)).split())


def is_tidy(stem: str) -> bool:
    """Tell at a glance that `tidy` has nothing to mend: one component, from the index to a letter or digit."""
    return stem[:1] == INDEX_MARK and stem[-1] not in _EDGES and "/" not in stem


def tidy(stem: str, instead: str) -> str:
    """Return a stem whose every component keeps rule 1; `instead` stands in for an empty one."""
    return "/".join(_tidy_component(part, instead) for part in stem.split("/"))


def cut(value: str, max_bytes: int) -> str:
    """Return the longest start of `value` that has at most `max_bytes` bytes, never half a character."""
    return value.encode("utf-8", "ignore")[: max(0, max_bytes)].decode("utf-8", "ignore")


def _component_complaint(part: str) -> str | None:
    if not part:
        return "a path without an empty part, and not from the root"
    if part.startswith((".", "-", " ")):
        return "no part that starts with a dot, a dash or a space"
    if part.endswith((".", " ")):
        return "no part that ends in a dot or a space"
    if found := _RESERVED.search(part):
        mark = found[0]
        return f'no {mark}; none of " * : < > ? \\ |' if mark.isprintable() else "no control or invisible characters"
    if _DEVICE.match(part):
        return "no name that Windows keeps for a device"
    return None


def _tidy_component(part: str, instead: str) -> str:
    kept = part.strip(_EDGES) or instead
    return f"_{kept}" if _DEVICE.match(kept) else kept
