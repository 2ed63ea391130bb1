"""The table of answers over real sockets: each row is served byte for byte and judged."""

import asyncio
import gzip
import json
from decimal import Decimal

import pytest

from banana_batch.endpoint import classify
from banana_batch.models import Outcome, SendTrace
from tests.integration.answers_peer import CANARY, PROMPT, URL, answer, buy, client_of, failed, job, serving, success

HTML = "<html><head><title>524: A timeout occurred</title></head><body>…</body></html>"
MIB = 1024 * 1024


def _quota(text: str) -> bytes:
    return answer(200, json.dumps(success()).replace('"quota": 2', f'"quota": {text}'))


def _deep(levels: int) -> str:
    return '{"status":"SUCCESS","data":' + "[" * levels + "]" * levels + "}"


ANSWERS: list[tuple[str, bytes]] = [
    ("ok", answer(200, success())),
    ("ok", answer(200, success(), "Content-Type: text/html")),
    ("ok", answer(200, success(), "Content-Encoding: identity")),
    ("ok", answer(200, b"\xef\xbb\xbf" + json.dumps(success()).encode())),
    ("ok", answer(200, success(image_url="any text at all"))),
    ("ok", answer(200, success(extra=[[1], [2]], more=float("nan")))),
    ("ok", b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(success()).encode()),
    ("ok", b"HTTP/1.1 100 Continue\r\n\r\n" + answer(200, success())),
    ("ok", _quota('"2"')),
    ("ok", _quota("2.5")),
    ("ok", _quota("0")),
    ("quota_bad", _quota("null")),
    ("quota_bad", _quota("true")),
    ("quota_bad", _quota("-2")),
    ("quota_bad", _quota("NaN")),
    ("quota_bad", _quota("Infinity")),
    ("quota_absurd", _quota("1e400")),
    ("quota_bad", _quota("1e99999999999999999999")),
    ("quota_absurd", _quota("1000001")),
    ("quota_absurd", _quota("9" * 5000)),
    ("quota_bad", _quota('"two"')),
    ("quota_bad", _quota("[2]")),
    ("quota_bad", answer(200, {"status": "SUCCESS", "data": {"image_url": URL}})),
    ("redirect", answer(300, "")),
    ("redirect", answer(301, "", "Location: https://elsewhere.example/")),
    ("redirect", answer(302, HTML, "Location: https://portal.example/")),
    ("redirect", answer(304, "")),
    ("redirect", answer(307, "", "Location: /gemini/image/generate")),
    ("bad_request", answer(400, failed("Parameter error"))),
    ("bad_request", answer(400, HTML)),
    ("key_refused", answer(401, {"status": "FAILED", "message": "Wrong TT-API-KEY or email is not activated."})),
    ("key_refused", answer(401, "")),
    ("out_of_credits", answer(402, failed("Insufficient balance"))),
    ("forbidden", answer(403, failed("Account Block"))),
    ("forbidden", answer(403, HTML)),
    ("wrong_endpoint", answer(404, HTML)),
    ("wrong_endpoint", answer(405, "")),
    ("not_now", answer(408, failed("later"))),
    ("not_now", answer(409, failed("later"))),
    ("not_now", answer(425, failed("later"))),
    ("not_now_unclear", answer(408, HTML)),
    ("not_now_unclear", answer(409, {"error": "later"})),
    ("not_now_unclear", answer(425, "")),
    ("request_refused", answer(413, HTML)),
    ("request_refused", answer(414, "")),
    ("request_refused", answer(415, failed("JSON please"))),
    ("request_refused", answer(422, failed("no such model"))),
    ("request_refused", answer(431, "")),
    ("rate_limited", answer(429, failed("Short-term request rate exceeded"))),
    ("rate_limited", answer(429, HTML, "Retry-After: 7")),
    ("queue_full", answer(499, failed("Queue exhausted"))),
    ("queue_full", answer(499, "")),
    ("server_failed", answer(500, failed("Server code exception"))),
    ("server_failed", answer(502, failed("upstream"))),
    ("server_failed", answer(524, failed("upstream"))),
    ("overloaded", answer(503, failed("model is overloaded"))),
    ("gateway_error", answer(500, "")),
    ("gateway_error", answer(500, {"status": "SUCCESS", "data": {"image_url": URL}})),
    ("gateway_error", answer(502, HTML)),
    ("gateway_error", answer(503, HTML)),
    ("gateway_error", answer(520, HTML)),
    ("gateway_error", answer(524, HTML)),
    ("gateway_error", answer(527, HTML)),
    ("gateway_timeout", answer(504, failed("Long-running synchronous request timed out"))),
    ("gateway_timeout", answer(504, HTML)),
    ("unlisted_status", answer(201, success())),
    ("unlisted_status", answer(204, "")),
    ("unlisted_status", answer(206, success())),
    ("unlisted_status", answer(406, failed("no"))),
    ("unlisted_status", answer(418, failed("no"))),
    ("unlisted_status", answer(451, HTML)),
    ("unlisted_status", answer(600, "")),
    ("failed", answer(200, failed("The model was expected to generate an image, but none was generated"))),
    ("failed", answer(200, {"status": "FAILED"})),
    ("content_refused", answer(200, failed("IMAGE_SAFETY"))),
    ("content_refused", answer(200, failed("Banned words in your prompt"))),
    ("content_refused", answer(200, failed("PROHIBITED_CONTENT"))),
    ("queued", answer(200, {"status": "PENDING_QUEUE", "data": {"jobId": "j-17"}})),
    ("queued", answer(200, {"status": "ON_QUEUE", "message": "wait", "data": {"job_id": "j-17"}})),
    ("no_image_url", answer(200, success(image_url=None))),
    ("no_image_url", answer(200, success(image_url=""))),
    ("no_image_url", answer(200, success(image_url=[URL]))),
    ("no_image_url", answer(200, {"status": "SUCCESS", "message": "success", "data": None})),
    ("unknown_envelope", answer(200, "[]")),
    ("unknown_envelope", answer(200, '"SUCCESS"')),
    ("unknown_envelope", answer(200, {"status": 200, "data": {"image_url": URL}})),
    ("unknown_envelope", answer(200, {"status": "success", "data": {"image_url": URL}})),
    ("not_json", answer(200, HTML, "Content-Type: application/json")),
    ("not_json", answer(200, "")),
    ("not_json", answer(200, b"\xff\xfe{")),
    ("not_json", answer(200, '{"status": "SUCC')),
    ("not_json", b"HTTP/1.1 200 OK\r\n\r\n" + HTML.encode()),
    ("truncated", b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(success()).encode()[:-20]),
    ("truncated", b"HTTP/1.1 200 OK\r\n\r\n"),
    ("truncated", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + json.dumps(success()).encode()),
    ("truncated", b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"sta\r\n'),
    ("truncated", b"HTTP/1.1 401 No\r\nContent-Length: 900\r\n\r\n{"),
    ("ambiguous", answer(200, '{"status":"SUCCESS","status":"FAILED","data":null}')),
    ("ambiguous", answer(200, '{"status":"SUCCESS","data":{"image_url":"a","image_url":"b","quota":2}}')),
    ("ambiguous", answer(200, _deep(32))),
    ("ambiguous", answer(200, _deep(100_000))),
    ("too_large", answer(200, json.dumps(success()) + " " * MIB)),
    ("too_large", b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (2 * MIB)),
    ("encoded", answer(200, gzip.compress(json.dumps(success()).encode()), "Content-Encoding: gzip")),
    ("encoded", answer(200, success(), "Content-Encoding: br")),
    ("garbled", b"HELLO THERE\r\n\r\n"),
    ("garbled", b"HTTP/1.1 abc OK\r\n\r\n"),
    ("garbled", b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n"),
    ("garbled", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n"),
    ("cut_after_send", b""),
    ("cut_after_send", b"HTTP/1.1 200"),
]


@pytest.mark.parametrize(("name", "reply"), ANSWERS, ids=[f"{name}-{at}" for at, (name, _) in enumerate(ANSWERS)])
async def test_each_answer_has_its_row(name: str, reply: bytes) -> None:
    """What comes back decides the verdict, after exactly one request, and the evidence says that it was sent."""
    async with serving(reply) as peer:
        ending, trace = await buy(peer.url)
    assert ending.verdict is classify.VERDICTS[name], ending
    assert len(peer.requests) == 1
    assert peer.connections == 1
    assert trace.sent_at_s is not None
    assert ending.latency_s is not None
    assert 0 <= ending.latency_s < 5
    assert (ending.answer is not None) == (ending.verdict.outcome is Outcome.PAID)
    assert ending.message is None or "\n" not in ending.message


def test_every_row_that_an_answer_can_meet_is_served() -> None:
    """No row without a test: rows without an answer are those of calls that ended otherwise."""
    elsewhere = {"timeout", "unexpected", "reference_changed"}
    served = {name for name, _ in ANSWERS} | elsewhere
    unsent = {row.verdict.name for row in classify.ROWS if row.verdict.outcome is Outcome.NOT_SENT}
    assert served | unsent == set(classify.VERDICTS)


@pytest.mark.parametrize(
    ("quota", "micro"), [("2", 2_000_000), ('"2"', 2_000_000), ("2.5", 2_500_000), ("0.0000001", 1), ("NaN", None)]
)
async def test_a_price_is_exact_or_unknown(quota: str, micro: int | None) -> None:
    """Quota comes as integer, decimal or text; it is never rounded down and never a float."""
    async with serving(_quota(quota)) as peer:
        ending, _ = await buy(peer.url)
    assert ending.answer is not None
    assert ending.answer.image_url == URL
    assert ending.answer.credits_micro == micro
    assert Decimal(micro or 0) == (ending.answer.credits_micro or 0)


async def test_the_request_is_sent_as_it_was_planned() -> None:
    """Path, headers and body are the documented ones, and the body is the job's own bytes."""
    async with serving(answer(200, success())) as peer:
        await buy(peer.url + "/")
    head, body = peer.requests[0].split(b"\r\n\r\n", 1)
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /gemini/image/generate HTTP/1.1"
    assert f"TT-API-KEY: {CANARY}" in lines
    assert "Content-Type: application/json" in lines
    assert "Accept-Encoding: identity" in lines
    assert any(line.startswith("User-Agent: banana-batch/") for line in lines)
    assert not any(line.lower().startswith(("cookie", "authorization")) for line in lines)
    assert body == job().request.encode()


async def test_no_cookie_comes_back() -> None:
    """A cookie that the endpoint sets is not sent with the next call."""
    async with (
        serving(answer(200, success(), "Set-Cookie: a=b; Path=/", "Connection: close")) as peer,
        client_of(peer.url) as client,
    ):
        for _ in range(2):
            await client.generate(job(), SendTrace())
    assert len(peer.requests) == 2
    assert b"cookie" not in peer.requests[1].lower()


async def test_a_large_prompt_may_be_echoed() -> None:
    """A prompt of 1 MiB that the endpoint repeats is a paid answer all the same; large bodies go out whole."""
    prompt = "x" * MIB
    async with serving(answer(200, success(prompt=prompt))) as peer, client_of(peer.url) as client:
        large = job(json.dumps({"prompt": prompt, "model": "gemini-2.5-flash-image"}))
        ending = await client.generate(large, SendTrace())
    assert ending.verdict is classify.OK
    assert peer.requests[0].endswith(large.request.encode())
    assert len(ending.raw) == 64 * 1024


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        (("Retry-After: 7",), 7.0),
        (("Retry-After: 1000",), 300.0),
        (("Retry-After: -5",), None),
        (("Retry-After: 999999999",), None),
        (("Retry-After: soon",), None),
        (("Retry-After: Wed, 21 Oct 2015 07:28:30 GMT", "Date: Wed, 21 Oct 2015 07:28:00 GMT"), 30.0),
        (("Retry-After: Wed, 21 Oct 2015 07:28:30 GMT",), None),
        (("Retry-After: Wed, 21 Oct 2015 07:28:30 GMT", "Date: Wed, 21 Oct 2015 07:29:00 GMT"), None),
        ((), None),
    ],
)
async def test_the_endpoints_wish_to_wait_is_read_against_its_own_clock(
    headers: tuple[str, ...], wait_s: float | None
) -> None:
    """Retry-After counts in seconds or from the answer's own Date, never longer than 300 s."""
    async with serving(answer(429, failed("slow down"), *headers)) as peer:
        ending, _ = await buy(peer.url)
    assert ending.retry_after_s == wait_s
    assert ending.message == "slow down"


async def test_short_idle_connections_are_reused() -> None:
    """Calls right after each other share a connection: a handshake each would cost more than it saves."""

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for left in (1, 0):
            writer.write(answer(200, success()))
            if left:
                await reader.readuntil(PROMPT.encode())
                await reader.readuntil(b"}")

    async with serving(keep) as peer, client_of(peer.url) as client:
        for _ in range(2):
            assert (await client.generate(job(), SendTrace())).verdict is classify.OK
        assert peer.connections == 1
