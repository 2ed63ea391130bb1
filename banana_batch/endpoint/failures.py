"""From what aiohttp raises to a row of the table. Apart from classify.py, so that the table needs no aiohttp."""

import ssl

import aiohttp

from banana_batch.models import Verdict
from banana_batch.peer import Garbled

from . import classify as table
from .references import ReferenceChanged

# What OpenSSL says when the two sides share no version of the protocol that is still safe.
_VERSION_REASONS = ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW")


def classify_failure(failed: BaseException, sent: bool) -> Verdict:
    """Judge a call that ended without a whole answer.

    Args:
        sent: The request was handed to the transport: from then on everything is in doubt, whatever its name.
    """
    return _after_send(failed) if sent else _before_send(failed)


def _after_send(failed: BaseException) -> Verdict:
    if isinstance(failed, aiohttp.ClientPayloadError):
        return table.TRUNCATED
    if isinstance(failed, Garbled):
        return table.GARBLED
    if isinstance(failed, TimeoutError):
        return table.TIMEOUT
    if isinstance(failed, aiohttp.ClientConnectionError | OSError):
        return table.CUT_AFTER_SEND
    return table.UNEXPECTED


# The first row that fits; the more special types come first.
_BEFORE_SEND: tuple[tuple[tuple[type[BaseException], ...], Verdict], ...] = (
    ((ReferenceChanged,), table.REFERENCE_CHANGED),
    ((aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError), table.TLS_CERTIFICATE),
    ((aiohttp.ClientConnectorDNSError,), table.DNS),
    ((aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError), table.PROXY_REFUSED),
    ((ConnectionResetError, ConnectionAbortedError, aiohttp.ServerDisconnectedError), table.CUT_BEFORE_SEND),
    ((OSError, TimeoutError), table.CONNECT),
)


def _before_send(failed: BaseException) -> Verdict:
    cause = _cause(failed)
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError):
        reason = cause.reason or ""
        return table.TLS_VERSION if any(part in reason for part in _VERSION_REASONS) else table.TLS_HANDSHAKE
    for kinds, verdict in _BEFORE_SEND:
        if isinstance(failed, kinds) or isinstance(cause, kinds):
            return verdict
    return table.NOT_SENT


def _cause(failed: BaseException) -> BaseException:
    """Return what the system said, where aiohttp wraps it."""
    return failed.os_error if isinstance(failed, aiohttp.ClientConnectorError) else failed


def describe(failed: BaseException) -> str:
    """Return a failure in words that hold no header and no url of the request.

    Never `repr`, and never an exception's own `str` where aiohttp puts the request into it.
    """
    name = type(failed).__name__
    cause = _cause(failed)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"{name}: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"{name}: {cause.reason or cause.strerror}"
    if isinstance(failed, aiohttp.ClientHttpProxyError):
        return f"{name}: the proxy answered {failed.status} {failed.message}"
    if isinstance(failed, Garbled | aiohttp.ClientResponseError):
        return f"{name}: {failed.message}"
    if isinstance(failed, ReferenceChanged):
        return str(failed)
    detail = cause.strerror if isinstance(cause, OSError) else None
    return f"{name}: {detail}" if detail else f"{name}: {type(cause).__name__}" if cause is not failed else name
