"""Everything that can go wrong between a url and a file, as rows: the twin of the table of answers.

Rule 1: one row a class. None of them takes a job from `paid` to anything but `lost`, and only twice the same
        damaged bytes do that here; a missing image is given up by the engine, after `--download-wait`.
Rule 2: a fetch is free, so it may be tried again: `retries` and `backoff` bound one run, not the job.
Rule 3: nothing of the network is imported here: the process that only writes files starts in no time (outside.py).
"""

import errno

from msgspec import Struct

from banana_batch.errors import Exit
from banana_batch.models import Backoff, FetchFailed, StopRule
from banana_batch.text import printable


class Row(Struct, frozen=True):
    """One class of failure: the fixed part of a FetchFailed."""

    name: str
    retries: int
    backoff: Backoff
    stop: StopRule | None = None
    gone: bool = False

    def failed(self, message: str, *, sha256: str | None = None, lost: bool = False) -> FetchFailed:
        """Return the failure; `message` may hold other people's text."""
        return FetchFailed(
            self.name,
            printable(message),
            0 if lost else self.retries,
            self.backoff,
            lost=lost,
            stop=self.stop,
            sha256=sha256,
            gone=self.gone,
        )


_NONE = Backoff(0.0, 0.0)

UNREACHABLE = Row("image_unreachable", 8, Backoff(2.0, 600.0))  # DNS, connect, TLS, reset, timeout
SERVER_ERROR = Row("image_server_error", 8, Backoff(2.0, 600.0))  # 5xx, 429, and what is no HTTP
GONE = Row("image_gone", 6, Backoff(10.0, 600.0), gone=True)  # 403, 404, 410: not there yet, or no longer
REFUSED = Row("image_refused", 6, Backoff(10.0, 600.0))  # 401, other 4xx, redirects that lead nowhere
SHORT = Row("image_short", 5, Backoff(2.0, 60.0))  # fewer bytes than announced, or none
WRONG_TYPE = Row("image_wrong_type", 3, Backoff(5.0, 60.0))  # a web page, an encoded body
DAMAGED = Row("image_damaged", 2, Backoff(5.0, 60.0))
TOO_LARGE = Row("image_too_large", 2, Backoff(5.0, 60.0))  # over 100 MB, over 200 megapixels
BLOCKED = Row(
    "image_blocked", 0, _NONE, StopRule(Exit.PROTOCOL, "the urls are kept; see the message for how to allow the host")
)
DISK = Row(
    "disk", 0, _NONE, StopRule(Exit.DISK, "free some space or mend the disk, then run again: nothing paid is lost")
)
NO_OUTPUT = Row("output", 0, _NONE, StopRule(Exit.NO_OUTPUT, "mend the output folder, then run again"))

_NAME_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP})


def by_disk(failure: OSError) -> FetchFailed:
    """Return what an error of the local disk means: stop paying, lose nothing."""
    row = NO_OUTPUT if failure.errno in _NAME_ERRNOS else DISK
    return row.failed(f"the image can't be written: {failure.strerror or type(failure).__name__}")
