"""Reference images on this machine: found, looked at and hashed before any credit is spent.

Rule 1: a file is read once, however many rows share it, in pieces: never a whole one in memory here.
Rule 2: its content is a part of the job's identity, its place is not.
Rule 3: the bytes decide what an image is, not its name.
"""

import hashlib
import os
import re
import stat
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from banana_batch.capabilities import MAX_REFERENCE_BYTES
from banana_batch.text import bytes_text

_CHUNK_BYTES = 1 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?=//|data:)|data:", re.IGNORECASE)
_HEIF_BRANDS = {
    b"heic": "image/heic", b"heix": "image/heic", b"heim": "image/heic", b"heis": "image/heic",
    b"mif1": "image/heif", b"msf1": "image/heif",
}  # fmt: skip
_A_REFERENCE = "an https url, or the path of a PNG, JPEG, WebP, HEIC or HEIF file"


class Reference(Struct, frozen=True):
    """A reference image on this machine.

    Attributes:
        path: Absolute.
        sha256: Of its bytes, hexadecimal.
        mime: By its first bytes.
    """

    path: str
    sha256: str
    mime: str


class BadReference(Exception):
    """A reference image that can't be used.

    Attributes:
        found: What it is.
        allowed: What it may be.
    """

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(found)
        self.found = found
        self.allowed = allowed


def is_url(given: str) -> bool:
    """Tell whether a reference goes to the endpoint as it stands.

    Raises:
        BadReference: a url that the endpoint can't read from.
    """
    match = _URL.match(given)
    if match is None:
        return False
    if match[0].lower() not in ("https:", "http:", "data:"):
        raise BadReference(given, _A_REFERENCE)
    return True


def local_reference(given: str, folder: Path) -> Reference:
    """Look at a file named relative to its manifest's folder.

    Raises:
        BadReference: missing, no image, or too large.
    """
    path = os.path.abspath(folder / given) if "\0" not in given else ""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as failed:
        reason = failed.strerror if isinstance(failed, OSError) else "no path"
        raise BadReference(f"{given} ({reason})", _A_REFERENCE) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadReference(f"{given} (no file)", _A_REFERENCE)
    if status.st_size > MAX_REFERENCE_BYTES:
        raise BadReference(f"{given} ({bytes_text(status.st_size)})", f"at most {MAX_REFERENCE_BYTES >> 20} MiB")
    try:
        sha256, mime = _looked_at(path, status.st_size, status.st_mtime_ns)
    except OSError as failed:
        raise BadReference(f"{given} ({failed.strerror})", _A_REFERENCE) from None
    if mime is None:
        raise BadReference(f"{given} (no such image by its first bytes)", _A_REFERENCE)
    return Reference(path, sha256, mime)


@lru_cache(maxsize=65_536)
def _looked_at(path: str, size: int, mtime_ns: int) -> tuple[str, str | None]:  # noqa: ARG001  # the cache's key
    digest = hashlib.sha256()
    mime: str | None = None
    with open(path, "rb") as file:
        chunk = file.read(_CHUNK_BYTES)
        mime = image_type(chunk)
        while chunk:
            digest.update(chunk)
            chunk = file.read(_CHUNK_BYTES)
    return digest.hexdigest(), mime


def image_type(start: bytes) -> str | None:
    """Return the media type of an image by its first bytes; None: not one that may be sent."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    return _HEIF_BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None
