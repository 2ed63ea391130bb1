"""Other people's text, made safe for the place where it is shown.

One function per place, the same everywhere: terminals and logs (`printable`), spreadsheets (`csv_cell`),
file names (`slug`). Prompts themselves are never altered on their way to the endpoint.
"""

import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence

from msgspec.json import Encoder

# C0, DEL and C1 controls (terminal escapes start here), line and paragraph separators (they split log
# records), bidirectional overrides and isolates (they reorder what a person reads), lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
# What spreadsheets take for a formula, behind spaces and what can't be seen; and controls, which some of them drop.
_FORMULA = re.compile(
    "[\\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]*[=+\\-@\uff1d\uff0b\uff0d\uff20\u2212]|[\\x00-\\x1f\x7f]"
)

# Letters become lower-case, digits stay, all other bytes become spaces.
_SPACED = bytes(ord(chr(byte).lower() if chr(byte).isalnum() and byte < 128 else " ") for byte in range(256))

_encode = Encoder().encode

MAX_MESSAGE_CHARS = 512  # safety.md, S10


def printable(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Return one line without control characters, escapes or bidi marks, cut to `limit` characters."""
    clean = _UNSAFE.sub(" ", text[: limit * 4])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def csv_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula (OWASP: a leading apostrophe)."""
    return f"'{text}" if _FORMULA.match(text) else text


def shell_line(words: Iterable[str]) -> str:
    """Return a command to be pasted: words that hold what `printable` removes are spelled in escapes, `$'…'`."""
    return " ".join(shlex.quote(word) if not _UNSAFE.search(word) else _ansi_c(word) for word in words)


def with_option(words: Sequence[str], option: str, value: str) -> list[str]:
    """Return a command's words with an option set anew: what they said of it before goes."""
    end = words.index("--") if "--" in words else len(words)
    kept, is_value = list[str](), False
    for word in words[:end]:
        if not is_value and word != option and not word.startswith(f"{option}="):
            kept.append(word)
        is_value = not is_value and word == option
    return [*kept, option, value, *words[end:]]


def _ansi_c(word: str) -> str:
    shown = "".join(_bytes_escaped(char) if _UNSAFE.match(char) else _QUOTED.get(char, char) for char in word)
    return f"$'{shown}'"


_QUOTED = {"'": "\\'", "\\": "\\\\"}


def _bytes_escaped(char: str) -> str:
    # Three digits: a hexadecimal escape would take a following digit in. File names that are no UTF-8 have their
    # bytes as surrogates.
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", errors))


def plain_json(value: object) -> bytes | None:
    """Return compact JSON that is all printable ASCII; None where it isn't, or where there is none.

    It takes a third of the time of encoders that escape: most of what is written needs no escape.
    """
    try:
        told = _encode(value)
    except (ValueError, TypeError, OverflowError, RecursionError):  # half a character, a number beyond 64 bits
        return None
    return told if told.isascii() and b"\x7f" not in told else None


def slug(text: str, max_bytes: int = 60) -> str:
    """Return `text` as lower-case ASCII words joined by dashes, at most `max_bytes` long; may be empty."""
    start = text[: max_bytes * 8]
    plain = start if start.isascii() else unicodedata.normalize("NFKD", start)
    # A table takes a fifth of the time of regular expressions: a million rows each get a slug.
    joined = b"-".join(plain.encode("ascii", "ignore").translate(_SPACED).split()).decode()
    if len(joined) <= max_bytes:
        return joined
    whole_words = joined[: max_bytes + 1].rpartition("-")[0]
    return whole_words or joined[:max_bytes]


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return `1 image`, `2 images`, `1,632 images`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def duration_text(seconds: float) -> str:
    """Return `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def bytes_text(count: int) -> str:
    """Return `820 B`, `20 KB`, `1.5 MB`, `2.1 GB` (powers of 1,000)."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "KB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
