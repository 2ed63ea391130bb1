"""Whether what is about to be bought has a place: on the disk, and in the ledger that the next run will find."""

import os
from collections.abc import Mapping
from pathlib import Path

from banana_batch.models import KEPT_FREE_BYTES
from banana_batch.ports import Listener

from .paths import IMAGES_NAME, state_path

# Images that may be bought without looking again while there is plenty of room: looking is a system call a job.
MOST_UNLOOKED = 32
# Until an image of this run was seen; then the largest seen.
FIRST_GUESS_BYTES = 256 << 10


class Room:
    """Implements `ports.Disk`; as `ports.Events` it learns how large images are."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._places = (state_path(out), out / IMAGES_NAME)
        self._known_as = self._identities()
        self._image_bytes = FIRST_GUESS_BYTES
        self._unlooked = 0

    @property
    def moved(self) -> bool:
        """The state file or the images are not where they were: the next run would not find what this one writes."""
        return self._identities() != self._known_as

    def _identities(self) -> list[tuple[int, int] | None]:
        return [_identity(place) for place in self._places]

    def has_room(self, images: int) -> bool:
        """Tell whether that many more images fit. A disk that does not answer is left to the write that fails."""
        if self._unlooked:
            self._unlooked -= 1
            return True
        try:
            found = os.statvfs(self._out)
        except OSError:
            return True
        spare = found.f_bavail * found.f_frsize - KEPT_FREE_BYTES - images * self._image_bytes
        # Half of what is spare is left to others who write there meanwhile.
        self._unlooked = max(0, min(MOST_UNLOOKED, spare // (2 * self._image_bytes)))
        return spare >= 0

    def emit(self, event: str, /, **facts: object) -> None:
        """Learn from each image that was stored."""
        if event == "stored":
            self._learn(facts)

    def listener(self, event: str) -> Listener | None:
        """See ports.Events."""
        return self._learn if event == "stored" else None

    def _learn(self, facts: Mapping[str, object]) -> None:
        size = facts.get("bytes")
        if isinstance(size, int) and size > self._image_bytes:
            self._image_bytes, self._unlooked = size, 0


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_dev, found.st_ino
