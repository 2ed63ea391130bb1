"""Which row of failures.py an ending of the network is.

Rule: no exception's `repr` and no header enters a message.
"""

import errno

import aiohttp

from banana_batch.models import FetchFailed
from banana_batch.peer import Garbled

from .failures import BLOCKED, GONE, REFUSED, SERVER_ERROR, SHORT, UNREACHABLE, Row
from .guard import Blocked, allow_text


class AddressBlocked(OSError):
    """A connect to an address that is not public, refused before it was begun."""

    def __init__(self, address: str) -> None:
        # The same text for every address: only so does a connect with several of them end in this error (rather
        # than in a summary of unlike errors) when all were refused.
        super().__init__(errno.EACCES, "not a public address")
        self.address = address


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
