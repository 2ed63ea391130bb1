"""Bytes to text: UTF-8, with or without its mark; UTF-16 only with its mark. Nothing is guessed.

Rule 1: memory is bounded by MAX_ROW_CHARS, whatever the file's size.
Rule 2: lines end in LF. A CR before it is left to the formats: inside quotes it belongs to the text.
Rule 3: every byte that is read goes through `Hashed` too, so what was planned is what was hashed.
"""

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from .reporting import Unreadable

CHUNK_BYTES = 1 << 18
MAX_ROW_CHARS = 16 << 20

_UTF32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_CONVERT = (
    "UTF-8; convert it with `iconv -f ENCODING -t UTF-8 OLD > NEW`, "
    "where ENCODING is what it was saved in: WINDOWS-1252 (Excel), GB18030, SHIFT_JIS, UTF-16LE, …"
)


class Readable(Protocol):
    """The one thing that is asked of a source of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


class Hashed:
    """A stream that remembers the hash of what was read.

    Attributes:
        digest: SHA-256 of the whole stream, once its end was read; None before.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.digest: bytes | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        data = self._stream.read(size)
        self._hash.update(data)
        if not data:
            self.digest = self._hash.digest()
        return data

    def drain(self) -> None:
        """Read what is left, for the hash."""
        while self.read(CHUNK_BYTES):
            pass


class Gunzipped:
    """The unpacked bytes of a `.gz` stream of one or several members."""

    def __init__(self, stream: Readable) -> None:
        self._file: Readable = gzip.GzipFile(fileobj=stream, mode="rb")  # type: ignore[call-overload]  # only read

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            Unreadable: it is no gzip file, or a damaged or cut one.
        """
        try:
            return self._file.read(size)
        except (OSError, EOFError, zlib.error) as failed:
            raise Unreadable(0, f"a damaged gzip file ({failed})", "a whole .gz file") from None


def text_chunks(stream: Readable) -> Iterator[str]:
    """Yield the text of a stream in pieces that end anywhere.

    Raises:
        Unreadable: it is neither UTF-8 nor UTF-16 with its mark, naming the line and the byte.
    """
    data = stream.read(CHUNK_BYTES)
    name = _encoding(data)
    decoder = codecs.getincrementaldecoder(name)("strict")
    lines = 1
    while True:
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as failed:
            raise _undecodable(failed, name, lines) from None
        lines += text.count("\n")
        yield text
        if not data:
            return
        data = stream.read(CHUNK_BYTES)


def text_lines(stream: Readable) -> Iterator[str]:
    """Yield the lines of a stream without their LF.

    Raises:
        Unreadable: as `text_chunks`; or a line above 16 million characters.
    """
    tail = ""
    count = 0
    for chunk in text_chunks(stream):
        lines = (tail + chunk).split("\n")
        tail = lines.pop()
        count += len(lines)
        if len(tail) > MAX_ROW_CHARS:
            raise Unreadable(count + 1, "a line that does not end", f"at most {MAX_ROW_CHARS:,} characters a line")
        yield from lines
    if tail:
        yield tail


def whole_text(stream: Readable, limit: int = MAX_ROW_CHARS) -> str:
    """Return all the text of a small file.

    Raises:
        Unreadable: as `text_chunks`; or above `limit` characters.
    """
    parts: list[str] = []
    size = 0
    for chunk in text_chunks(stream):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise Unreadable(0, "a file without an end in sight", f"at most {limit:,} characters")
    return "".join(parts)


def _encoding(start: bytes) -> str:
    if start.startswith(_UTF32):
        raise Unreadable(1, "UTF-32", _CONVERT.replace("ENCODING", "UTF-32", 1))
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Every other byte zero: UTF-16 whose mark was lost. As UTF-8 it would be bought letter by letter with NULs.
    if len(start) >= 4 and (start[0:4:2] == b"\0\0" or start[1:4:2] == b"\0\0"):
        raise Unreadable(1, "UTF-16 without its byte order mark", _CONVERT.replace("ENCODING", "UTF-16LE", 1))
    return "utf-8-sig"


def _undecodable(failed: UnicodeDecodeError, name: str, lines: int) -> Unreadable:
    before = failed.object[: failed.start].decode(name, "replace")
    line = lines + before.count("\n")
    column = len(before) - (before.rfind("\n") + 1) + 1
    byte = failed.object[failed.start]
    kind = "UTF-16" if name == "utf-16" else "UTF-8"
    return Unreadable(line, f"the byte 0x{byte:02x} near character {column} is not {kind}", _CONVERT)
