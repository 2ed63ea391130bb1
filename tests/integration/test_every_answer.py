"""Each row of the table of answers, served to a whole run: state, ledger, log, exit code and the POSTs it cost."""

import asyncio
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from banana_batch.endpoint import classify, client
from banana_batch.endpoint.references import ReferenceChanged
from banana_batch.errors import Exit
from banana_batch.exchange import Exchange
from banana_batch.models import Outcome
from tests.integration import test_answers, whole_runs
from tests.integration.answers_peer import answer, failed, serving
from tests.integration.whole_runs import Arrived, Ended, Gateway, gateway, run_batch
from tests.tls import CA, server_tls

PROMPTS = ("one", "two", "three", "four")
# Answers that no bytes of a reply make: see the tests of their own below.
ELSEWHERE = {"timeout", "unexpected", "reference_changed"}
NOT_SENT = {row.verdict.name for row in classify.ROWS if row.verdict.outcome is Outcome.NOT_SENT}
# The first reply of each row that test_answers.py has; the others of a row differ in the client alone.
FIRST = dict(reversed(test_answers.ANSWERS))
PAID = {"ok", "quota_bad", "quota_absurd"}
SERVED = sorted(set(FIRST) - PAID)

# What a run ends with when each of four jobs, one at a time, gets this answer and no other. (contract.md, 7 and 8)
STOPS: dict[str, tuple[Exit, int]] = {
    "quota_absurd": (Exit.PROTOCOL, 1),
    "redirect": (Exit.PROTOCOL, 1),
    "key_refused": (Exit.KEY, 1),
    "forbidden": (Exit.KEY, 1),
    "out_of_credits": (Exit.OUT_OF_CREDITS, 1),
    "wrong_endpoint": (Exit.SETTINGS, 1),
    "no_image_url": (Exit.PROTOCOL, 2),
    "not_json": (Exit.PROTOCOL, 2),
    "garbled": (Exit.PROTOCOL, 3),
    "unlisted_status": (Exit.PROTOCOL, 3),
    "queued": (Exit.PROTOCOL, 3),
    "unknown_envelope": (Exit.PROTOCOL, 3),
    "ambiguous": (Exit.PROTOCOL, 1),
    "too_large": (Exit.PROTOCOL, 1),
    "encoded": (Exit.PROTOCOL, 3),
}
# How often a job is sent that is refused for now each time, with `--retries 2`.
SENDS = {"not_now": 2, "failed": 2, "server_failed": 3, "overloaded": 3}
UNCOUNTED = {"rate_limited", "queue_full"}
DOUBTS = {row.verdict.name for row in classify.ROWS if row.verdict.outcome is Outcome.IN_DOUBT}
REFUSED = {"bad_request", "request_refused", "content_refused", "reference_changed"}


@dataclass(frozen=True)
class Expected:
    """What the outside sees of a run of four jobs of 2 credits whose first one got the answer."""

    exit: Exit
    posts: int
    jobs: dict[str, int]
    spent: float
    at_risk: float = 0.0


def once(name: str) -> Expected:
    """The first POST gets the answer, all others are good."""
    if name in STOPS and STOPS[name][1] == 1:
        return always(name)
    if name in DOUBTS:
        return Expected(Exit.IN_DOUBT, 4, {"done": 3, "in_doubt": 1}, 6.0, 2.0)
    if name in REFUSED:
        return Expected(Exit.FAILED, 4, {"done": 3, "failed": 1}, 6.0)
    assert name in UNCOUNTED or name in SENDS, f"{name}: say what a run makes of it"
    return Expected(Exit.DONE, 5, {"done": 4}, 8.0)


def always(name: str) -> Expected:
    """Every POST for the first job gets the answer; if it is in doubt or stops the run, every POST at all."""
    if name in STOPS:
        code, after = STOPS[name]
        doubted = after if name in DOUBTS else 0
        jobs = {"pending": 4 - doubted} | ({"in_doubt": doubted} if doubted else {})
        return Expected(code, after, jobs, 0.0, 50.0 * doubted)
    if name in DOUBTS:
        return Expected(Exit.IN_DOUBT, 4, {"in_doubt": 4}, 0.0, 200.0)
    if name in REFUSED:
        return Expected(Exit.FAILED, 4, {"failed": 4}, 0.0)
    return Expected(Exit.FAILED, 3 + SENDS[name], {"done": 3, "failed": 1}, 6.0)


def check(ended: Ended, posts: int, expected: Expected) -> None:
    """Hold a run against what it should have come to."""
    assert (ended.exit, posts, dict(ended.jobs)) == (expected.exit, expected.posts, expected.jobs), ended.said
    assert ended.credits == (expected.spent, expected.at_risk, 0.0)
    assert ended.log[-1]["event"] == "run_ended"
    assert ended.log[-1]["exit"] == expected.exit


def check_log(ended: Ended, name: str, times: int | None = None) -> None:
    """The log names the row, as often as it was met, with what became of the job."""
    lines = [line for line in ended.log if line["event"] == "answered" and line["verdict"] == name]
    assert lines, ended.log
    assert times is None or len(lines) == times
    row = classify.VERDICTS[name]
    assert {line["outcome"] for line in lines} <= {row.outcome.value, "refused"}
    assert all(line["message"] is None or len(line["message"]) <= 512 for line in lines)


@pytest.mark.parametrize("name", SERVED)
async def test_an_answer_that_comes_once(out: Path, name: str) -> None:
    """One odd answer costs its own job at most; the others are bought, and nothing is sent without need."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return FIRST[name] if arrived.nth == 1 else peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, PROMPTS)
    check(ended, len(peer.posts), once(name))
    check_log(ended, name, 1)
    assert ended.tries == [int(name in SENDS), 0, 0, 0]


@pytest.mark.parametrize("name", sorted(set(SERVED) - UNCOUNTED))
async def test_an_answer_that_keeps_coming(out: Path, name: str) -> None:
    """Retries have an end, and an answer that would meet every job stops the run with their tries unspent."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return peer.sold() if name in SENDS and arrived.prompt != "one" else FIRST[name]

    expected = always(name)
    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, PROMPTS)
    check(ended, len(peer.posts), expected)
    check_log(ended, name, expected.posts - ended.jobs["done"])
    assert all(times == 1 for times in Counter(peer.posts).values()) or name in SENDS
    assert ended.tries[-1] == 0
    if name in STOPS:
        stop = ended.told("stop")[0]
        assert stop["exit"] == expected.exit
        assert stop["hint"]


@pytest.mark.parametrize("name", sorted(UNCOUNTED | set(SENDS)))
async def test_an_endpoint_that_refuses_everybody(out: Path, name: str) -> None:
    """Hours of nothing but refusals end with 69 after --give-up-after; most jobs keep their tries, none costs."""
    async with gateway(lambda _peer, _arrived: FIRST[name]) as peer:
        ended = await run_batch(out, peer.url, [str(job) for job in range(20)], give_up_after=0.2)
    assert ended.exit is Exit.UNAVAILABLE
    assert ended.credits == (0.0, 0.0, 0.0)
    assert len(peer.posts) > 5
    assert ended.jobs["pending"] >= (20 if name in UNCOUNTED else 17)
    assert sum(ended.tries) <= (0 if name in UNCOUNTED else 5)
    assert ended.told("gave_up")
    assert peer.most == 1


async def test_a_manifest_whose_every_row_is_refused(out: Path) -> None:
    """Ten 400s from the start are the manifest's fault: 65, and the rest is not even asked."""
    async with gateway(lambda _peer, _arrived: answer(400, failed("Parameter error"))) as peer:
        ended = await run_batch(out, peer.url, [str(job) for job in range(14)])
    check(ended, len(peer.posts), Expected(Exit.BAD_INPUT, 10, {"failed": 10, "pending": 4}, 0.0))


async def test_refused_rows_after_a_good_one(out: Path) -> None:
    """Once an image was sold, refused rows are only refused rows."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return peer.sold() if arrived.nth == 1 else answer(400, failed("Parameter error"))

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, [str(job) for job in range(14)])
    check(ended, len(peer.posts), Expected(Exit.FAILED, 14, {"done": 1, "failed": 13}, 2.0))


@pytest.mark.parametrize("quota", ["2", '"2"', "2.5", "0", "null", "true", "-2", "NaN", "[2]"])
async def test_a_stated_price_is_spent_and_any_other_stays_at_risk(out: Path, quota: str) -> None:
    """An answer with an image is paid whatever it says of the price; an unusable price leaves its reserve at risk."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        sold = peer.sold().partition(b"\r\n\r\n")[2].decode()
        return answer(200, sold.replace('"quota": 2', f'"quota": {quota}') if arrived.nth == 1 else sold)

    usable = quota in ("2", '"2"', "2.5", "0")
    price = float(quota.strip('"')) if usable else 0.0
    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, PROMPTS)
    check(ended, len(peer.posts), Expected(Exit.DONE, 4, {"done": 4}, 6.0 + price, 0.0 if usable else 2.0))
    check_log(ended, "ok" if usable else "quota_bad")
    assert len(peer.gets) == 4


@pytest.mark.parametrize("quota", ["1000001", "1e400", "5000000.5", '"1e9"'])
async def test_a_price_above_a_million_credits_stops_the_run(out: Path, quota: str) -> None:
    """What is no price is an accident of the endpoint's: the image is kept, its reserve is at risk, no more is sent."""

    def said(peer: Gateway, _arrived: Arrived) -> bytes:
        return answer(200, peer.sold().partition(b"\r\n\r\n")[2].decode().replace('"quota": 2', f'"quota": {quota}'))

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, PROMPTS)
    check(ended, len(peer.posts), Expected(Exit.PROTOCOL, 1, {"done": 1, "pending": 3}, 0.0, 50.0))
    check_log(ended, "quota_absurd", 1)


# Rows whose request never left.


@pytest.mark.parametrize(
    "name", sorted(NOT_SENT - {"tls_certificate", "tls_version", "tls_handshake", "cut_before_send"})
)
async def test_what_never_left_uses_nothing_up(out: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An endpoint that can't be reached ends the run with 69: all pending, no try spent, no credit at risk."""
    options: dict[str, Any] = {}
    url = f"http://127.0.0.1:{_closed_port()}"
    if name == "dns":
        url = "https://gateway.example"
        monkeypatch.setattr(socket, "getaddrinfo", _no_such_name)
    elif name == "proxy_refused":
        options["proxy"] = url
    elif name == "not_sent":
        monkeypatch.setattr("banana_batch.exchange.Route.connect", _odd)
    ended = await run_batch(out, url, PROMPTS, give_up_after=0.1, **options)
    assert (ended.exit, dict(ended.jobs), ended.tries) == (Exit.UNAVAILABLE, {"pending": 4}, [0, 0, 0, 0])
    assert ended.credits == (0.0, 0.0, 0.0)
    assert set(ended.outcomes) == {"not_sent"}
    check_log(ended, name)


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _no_such_name(*_args: object, **_options: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def _odd(_route: object) -> None:
    raise LookupError("odd")


@pytest.mark.parametrize(
    ("name", "certificate", "code"),
    [("tls_certificate", "expired", Exit.SETTINGS), ("tls_certificate", "other-host", Exit.SETTINGS)],
)
async def test_a_peer_that_cannot_be_trusted_gets_nothing(out: Path, name: str, certificate: str, code: Exit) -> None:
    """A bad certificate stops the run with 78 at once; every job is pending with its tries unspent."""
    async with gateway(tls=server_tls(certificate)) as peer:
        ended = await run_batch(out, peer.url, PROMPTS, ca_file=str(CA))
    check(ended, len(peer.posts), Expected(code, 0, {"pending": 4}, 0.0))
    check_log(ended, name, 1)
    assert ended.tries == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "alert", "code", "calls"),
    [
        ("tls_version", 70, Exit.SETTINGS, 1),
        ("tls_handshake", 40, Exit.UNAVAILABLE, 3),
        ("cut_before_send", 0, Exit.UNAVAILABLE, 0),
    ],
)
async def test_a_handshake_that_fails_sends_nothing(out: Path, name: str, alert: int, code: Exit, calls: int) -> None:
    """An old protocol is 78 at once, a failed handshake 69 the third time, a cut one an outage like any other."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        if alert:
            writer.write(bytes((21, 3, 3, 0, 2, 2, alert)))
            await writer.drain()

    async with serving(hang_up, at_once=True) as peer:
        url = peer.url.replace("http:", "https:")
        ended = await run_batch(out, url, PROMPTS, ca_file=str(CA), give_up_after=0.1 if not alert else 5.0)
    assert (ended.exit, dict(ended.jobs), ended.tries) == (code, {"pending": 4}, [0, 0, 0, 0])
    assert ended.credits == (0.0, 0.0, 0.0)
    check_log(ended, name, calls or None)


# Rows that end a call otherwise.


async def test_a_call_without_an_answer_in_time(out: Path) -> None:
    """After --timeout the call is in doubt at its full price, and the others go on."""

    async def said(peer: Gateway, arrived: Arrived) -> bytes | None:
        if arrived.nth == 1:
            await peer.hold.wait()
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, PROMPTS, timeout=0.3)
    check(ended, len(peer.posts), once("timeout"))
    check_log(ended, "timeout", 1)


async def test_a_fault_of_our_own_while_a_call_is_out(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks here after the send, the call is in doubt: it is never taken for a refusal."""
    read, odd = client._Call.read, [LookupError("odd")]

    async def broken(call: client._Call, found: Exchange) -> None:
        if odd:
            raise odd.pop()
        await read(call, found)

    monkeypatch.setattr(client._Call, "read", broken)
    async with gateway() as peer:
        ended = await run_batch(out, peer.url, PROMPTS)
    check(ended, len(peer.posts), once("unexpected"))
    check_log(ended, "unexpected", 1)


async def test_a_reference_that_changed_after_planning(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no longer what was planned fails its job unsent; the others are bought."""

    class Changed:
        def __init__(self, _executor: object) -> None:
            pass

        async def compose(self, request: str, _references: str) -> list[bytes]:
            raise ReferenceChanged("cat.png: its content changed")

    monkeypatch.setattr(client, "References", Changed)
    (out.parent / "cat.png").write_bytes(whole_runs.IMAGE)
    rows: list[dict[str, object]] = [{"prompt": text, "id": text} for text in PROMPTS]
    rows[0]["refer_images"] = [str(out.parent / "cat.png")]
    async with gateway() as peer:
        ended = await run_batch(out, peer.url, [], rows=rows)
    check(ended, len(peer.posts), Expected(Exit.FAILED, 3, {"done": 3, "failed": 1}, 6.0))
    check_log(ended, "reference_changed", 1)


def test_no_row_without_a_case() -> None:
    """A row that is added to the table needs an answer here, and a word on what a run makes of it."""
    served = {*SERVED, *PAID}
    assert served | NOT_SENT | ELSEWHERE == set(classify.VERDICTS)
    for name in SERVED:
        once(name)
    stops = {row.verdict.name: row.verdict.stop for row in classify.ROWS if row.verdict.stop is not None}
    unsent = {"tls_certificate", "tls_version", "tls_handshake", "bad_request"}
    assert {name: (stop.exit, stop.after) for name, stop in stops.items() if name not in unsent} == STOPS
