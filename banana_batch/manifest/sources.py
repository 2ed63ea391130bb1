"""From what the user named to files: patterns, formats, standard input.

Rule 1: the name says the format; where it does not, `--format` does; nothing looks into a file to guess.
Rule 2: what does not exist is told before anything is read.
"""

from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from banana_batch.errors import InputMissing, UsageError
from banana_batch.text import printable

from .encoding import Gunzipped, Hashed, Readable
from .formats import LINE_FORMATS, READERS, Row
from .reporting import Report, one_of

STDIN = "-"
TABLES = ("csv", "tsv", "txt")
JOB_FILE = "toml"
FORMATS = (*READERS, JOB_FILE)


class Source(Struct):
    """A manifest.

    Attributes:
        name: As the user gave it.
        path: Absolute; None: standard input.
        format: One of FORMATS.
        packed: It is a `.gz` file.
        digest: SHA-256 of its bytes as they were last read to the end; None: not yet, or standard input.
    """

    name: str
    path: Path | None
    format: str
    packed: bool = False
    digest: bytes | None = None

    def rows(self, stdin: BinaryIO, report: Report) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            Unreadable: it can't be read from a line on.
            InputMissing: it can't be opened or read at all.
        """
        read = READERS[self.format]
        try:
            if self.path is None:
                yield from read(stdin, report)
                return
            with self.path.open("rb") as file:
                stream = Hashed(file)
                content: Readable = Gunzipped(stream) if self.packed else stream
                yield from read(content, report)
                stream.drain()
                self.digest = stream.digest
        except OSError as failed:
            raise InputMissing(f"{printable(self.name)}: {failed.strerror}") from None

    def hashed(self) -> bytes | None:
        """Return the hash of the file's bytes, reading it only where that was not done; None: it is read but once."""
        if self.path is not None and self.path.exists() and not self.path.is_file():
            return None  # a pipe
        if self.digest is None and self.path is not None:
            try:
                with self.path.open("rb") as file:
                    stream = Hashed(file)
                    stream.drain()
            except OSError as failed:
                raise InputMissing(f"{printable(self.name)}: {failed.strerror}") from None
            self.digest = stream.digest
        return self.digest

    @property
    def stem(self) -> str:
        """The file's name without `.csv`, `.csv.gz` and the like."""
        name = Path(self.name).name
        return Path(name.removesuffix(".gz") if self.packed else name).stem


def find_sources(names: Sequence[str], folder: Path, format: str | None) -> list[Source]:
    """Return the manifests that names and patterns mean, in order; those of a pattern by name.

    Args:
        folder: What relative names are relative to.
        format: For names that do not say it.

    Raises:
        InputMissing: there is no such file, or none that matches.
        UsageError: a format that nothing tells, or a file that is named twice (it would be paid for twice).
    """
    if not names:
        raise UsageError("no manifest was given", "banana-batch run prompts.csv")
    sources = [source for name in names for source in _matching(name, folder, format)]
    seen: set[str] = set()
    for source in sources:
        real = str(source.path.resolve()) if source.path else STDIN
        if real in seen:
            raise UsageError(f"{printable(source.name)} is given twice", "name each manifest once")
        seen.add(real)
    return sources


def refuse_gainsaid(sources: Sequence[Source], format: str | None) -> None:
    """Refuse a `--format` that no name needs and one gainsays: read by its name, a table would be bought as prompts.

    Raises:
        UsageError: the first such file.
    """
    odd = next((source for source in sources if source.format != JOB_FILE), None)
    if format is None or odd is None or any(_is(source, format) for source in sources):
        return
    name = printable(odd.name)
    raise UsageError(
        f"{name}: by its name it is {odd.format}, and --format says {format}",
        f"leave --format out, or rename it, or let it be read without a name: -o DIR --format {format} - < {name}",
    )


def _is(source: Source, format: str) -> bool:
    return source.format == format or (format in READERS and READERS.get(source.format) is READERS[format])


def _matching(name: str, folder: Path, format: str | None) -> Iterator[Source]:
    if name == STDIN:
        yield _standard_input(format)
        return
    path = _place(folder, name)
    if has_magic(name) and not path.exists():
        found = sorted(glob(name, root_dir=folder, recursive=True))
        files = [each for each in found if _place(folder, each).is_file()]
        if not files:
            raise InputMissing(f"nothing matches {printable(name)}")
        yield from (_file(each, _place(folder, each), format) for each in files)
        return
    if not path.exists():
        raise InputMissing(f"{printable(name)} does not exist")
    if path.is_dir():
        raise InputMissing(f"{printable(name)} is a folder", "name the manifests in it: 'FOLDER/*.csv'")
    yield _file(name, path, format)


def _place(folder: Path, name: str) -> Path:
    if "\0" in name:
        raise InputMissing(f"{printable(name)} does not exist")
    return (folder / name).absolute()


def _standard_input(format: str | None) -> Source:
    if format is None:
        raise UsageError("standard input has no name to tell its format", f"--format {'|'.join(READERS)}")
    if format == JOB_FILE:
        raise UsageError("a job file can't come from standard input", "banana-batch run jobs/overnight.toml")
    return Source(STDIN, None, format)


def _file(name: str, path: Path, format: str | None) -> Source:
    packed = path.suffix.lower() == ".gz"
    extension = Path(path.stem if packed else path.name).suffix.lower().removeprefix(".")
    kind = extension if extension in FORMATS else format
    if kind is None:
        known = one_of([f".{each}" for each in FORMATS])
        raise UsageError(f"{printable(name)}: its name does not tell the format ({known})", "--format csv, or another")
    if packed and kind not in LINE_FORMATS:
        raise UsageError(f"{printable(name)}: .gz holds {one_of(LINE_FORMATS)}", f"gunzip {printable(name)}")
    return Source(name, path, kind, packed)
