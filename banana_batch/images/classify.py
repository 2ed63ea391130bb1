"""Everything that can go wrong between a url and a file, and what follows: the twin of the table of answers.

Rule 1: one row a class. None of them takes a job from `paid` to anything but `lost`, and only twice the same
        damaged bytes do that here; a missing image is given up by the engine, after `--download-wait`.
Rule 2: a fetch is free, so it may be tried again: `retries` and `backoff` bound one run, not the job.
Rule 3: no exception's `repr` and no header enters a message.
"""

import errno

import aiohttp
from msgspec import Struct

from banana_batch.errors import Exit
from banana_batch.exchange import Garbled
from banana_batch.models import Backoff, FetchFailed, StopRule
from banana_batch.text import printable

from .guard import Blocked, allow_text


class AddressBlocked(OSError):
    """A connect to an address that is not public, refused before it was begun."""

    def __init__(self, address: str) -> None:
        # The same text for every address: only so does a connect with several of them end in this error (rather
        # than in a summary of unlike errors) when all were refused.
        super().__init__(errno.EACCES, "not a public address")
        self.address = address


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


def by_status(status: int) -> FetchFailed:
    """Return what an HTTP status other than 200 means for an image."""
    message = f"the image's host answered {status}"
    if status in (403, 404, 410):
        return GONE.failed(message)
    if status in (408, 425, 429) or status >= 500 or status < 300:
        return SERVER_ERROR.failed(message)
    return REFUSED.failed(message)


def by_exception(failure: Exception) -> FetchFailed:
    """Return what an exception of the image connections means (never one of the disk: see `by_disk`)."""
    if isinstance(failure, aiohttp.ClientConnectorError):
        return _by_connect(failure)
    for kind, row, message in _BY_EXCEPTION:
        if isinstance(failure, kind):
            return row.failed(message)
    return UNREACHABLE.failed("the connection to the image's host was cut")


_BY_EXCEPTION: tuple[tuple[type[Exception], Row, str], ...] = (
    (aiohttp.ClientHttpProxyError, UNREACHABLE, "the proxy does not let the request through"),
    (aiohttp.ClientPayloadError, SHORT, "the body ended before its announced end"),
    (Garbled, SERVER_ERROR, "the image's host did not answer in HTTP"),
    (TimeoutError, UNREACHABLE, "the image did not come in time"),
)


def _by_connect(failure: aiohttp.ClientConnectorError) -> FetchFailed:
    inner = failure.os_error
    if isinstance(inner, AddressBlocked):
        reason = f"{failure.host} is at {inner.address}, which is not a public address"
        return blocked(Blocked(reason, allow_text(failure.host, failure.port)))
    if isinstance(failure, aiohttp.ClientConnectorDNSError):
        return UNREACHABLE.failed(f"the name {failure.host} can't be resolved")
    if isinstance(failure, aiohttp.ClientSSLError):
        return UNREACHABLE.failed(f"no trusted TLS connection to {failure.host}")
    return UNREACHABLE.failed(f"no connection to {failure.host}:{failure.port}")


def blocked(verdict: Blocked) -> FetchFailed:
    """Return the failure for a url or an address that may not be fetched, with how to allow it."""
    how = f"to allow it: --allow-host {verdict.allow}" if verdict.allow else "the url is kept with the job"
    return BLOCKED.failed(f"{verdict.reason}; {how}")


def by_disk(failure: OSError) -> FetchFailed:
    """Return what an error of the local disk means: stop paying, lose nothing."""
    row = NO_OUTPUT if failure.errno in _NAME_ERRNOS else DISK
    return row.failed(f"the image can't be written: {failure.strerror or type(failure).__name__}")
