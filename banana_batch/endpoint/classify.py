"""Everything that can come of one paid request, as a table.

Rule 1: a case is a row of ROWS with its test; adding a case is adding a row.
Rule 2: evidence decides, never an exception's name alone. No byte left: not sent. A whole answer in the
        endpoint's own words, or a listed 4xx: refused. All else: in doubt.
Rule 3: what no row names is in doubt and never sent again by the program.
Rule 4: no I/O, no clock: the same evidence always gives the same verdict.

Outages, 5xx envelopes and throttling have no stop rule here: `--give-up-after` ends those (contract, section 8).
"""

import re

from msgspec import Struct

from banana_batch.errors import Exit
from banana_batch.models import Answer, Backoff, Outcome, Signal, StopRule, Verdict
from banana_batch.money import is_beyond_price, usable_quota

from . import wire

_PAID, _DOUBT, _REFUSED = Outcome.PAID, Outcome.IN_DOUBT, Outcome.REFUSED
_NOT_SENT, _FOR_NOW = Outcome.NOT_SENT, Outcome.REFUSED_FOR_NOW

UNCOUNTED = -1  # none of the job's retries is used up

_RECONNECT = Backoff(1.0, 60.0)
_RECOVER = Backoff(5.0, 60.0)
_COOL_DOWN = Backoff(5.0, 120.0)
_QUEUE = Backoff(10.0, 180.0)


def _unknown_protocol(after: int) -> StopRule:
    hint = "the endpoint answers in a way this version does not know: look at run.log, then for a newer version"
    return StopRule(Exit.PROTOCOL, hint, after)


def _not_sent(name: str, stop: StopRule | None = None) -> Verdict:
    return Verdict(name, _NOT_SENT, Signal.UNREACHED, UNCOUNTED, _RECONNECT, stop)


def _doubt(name: str, stop: StopRule | None = None) -> Verdict:
    return Verdict(name, _DOUBT, Signal.DOUBT, stop=stop)


def _stops(name: str, code: Exit, hint: str) -> Verdict:
    """A refusal that would meet every other job too: the run stops, the job stays pending."""
    return Verdict(name, _FOR_NOW, Signal.NEUTRAL, UNCOUNTED, stop=StopRule(code, hint))


_KEY_HINT = "check the key (--key-file, TT_API_KEY) and the account in the TTAPI dashboard, then run again"
_GATEWAY_HINT = "check --base-url: the endpoint lives at <base url>/gemini/image/generate"
_CLOCK_HINT = "check the machine's clock, --base-url and, behind a company proxy, --ca-file"
_TLS_HINT = "nothing was sent: TLS with the gateway fails; check --base-url, --proxy and the network"
_PRICE_HINT = "look at your account: what the image cost is not known, and counts as its reserve"
_ROWS_HINT = "the endpoint refuses every row: mend the manifest, or try one row by hand"

OK = Verdict("ok", _PAID, Signal.GOOD)
QUOTA_BAD = Verdict("quota_bad", _PAID, Signal.GOOD)
QUOTA_ABSURD = Verdict("quota_absurd", _PAID, Signal.GOOD, stop=StopRule(Exit.PROTOCOL, _PRICE_HINT))

DNS = _not_sent("dns")
CONNECT = _not_sent("connect")
PROXY_REFUSED = _not_sent("proxy_refused")
CUT_BEFORE_SEND = _not_sent("cut_before_send")
NOT_SENT = _not_sent("not_sent")
TLS_CERTIFICATE = _not_sent("tls_certificate", StopRule(Exit.SETTINGS, _CLOCK_HINT))
TLS_VERSION = _not_sent("tls_version", StopRule(Exit.SETTINGS, _TLS_HINT))
TLS_HANDSHAKE = _not_sent("tls_handshake", StopRule(Exit.UNAVAILABLE, _TLS_HINT, after=3))
REFERENCE_CHANGED = Verdict("reference_changed", _REFUSED, Signal.NEUTRAL)

CUT_AFTER_SEND = _doubt("cut_after_send")
TIMEOUT = _doubt("timeout")
GARBLED = _doubt("garbled", _unknown_protocol(3))
UNEXPECTED = _doubt("unexpected")

REDIRECT = _stops("redirect", Exit.PROTOCOL, "a captive portal, or the gateway moved: check the network and --base-url")
KEY_REFUSED = _stops("key_refused", Exit.KEY, _KEY_HINT)
OUT_OF_CREDITS = _stops("out_of_credits", Exit.OUT_OF_CREDITS, "top up the account, then run again")
FORBIDDEN = _stops("forbidden", Exit.KEY, _KEY_HINT)
WRONG_ENDPOINT = _stops("wrong_endpoint", Exit.SETTINGS, _GATEWAY_HINT)
BAD_REQUEST = Verdict(
    "bad_request", _REFUSED, Signal.REFUSED, stop=StopRule(Exit.BAD_INPUT, _ROWS_HINT, after=10, from_start=True)
)
REQUEST_REFUSED = Verdict("request_refused", _REFUSED, Signal.REFUSED)
NOT_NOW = Verdict("not_now", _FOR_NOW, Signal.OVERLOADED, 1, _RECOVER)
NOT_NOW_UNCLEAR = _doubt("not_now_unclear")
RATE_LIMITED = Verdict("rate_limited", _FOR_NOW, Signal.THROTTLED, UNCOUNTED, _COOL_DOWN)
QUEUE_FULL = Verdict("queue_full", _FOR_NOW, Signal.THROTTLED, UNCOUNTED, _QUEUE)

SERVER_FAILED = Verdict("server_failed", _FOR_NOW, Signal.OVERLOADED, None, _RECOVER)
OVERLOADED = Verdict("overloaded", _FOR_NOW, Signal.THROTTLED, None, _RECOVER)
GATEWAY_ERROR = _doubt("gateway_error")
GATEWAY_TIMEOUT = _doubt("gateway_timeout")
UNLISTED = _doubt("unlisted_status", _unknown_protocol(3))

FAILED = Verdict("failed", _FOR_NOW, Signal.OVERLOADED, 1, _RECOVER)
CONTENT_REFUSED = Verdict("content_refused", _REFUSED, Signal.REFUSED)
QUEUED = _doubt("queued", _unknown_protocol(3))
NO_IMAGE_URL = _doubt("no_image_url", _unknown_protocol(2))
UNKNOWN_ENVELOPE = _doubt("unknown_envelope", _unknown_protocol(3))
NOT_JSON = _doubt("not_json", _unknown_protocol(2))
TRUNCATED = _doubt("truncated")
AMBIGUOUS = _doubt("ambiguous", _unknown_protocol(1))
TOO_LARGE = _doubt("too_large", _unknown_protocol(1))
ENCODED = _doubt("encoded", _unknown_protocol(3))


class Row(Struct, frozen=True):
    """One row of the table, with what a person sees of it.

    Attributes:
        charged: `yes`, `no` (certain: nothing was sent), `no (assumed)`, `unknown` (at risk).
    """

    verdict: Verdict
    seen: str
    charged: str


_CHARGED = {_PAID: "yes", _NOT_SENT: "no", _REFUSED: "no (assumed)", _FOR_NOW: "no (assumed)", _DOUBT: "unknown"}

_SEEN: tuple[tuple[Verdict, str], ...] = (
    (OK, "200 SUCCESS with an image_url and a usable quota"),
    (QUOTA_BAD, "200 SUCCESS with an image_url, quota missing or no price: the reserve stays at risk"),
    (QUOTA_ABSURD, "the same, and the quota is above a million credits"),
    (DNS, "the name can't be resolved"),
    (CONNECT, "refused, unreachable, or no connection in time"),
    (PROXY_REFUSED, "the proxy can't be reached or refuses the tunnel"),
    (CUT_BEFORE_SEND, "the connection ended before the request's first byte"),
    (NOT_SENT, "anything else before the request's first byte"),
    (TLS_CERTIFICATE, "a certificate that can't be trusted"),
    (TLS_VERSION, "nothing newer than TLS 1.1 is offered"),
    (TLS_HANDSHAKE, "the TLS handshake fails"),
    (REFERENCE_CHANGED, "a local reference image is gone or has changed since it was planned"),
    (CUT_AFTER_SEND, "the connection ended after the request's first byte"),
    (TIMEOUT, "no whole answer within --timeout of the send"),
    (GARBLED, "a status line or headers that are no HTTP"),
    (UNEXPECTED, "anything else after the request's first byte"),
    (REDIRECT, "3xx"),
    (BAD_REQUEST, "400"),
    (KEY_REFUSED, "401"),
    (OUT_OF_CREDITS, "402"),
    (FORBIDDEN, "403"),
    (WRONG_ENDPOINT, "404, 405"),
    (NOT_NOW, "408, 409, 425 in the endpoint's envelope"),
    (NOT_NOW_UNCLEAR, "408, 409, 425 with any other body"),
    (REQUEST_REFUSED, "413, 414, 415, 422, 431"),
    (RATE_LIMITED, "429"),
    (QUEUE_FULL, "499"),
    (SERVER_FAILED, "5xx but 503 and 504, in the endpoint's envelope"),
    (OVERLOADED, "503 in the endpoint's envelope"),
    (GATEWAY_ERROR, "5xx without the endpoint's envelope"),
    (GATEWAY_TIMEOUT, "504, with or without the envelope"),
    (UNLISTED, "any other status"),
    (FAILED, "200 FAILED"),
    (CONTENT_REFUSED, "200 FAILED, and the message speaks of forbidden content"),
    (QUEUED, "200 PENDING_QUEUE or ON_QUEUE"),
    (NO_IMAGE_URL, "200 SUCCESS, image_url missing, empty or no text"),
    (UNKNOWN_ENVELOPE, "200 with JSON that is no known envelope"),
    (NOT_JSON, "200 with HTML or anything else that is not JSON"),
    (TRUNCATED, "a body that ends early"),
    (AMBIGUOUS, "200 with a JSON key given twice, or nested deeper than 32 levels"),
    (TOO_LARGE, "a body above 1 MiB"),
    (ENCODED, "a Content-Encoding that was not asked for"),
)

ROWS: tuple[Row, ...] = tuple(Row(verdict, seen, _CHARGED[verdict.outcome]) for verdict, seen in _SEEN)
VERDICTS: dict[str, Verdict] = {row.verdict.name: row.verdict for row in ROWS}

# Statuses whose verdict needs no look at the body.
_BY_STATUS: dict[int, Verdict] = {
    400: BAD_REQUEST,
    401: KEY_REFUSED,
    402: OUT_OF_CREDITS,
    403: FORBIDDEN,
    **dict.fromkeys((404, 405), WRONG_ENDPOINT),
    **dict.fromkeys((413, 414, 415, 422, 431), REQUEST_REFUSED),
    429: RATE_LIMITED,
    499: QUEUE_FULL,
    504: GATEWAY_TIMEOUT,
    **dict.fromkeys(range(300, 400), REDIRECT),
}
_NOT_NOW_STATUSES = frozenset({408, 409, 425})

# Words of refusals that the same prompt would meet again (vendor facts, sections 2 and 10). "No image was
# generated" and the like are not among them: those are worth another try.
_FORBIDDEN_CONTENT = re.compile(
    r"safety|prohibited|banned|blocked|blocklist|policy|policies|violat|sensitive|nsfw|inappropriate|moderat"
    r"|recitation|\bspii\b|content filter|illegal|违规|敏感|违禁",
    re.IGNORECASE,
)


class Finding(Struct):
    """What an answer came to. `message` is still as the server wrote it."""

    verdict: Verdict
    answer: Answer | None = None
    message: str | None = None


def classify_answer(status: int, body: bytes, *, framed: bool = True, shown: bytes | None = None) -> Finding:
    """Judge a whole answer.

    Args:
        status: Of the response line, never of an exception.
        body: All of it, not encoded.
        framed: Its length was announced; else an early end can't be told from a whole body by the transport.
        shown: The start of the body as a message may quote it; None: as it is.
    """
    envelope = wire.parse(body)
    shown = body if shown is None else shown
    if status == 200:
        return _ok(body, envelope, framed, shown)
    if isinstance(envelope, wire.Envelope):
        return Finding(_other(status, envelope.status == wire.FAILED), message=envelope.message)
    return Finding(_other(status, False), message=_described(status, shown))


def _other(status: int, failed: bool) -> Verdict:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status in _NOT_NOW_STATUSES:
        return NOT_NOW if failed else NOT_NOW_UNCLEAR
    if 500 <= status <= 599:
        if not failed:
            return GATEWAY_ERROR
        return OVERLOADED if status == 503 else SERVER_FAILED
    return UNLISTED


def _described(status: int, body: bytes) -> str:
    text = wire.snippet(body)
    return f"HTTP {status}: {text}" if text else f"HTTP {status} without a body"


def _ok(body: bytes, envelope: wire.Envelope | wire.Flaw, framed: bool, shown: bytes) -> Finding:
    if isinstance(envelope, wire.Flaw):
        return _flawed(body, envelope, framed, shown)
    if envelope.status == wire.SUCCESS:
        return _succeeded(envelope)
    if envelope.status == wire.FAILED:
        refused = _FORBIDDEN_CONTENT.search(envelope.message or "")
        return Finding(CONTENT_REFUSED if refused else FAILED, message=envelope.message)
    words = f"status {envelope.status}" + (f", job {envelope.job_id}" if envelope.job_id else "")
    words += f": {envelope.message}" if envelope.message else ""
    return Finding(QUEUED if envelope.status in wire.QUEUED else UNKNOWN_ENVELOPE, message=words)


def _succeeded(envelope: wire.Envelope) -> Finding:
    url, credits_micro = wire.image_url(envelope.data), usable_quota(envelope.data.get("quota"))
    if url is None:
        return Finding(NO_IMAGE_URL, message=f"SUCCESS without an image_url; quota {envelope.data.get('quota')!s:.40}")
    if credits_micro is None:
        quota = envelope.data.get("quota")
        verdict = QUOTA_ABSURD if is_beyond_price(quota) else QUOTA_BAD
        return Finding(verdict, Answer(url, None), f"quota {quota!s:.40} is no price")
    return Finding(OK, Answer(url, credits_micro))


def _flawed(body: bytes, flaw: wire.Flaw, framed: bool, shown: bytes) -> Finding:
    if flaw is wire.Flaw.AMBIGUOUS:
        return Finding(AMBIGUOUS, message=flaw.value)
    if flaw is wire.Flaw.UNKNOWN:
        return Finding(UNKNOWN_ENVELOPE, message=f"{flaw.value}: {wire.snippet(shown)}")
    # Without an announced length, JSON that breaks off is what a cut connection looks like.
    if not framed and body.lstrip()[:1] in (b"", b"{"):
        return Finding(TRUNCATED, message="the answer ends early")
    return Finding(NOT_JSON, message=f"{flaw.value}: {wire.snippet(shown)}" if body.strip() else "an empty answer")
