"""Whether the disk holds what is about to be bought."""

import os
from pathlib import Path

# The state file's log, results and the log of the run.
KEPT_FREE_BYTES = 1 << 20
# Until an image of this run was seen; then the largest seen.
FIRST_GUESS_BYTES = 256 << 10


class Room:
    """Implements `ports.Disk`; as `ports.Events` it learns how large images are."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._image_bytes = FIRST_GUESS_BYTES

    def has_room(self, images: int) -> bool:
        """Tell whether that many more images fit. A disk that does not answer is left to the write that fails."""
        try:
            found = os.statvfs(self._out)
        except OSError:
            return True
        return found.f_bavail * found.f_frsize >= KEPT_FREE_BYTES + images * self._image_bytes

    def emit(self, event: str, /, **facts: object) -> None:
        """Learn from each image that was stored."""
        size = facts.get("bytes")
        if event == "stored" and isinstance(size, int):
            self._image_bytes = max(self._image_bytes, size)
