"""A text that must not be written anywhere: the key.

Rule: its text leaves a `Secret` only through `reveal`.
"""

import base64
import re
from collections.abc import Iterator
from typing import NoReturn

MASK = "***"
# Shorter texts are no secrets: hiding every "test" would spoil urls and messages and protect nothing.
MIN_HIDDEN_CHARS = 8

# What escaped characters start with.
_ESCAPES = ("%", "&", "\\u00")
_SLACK_BYTES = 4096  # longer than any key is, however it is spelled
_ENTITIES = {"&": ("&amp;",), "<": ("&lt;",), ">": ("&gt;",), '"': ("&quot;",), "'": ("&apos;",), "/": ("&sol;",)}


class Secret:
    """A text that shows as `***` wherever it is printed, logged or formatted."""

    __slots__ = ("_hints", "_pattern", "_raw_hints", "_raw_pattern", "_spelled", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        # The longest first: a form that holds another one must go as a whole.
        forms = sorted(set(_encoded(value)), key=len, reverse=True) if len(value) >= MIN_HIDDEN_CHARS else []
        self._spelled = "|".join([_escaped(value), *map(re.escape, forms)])
        # Compiled when first needed, which takes longer than planning a thousand jobs.
        self._pattern: re.Pattern[str] | None = None
        self._raw_pattern: re.Pattern[bytes] | None = None
        # The pattern takes fifty times as long as a plain search, and nearly all texts hold no secret.
        hints = {value.lower(), *(form.lower() for form in forms), *_ESCAPES, *("\\" + char for char in _marks(value))}
        self._hints = sorted(hints) if forms else []
        self._raw_hints = [hint.encode() for hint in self._hints]

    def reveal(self) -> str:
        """Return the text itself."""
        return self._value

    def redact(self, text: str) -> str:
        """Return `text` with every known spelling of the secret replaced by `***`."""
        lower = text.lower()
        for hint in self._hints:
            if hint in lower:
                # Hosts and header values come back in lower case, escapes in either: case hides nothing.
                self._pattern = self._pattern or re.compile(self._spelled, re.IGNORECASE)
                return self._pattern.sub(MASK, text)
        return text

    def redact_bytes(self, raw: bytes, limit: int) -> bytes:
        """Do the same to bytes; return `limit` of them at most. No more is looked at than that takes."""
        part = raw[: limit + _SLACK_BYTES]
        lower = part.lower()
        for hint in self._raw_hints:
            if hint in lower:
                self._raw_pattern = self._raw_pattern or re.compile(self._spelled.encode(), re.IGNORECASE)
                part = self._raw_pattern.sub(MASK.encode(), part)
                break
        if len(raw) > limit + _SLACK_BYTES:
            part = part[:-_SLACK_BYTES]  # where the cut may have split the secret
        return part[:limit]

    def __repr__(self) -> str:
        return MASK

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def _marks(value: str) -> set[str]:
    return {char for char in value if not char.isalnum()}


def _escaped(value: str) -> str:
    """Return a pattern of the secret with each character plain or escaped, as in urls, HTML or JSON, in any mix."""
    return "".join(f"(?:{'|'.join(_spellings(char))})" for char in value)


def _spellings(char: str) -> Iterator[str]:
    code = ord(char)
    yield re.escape(char) if char.isalnum() else rf"\\{{0,2}}{re.escape(char)}"
    yield f"%{code:02x}"
    yield rf"\\{{1,2}}u00{code:02x}"
    yield f"&#0{{0,8}}{code};"
    yield f"&#x0{{0,8}}{code:x};"
    yield from _ENTITIES.get(char, ())


def _encoded(value: str) -> Iterator[str]:
    """Yield the spellings of the whole secret in which a server, a proxy or a log could repeat it."""
    raw = value.encode()
    yield raw.hex()
    for offset in range(3):
        # Inside a longer text that was encoded as one, base64 has three spellings; characters that mix with the
        # neighbours are left out.
        encoded = base64.b64encode(b"\0" * offset + raw).decode().rstrip("=")
        inner = encoded[-(-offset * 8 // 6) : len(encoded) - (1 if (offset + len(raw)) % 3 else 0)]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


NO_SECRET = Secret("")
