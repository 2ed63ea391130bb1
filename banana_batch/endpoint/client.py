"""The paid client: one call of `generate` is one request, and every ending is a value.

Rule 1: never a second request: no retry, no redirect, and a trace that was sent is never sent again.
Rule 2: `SendTrace.sent_at_s` is set before the request's first byte is handed to the transport. Not set proves
        that nothing left; set proves nothing.
Rule 3: the deadline counts from the send to the end of the answer; before it only the connect timeouts count.
Rule 4: nothing that came from outside leaves here with the key in it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from yarl import URL

from banana_batch import __version__
from banana_batch.errors import SettingsError
from banana_batch.exchange import Exchange, Route, exchange
from banana_batch.models import Answer, Outcome, QueuedJob, Reply, SendTrace, Verdict
from banana_batch.ports import Clock
from banana_batch.secret import Secret
from banana_batch.text import printable
from banana_batch.trust import tls_context

from . import classify, wire
from .expiry import Expiry
from .failures import classify_failure, describe
from .references import References
from .transport import IDLE_S, PaidConnector, connect_limits

PATH = "/gemini/image/generate"
KEY_HEADER = "TT-API-KEY"
USER_AGENT = f"banana-batch/{__version__}"
MAX_RAW_BYTES = 64 * 1024
# Of the loop, in which what came in time is still read when the time is over.
LAST_TURNS = 8
# An answer repeats prompt and references, so a large request may have a large answer; escapes at most double it.
LARGE_REQUEST_BYTES = 64 * 1024


class _TooLarge(Exception):
    """The answer is longer than any real one."""


class _Call:
    """What is known of one request so far."""

    __slots__ = (
        "body", "clock", "cut", "expired", "expiry", "headers", "kept", "limit_bytes", "status", "timeout_s", "trace",
        "turns_left",
    )  # fmt: skip

    def __init__(self, trace: SendTrace, timeout_s: float, clock: Clock, expiry: Expiry) -> None:
        self.trace = trace
        self.clock = clock
        self.expiry = expiry
        self.timeout_s = timeout_s
        self.cut: Callable[[], None] | None = None
        self.turns_left = LAST_TURNS
        self.expired = False
        self.limit_bytes = wire.MAX_ANSWER_BYTES
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = bytearray()
        self.kept = b""  # its start without the key, once it has ended

    def sending(self, cut: Callable[[], None]) -> None:
        """Note that the first byte may leave now; `cut` breaks the connection off."""
        if self.trace.sent_at_s is not None:
            raise RuntimeError("a request is never sent twice")
        self.trace.sent_at_s = self.clock.monotonic_s()
        self.cut = cut
        self.expiry.begin(self.late, self.timeout_s)

    def late(self) -> None:
        """End it for its length, unless its answer is there: a process that was frozen finds both at once."""
        if self.cut is None:
            return
        if self.turns_left:
            self.turns_left -= 1
            asyncio.get_running_loop().call_soon(self.late)
        else:
            self.expired = True
            self.cut()

    def end(self) -> None:
        """It has ended, whatever happened: it can't be late any more."""
        if self.cut is not None:
            self.cut = None
            self.expiry.over(self.late, self.timeout_s)

    async def read(self, answer: Exchange) -> None:
        """Take in the answer.

        Raises:
            _TooLarge: it is longer than any real one.
        """
        self.status = answer.status
        self.headers = answer.headers
        content = answer.content
        while chunk := await content.readany():
            self.body += chunk
            if len(self.body) > self.limit_bytes:
                raise _TooLarge
            if content.at_eof():
                break


class EndpointClient:
    """The paid endpoint (`ports.Endpoint`), over connections of its own.

    Args:
        base_url: Gateway, without the endpoint's path.
        key: Sent with each request, and nowhere else.
        timeout_s: From an image size to the seconds that a call may take.
        executor: Reads local reference images.
        proxy: Url of an HTTP(S) proxy; the environment's are not used.
        ca_file: PEM certificates that are trusted beside the system's.

    Raises:
        SettingsError: the proxy is no http(s) url (at once), or `ca_file` is unusable (on entering).
    """

    def __init__(
        self,
        base_url: str,
        key: Secret,
        *,
        clock: Clock,
        timeout_s: Callable[[str], float],
        executor: Executor,
        proxy: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        if proxy is not None and (urlsplit(proxy).scheme not in ("http", "https") or not urlsplit(proxy).hostname):
            raise SettingsError("--proxy: an http or https url is expected")
        self._url = URL(base_url.rstrip("/") + PATH)
        self._key = key
        self._clock = clock
        self._timeout_s = timeout_s
        self._proxy = proxy
        self._ca_file = ca_file
        self._references = References(executor)

    async def __aenter__(self) -> Self:
        self._expiry = Expiry()
        self._connector = PaidConnector()
        headers = {
            KEY_HEADER: self._key.reveal(),
            "Content-Type": "application/json",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": USER_AGENT,
        }
        self._route = Route(
            self._connector,
            self._url,
            idle_s=IDLE_S,
            limits=connect_limits(),
            proxy=self._proxy,
            tls=partial(tls_context, self._ca_file),
            headers=headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, where: TracebackType | None
    ) -> None:
        self._expiry.close()
        self._route.close()
        await self._connector.close()

    async def generate(self, job: QueuedJob, trace: SendTrace) -> Reply:
        """Buy one image. See `ports.Endpoint`.

        Raises:
            asyncio.CancelledError: with `trace.sent_at_s` set, the call may have been charged.
        """
        call = _Call(trace, self._timeout_s(job.kind.image_size), self._clock, self._expiry)
        try:
            answer = await exchange(
                self._route, "POST", self._url.raw_path_qs, body=await self._body(call, job), sending=call.sending
            )
            try:
                await call.read(answer)
            finally:
                answer.end()
        except Exception as failed:  # noqa: BLE001  # Rule of the port: every ending is a value; what is not known is a doubt.
            return self._unanswered(call, TimeoutError() if call.expired else failed)
        finally:
            call.end()
        # A body without a length ends with its connection: one that was cut off would pass for whole.
        return self._unanswered(call, TimeoutError()) if call.expired else self._answered(call)

    def rest(self) -> None:
        """See ports.Endpoint."""
        self._route.let_go()

    async def _body(self, call: _Call, job: QueuedJob) -> Sequence[bytes]:
        """Return the request's body in parts, and let its answer be as long as it may be."""
        if job.references is None:
            parts: Sequence[bytes] = (job.request.encode(),)
        else:
            parts = await self._references.compose(job.request, job.references)
        size = sum(map(len, parts))
        if size > LARGE_REQUEST_BYTES:
            call.limit_bytes += 2 * size
        return parts

    def _answered(self, call: _Call) -> Reply:
        assert call.status is not None
        raw, headers = bytes(call.body), call.headers
        call.kept = self._key.redact_bytes(raw, MAX_RAW_BYTES)
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
            encoding = headers["Content-Encoding"]
            return self._reply(call, classify.ENCODED, message=f"Content-Encoding {encoding} was not asked for")
        framed = "Content-Length" in headers or "Transfer-Encoding" in headers
        found = classify.classify_answer(call.status, raw, framed=framed, shown=call.kept)
        verdict, answer, message = found.verdict, found.answer, found.message
        if verdict is classify.REDIRECT:
            message = f"HTTP {call.status} to {headers.get('Location', 'nowhere')}"
        wait_s = wire.retry_after_s(headers.get("Retry-After"), headers.get("Date")) if call.status >= 400 else None
        if answer is not None:
            # The url is shown, stored and fetched elsewhere: a gateway that puts the key into it must not spread it.
            answer = Answer(self._key.redact(answer.image_url), answer.credits_micro)
        return self._reply(call, verdict, answer, message, wait_s)

    def _unanswered(self, call: _Call, failed: Exception) -> Reply:
        call.kept = self._key.redact_bytes(bytes(call.body), MAX_RAW_BYTES)
        if isinstance(failed, _TooLarge):
            return self._reply(call, classify.TOO_LARGE, message=f"an answer above {call.limit_bytes:,} bytes")
        verdict = classify_failure(failed, call.trace.sent_at_s is not None)
        if verdict is classify.TIMEOUT:
            return self._reply(call, verdict, message=f"no whole answer within {call.timeout_s:g} s")
        return self._reply(call, verdict, message=describe(failed))

    def _reply(
        self,
        call: _Call,
        verdict: Verdict,
        answer: Answer | None = None,
        message: str | None = None,
        retry_after_s: float | None = None,
    ) -> Reply:
        sent_at_s = call.trace.sent_at_s
        return Reply(
            verdict=verdict,
            answer=answer,
            message=printable(self._key.redact(message[:MAX_RAW_BYTES])) if message else None,
            status=call.status,
            latency_s=None if sent_at_s is None else self._clock.monotonic_s() - sent_at_s,
            raw=call.kept,
            retry_after_s=retry_after_s if verdict.outcome is Outcome.REFUSED_FOR_NOW else None,
        )
