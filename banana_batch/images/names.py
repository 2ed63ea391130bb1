"""What files and folders of images are called. Names only, no I/O.

Rule 1: the stem is the plan's (manifest/), checked there for collisions; here it is only trusted as far as it
        stays below `images/`.
Rule 2: the extension follows the content, never the url.
Rule 3: a name that starts with a dot is not final.
"""

import re

from banana_batch.errors import OutputError
from banana_batch.text import printable

IMAGES, DAMAGED, CONFLICTS = "images", "damaged", "conflicts"
FOLDER_SIZE = 10_000  # images a folder; from this index on they are numbered
MAX_NAME_BYTES = 255
EXTENSIONS: dict[str, str] = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}

PART = re.compile(r"\.[0-9]+\.part", re.ASCII)
_BAD = re.compile(r"[\x00-\x1f\x7f\\]")


def part_name(index: int) -> str:
    """Return the name under which an image's bytes arrive; matches PART."""
    return f".{index}.part"


def split_stem(index: int, stem: str) -> tuple[tuple[str, ...], str]:
    """Return the folders below OUT, from `images` on, and the file name without extension.

    Raises:
        OutputError: the stem would leave `images/`, be hidden, or not fit into a file name.
    """
    *folders, name = stem.split("/")
    number = index // FOLDER_SIZE
    for part in (*folders, name):
        fits = len(part.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES - len(".webp")
        if not part or part.startswith(".") or _BAD.search(part) or not fits:
            raise OutputError(f"image {index}: {printable(stem, 120)!r} is no file name", "mend --filename, run again")
    return ((IMAGES, str(number), *folders) if number else (IMAGES, *folders)), name


def file_name(name: str, content_type: str) -> str:
    """Return the final name for content of this type."""
    return f"{name}.{EXTENSIONS[content_type]}"


def damaged_name(index: int, sha256: str, content_type: str | None) -> str:
    """Return the name for bytes that are no whole image: their job's index and what they are."""
    return f"{index:05d}-{sha256[:12]}.{EXTENSIONS.get(content_type or '', 'bin')}"


def numbered(file: str, count: int) -> str:
    """Return `cat.png`, `cat~2.png`, `cat~3.png` … for count 1, 2, 3 …, within a file name's length."""
    if count == 1:
        return file
    name, dot, extension = file.rpartition(".")
    mark = f"~{count}{dot}{extension}"
    room = MAX_NAME_BYTES - len(mark.encode())
    return name.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore") + mark
