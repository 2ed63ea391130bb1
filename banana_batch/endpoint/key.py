"""The key: where it comes from, and how it is kept out of everything that is written.

Rule 1: the key's text leaves a `Secret` only through `reveal`, into the header of one request.
Rule 2: no option takes the key itself: command lines are public.
"""

import base64
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from banana_batch.errors import KeyRefused

KEY_VARIABLE = "TT_API_KEY"
CREDENTIAL_NAME = "ttapi_key"
MASK = "***"
MAX_KEY_BYTES = 4096
# Shorter texts are no secrets: hiding every "test" would spoil urls and messages and protect nothing.
MIN_HIDDEN_CHARS = 8

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
# What escaped characters start with.
_ESCAPES = ("%", "&", "\\u00")
_SLACK_BYTES = 4096  # longer than any key is, however it is spelled
_ENTITIES = {"&": ("&amp;",), "<": ("&lt;",), ">": ("&gt;",), '"': ("&quot;",), "'": ("&apos;",), "/": ("&sol;",)}


class Secret:
    """A text that shows as `***` wherever it is printed, logged or formatted."""

    __slots__ = ("_hints", "_pattern", "_raw_hints", "_raw_pattern", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        # The longest first: a form that holds another one must go as a whole.
        forms = sorted(set(_encoded(value)), key=len, reverse=True) if len(value) >= MIN_HIDDEN_CHARS else []
        # Hosts and header values come back in lower case, escapes in either: case hides nothing.
        self._pattern = re.compile("|".join([_escaped(value), *map(re.escape, forms)]), re.IGNORECASE)
        self._raw_pattern = re.compile(self._pattern.pattern.encode(), re.IGNORECASE)
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
        return self._pattern.sub(MASK, text) if any(hint in lower for hint in self._hints) else text

    def redact_bytes(self, raw: bytes, limit: int) -> bytes:
        """Do the same to bytes; return `limit` of them at most. No more is looked at than that takes."""
        part = raw[: limit + _SLACK_BYTES]
        lower = part.lower()
        if any(hint in lower for hint in self._raw_hints):
            part = self._raw_pattern.sub(MASK.encode(), part)
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


def load_key(key_file: Path | None, environ: Mapping[str, str]) -> Secret:
    """Return the key from `key_file`, else from systemd's credentials, else from the environment.

    Raises:
        KeyRefused: there is none, its file is readable to others, or it can't be a key.
    """
    if key_file is not None:
        return _checked(_read(key_file, private=True), str(key_file))
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder:
        credential = Path(folder) / CREDENTIAL_NAME
        if credential.exists():
            # systemd sets owner and mode of these itself, and not to 0600.
            return _checked(_read(credential, private=False), str(credential))
    value = environ.get(KEY_VARIABLE, "")
    if value:
        return _checked(value, KEY_VARIABLE)
    raise KeyRefused(
        "no key for the endpoint",
        f"get one in the TTAPI dashboard (https://ttapi.io), then: export {KEY_VARIABLE}=…, or --key-file FILE; "
        "to rehearse for free without any: --sandbox",
    )


def _read(path: Path, *, private: bool) -> str:
    try:
        # Non-blocking: a named pipe must be refused below, not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failed:
        raise KeyRefused(f"can't read the key file {path}: {failed.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyRefused(f"the key file {path} is not a regular file")
        if private and status.st_uid != os.geteuid():
            raise KeyRefused(f"the key file {path} belongs to somebody else", f"chown it, then: chmod 600 {path}")
        if private and stat.S_IMODE(status.st_mode) & 0o177:
            raise KeyRefused(f"the key file {path} is open to others", f"chmod 600 {path}")
        content = os.read(descriptor, MAX_KEY_BYTES + 1)
    except OSError as failed:
        raise KeyRefused(f"can't read the key file {path}: {failed.strerror}") from None
    finally:
        os.close(descriptor)
    return content.decode("ascii", "replace")


def _checked(text: str, source: str) -> Secret:
    value = text.removesuffix("\n").removesuffix("\r")
    if not value:
        raise KeyRefused(f"the key in {source} is empty")
    if len(value) > MAX_KEY_BYTES or not _HEADER_SAFE.fullmatch(value):
        raise KeyRefused(f"what {source} holds is no key: one line of printable ASCII without spaces is expected")
    return Secret(value)
