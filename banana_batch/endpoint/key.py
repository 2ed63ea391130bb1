"""The key: where it comes from, and how it is kept out of everything that is written.

Rule 1: the key's text leaves a `Secret` only through `reveal`, into the header of one request.
Rule 2: no option takes the key itself: command lines are public.
"""

import base64
import html
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, quote_plus

from banana_batch.errors import KeyRefused

KEY_VARIABLE = "TT_API_KEY"
CREDENTIAL_NAME = "ttapi_key"
MASK = "***"
MAX_KEY_BYTES = 4096
# Shorter texts are no secrets: hiding every "test" would spoil urls and messages and protect nothing.
MIN_HIDDEN_CHARS = 8

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_ASCII_ESCAPE = re.compile(rb"\\u00([2-7][0-9a-fA-F])")


class Secret:
    """A text that shows as `***` wherever it is printed, logged or formatted."""

    __slots__ = ("_forms", "_raw_forms", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        hidden = len(value) >= MIN_HIDDEN_CHARS
        # The longest first: a form that holds another one must go as a whole.
        self._forms = sorted(set(_forms(value)), key=len, reverse=True) if hidden else []
        self._raw_forms = [form.encode() for form in self._forms]

    def reveal(self) -> str:
        """Return the text itself."""
        return self._value

    def redact(self, text: str) -> str:
        """Return `text` with every known spelling of the secret replaced by `***`."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, MASK)
        return text

    def redact_bytes(self, raw: bytes) -> bytes:
        """The same for bytes; `\\u00xx` spellings of printable ASCII are read as what they mean."""
        if not self._forms:
            return raw
        if b"\\u00" in raw:
            raw = _ASCII_ESCAPE.sub(_unescaped, raw)
        for form in self._raw_forms:
            if form in raw:
                raw = raw.replace(form, MASK.encode())
        return raw

    def __repr__(self) -> str:
        return MASK

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def _unescaped(match: re.Match[bytes]) -> bytes:
    char = bytes.fromhex(match[1].decode())
    return match[0] if char in (b'"', b"\\") else char  # these two keep the JSON whole


def _forms(value: str) -> Iterator[str]:
    """Yield the spellings in which a server, a proxy or a log could repeat the secret."""
    raw = value.encode()
    yield value
    yield quote(value, safe="")
    yield quote_plus(value)
    yield html.escape(value)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value)[1:-1].replace("/", "\\/")
    yield raw.hex()
    yield raw.hex().upper()
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
