"""A racer that swaps what lies in an output folder for symlinks while images are stored (S8)."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from banana_batch.errors import BananaError
from banana_batch.images.committer import Committer, Received
from banana_batch.images.folders import Folders
from banana_batch.images.recovery import adopt, rehash, remove_parts
from banana_batch.models import PaidImage, StoredImage
from banana_batch.report.results import write_results
from tests.unit.images.samples import png

PRECIOUS = b"precious"
INDEXES = range(1, 9)


@dataclass
class Raced:
    """What came of a race.

    Attributes:
        swaps: Times that something was swapped.
        stored: Images that were stored.
        refused: Attempts that ended in a clean failure.
        broken: Promises that were broken, in words.
    """

    swaps: int
    stored: int
    refused: int
    broken: list[str]


def race(folder: Path, swaps: int) -> Raced:
    """Store images for as long as it takes to swap so often; then look at what must not have changed."""
    out, outside = folder / "out", folder / "outside"
    for made in (out, outside, outside / "images"):
        made.mkdir(mode=0o700)
    victims = [outside / f"victim-{number}" for number in range(4)]
    for victim in victims:
        victim.write_bytes(PRECIOUS)
    ended = threading.Event()
    counted = [0]

    def swap() -> None:
        for turn in range(swaps):
            _swap(out, outside, victims[turn % len(victims)], turn)
            counted[0] += 1
        ended.set()

    racer = threading.Thread(target=swap)
    racer.start()
    stored = refused = 0
    body = png()
    with ThreadPoolExecutor(2) as disk:
        while not ended.is_set():
            good, bad = _round(out, body, disk)
            stored, refused = stored + good, refused + bad
    racer.join()
    return Raced(counted[0], stored, refused, _broken(outside, victims))


def _round(out: Path, body: bytes, disk: ThreadPoolExecutor) -> tuple[int, int]:
    """Do once all that the program does with names in a folder."""
    try:
        remove_parts(out)
        folders = Folders(out)
    except (BananaError, OSError):
        return 0, 1
    images = [PaidImage(index, str(index), "https://x/", f"{index:05d}-cat", None) for index in INDEXES]
    try:
        done = Committer(folders, disk).commit([Received(image, body, None, True) for image in images])
    finally:
        folders.close()
    for image in images:
        with suppress(BananaError, OSError):
            adopt(out, image)
            rehash(out, f"images/{image.stem}.png")
    with suppress(BananaError, OSError):
        write_results(out, [])
    good = sum(isinstance(outcome, StoredImage) for outcome in done)
    return good, len(done) - good


def _swap(out: Path, outside: Path, victim: Path, turn: int) -> None:
    """Put a symlink in the place of a final name, a part, a result, or a folder; now and then give the folder back."""
    index = INDEXES[turn % len(INDEXES)]
    images = out / "images"
    places: Sequence[Path] = (
        images / f"{index:05d}-cat.png", images / f".{index}.part", out / "results.jsonl", out / "conflicts",
    )  # fmt: skip
    with suppress(OSError):
        if turn % 50 == 49:
            aside = out / f".aside-{turn}"
            images.rename(aside)
            images.symlink_to(outside / "images")
            for _ in range(20):
                os.sched_yield()
            images.unlink()
            aside.rename(images)
            return
        place = places[turn % len(places)]
        temporary = out / f".link-{turn}"
        temporary.symlink_to(victim if place.suffix else outside)
        os.replace(temporary, place)


def _broken(outside: Path, victims: Sequence[Path]) -> list[str]:
    broken = [f"{victim.name} was changed" for victim in victims if victim.read_bytes() != PRECIOUS]
    expected = {"images", *(victim.name for victim in victims)}
    broken += [f"{name} was made outside" for name in sorted(set(os.listdir(outside)) - expected)]
    broken += [f"images/{name} was made outside" for name in os.listdir(outside / "images")]
    return broken
