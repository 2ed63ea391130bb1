"""The key, hunted over everything that a run writes and says (S2, S3, S4)."""

import asyncio
import base64
import html
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from banana_batch.batch import Run, Work
from banana_batch.planning import opened_for_images
from banana_batch.report.results import write_csv
from tests.integration import test_answers, whole_runs
from tests.integration.answers_peer import CANARY, answer, failed
from tests.integration.whole_runs import Arrived, Gateway, Watcher, gateway, run_batch
from tests.tls import CA, server_tls

ENCODINGS = {
    "plain": CANARY,
    "url": quote(CANARY, safe=""),
    "every byte escaped": "".join(f"%{byte:02X}" for byte in CANARY.encode()),
    "base64": base64.b64encode(CANARY.encode()).decode().rstrip("="),
    "url-safe base64": base64.urlsafe_b64encode(CANARY.encode()).decode().rstrip("="),
    "hex": CANARY.encode().hex(),
    "json": json.dumps(CANARY).strip('"').replace("/", "\\/"),
    "html": html.escape(CANARY).replace("/", "&#x2f;"),
    "upper case": CANARY.upper(),
}
# What is looked for, without case; a part of the key this long is no accident.
NEEDLES = {text.lower().encode() for text in ENCODINGS.values()} | {CANARY[:16].lower().encode()}


def leaks(text: bytes) -> list[bytes]:
    """Return the spellings of the key that stand in a text."""
    lower = text.lower()
    return [needle for needle in NEEDLES if needle in lower]


def everywhere(out: Path) -> dict[str, bytes]:
    """Return every file of a batch but the images, which are kept as they were served."""
    files = [path for path in out.parent.rglob("*") if path.is_file() and path.parent.name not in ("images", "damaged")]
    return {str(path.relative_to(out.parent)): path.read_bytes() for path in files}


@pytest.fixture
def out() -> Iterator[Path]:
    """Give a folder for a batch."""
    with whole_runs.scratch() as folder:
        yield folder / "out"


@pytest.fixture
def debugged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Listen to every logger at its most talkative, the event loop's too."""
    caplog.set_level(logging.DEBUG)
    return caplog


def check(out: Path, debugged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], watcher: Watcher) -> None:
    """Nothing that was written, logged, shown or handed on holds the key."""
    said = capfd.readouterr()
    records = "\n".join(map(logging.Formatter().format, debugged.records))
    found = {
        **everywhere(out),
        "stdout": said.out.encode(),
        "stderr": said.err.encode(),
        "loggers": records.encode(),
        "events": repr(watcher.events).encode(),
    }
    assert {"out/state.sqlite3", "out/run.log", "out/results.jsonl", "out/summary.md"} <= set(found)
    assert {name: leaks(text) for name, text in found.items() if leaks(text)} == {}


def echoing(reply: bytes) -> bytes:
    """Return the same answer from a server that repeats the key in every header and field that it may."""
    head, _, body = reply.partition(b"\r\n\r\n")
    text = body.decode("utf-8", "replace")
    if text.startswith("{"):
        said = " ".join(ENCODINGS.values())
        text = text.replace('"message": "', f'"message": {json.dumps(said)[:-1]} ').replace(
            '"prompt": "', f'"key": {json.dumps(ENCODINGS)}, "prompt": "'
        )
    elif text.startswith("<"):
        text = text.replace("<title>", f"<title>{' '.join(ENCODINGS.values())} ")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    status = lines[0] + b" " + CANARY.encode()
    echo = [f"X-Echo: {CANARY}", f"Location: https://{CANARY.replace('/', '-')}.example/?key={CANARY}"]
    body = text.encode() if body.decode("utf-8", "replace").encode() == body else body
    lines = [status, *lines[1:], *(line.encode() for line in echo), f"Content-Length: {len(body)}".encode()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# A sold image is for the tests of urls below: those of this table lie at a host that is none.
ROWS = sorted({name for name, _ in test_answers.ANSWERS} - {"ok", "quota_bad", "quota_absurd"})


@pytest.mark.parametrize("name", ROWS)
async def test_no_answer_of_the_table_spreads_the_key(
    out: Path, debugged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Each row, from a server that repeats the key in nine spellings, at debug level: it stands nowhere afterwards."""
    asyncio.get_running_loop().set_debug(True)
    reply = next(reply for row, reply in test_answers.ANSWERS if row == name)
    reply = echoing(reply) if reply.startswith(b"HTTP/1.1 ") else reply.replace(b"garbage", CANARY.encode())
    watcher = Watcher()

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return reply if arrived.nth <= 2 else peer.sold()

    async with gateway(said) as peer:
        await run_batch(out, peer.url, ["one", "two"], watcher=watcher)
    check(out, debugged, capfd, watcher)


IMAGE_ECHOES = {
    "a redirect to a blocked url": answer(302, b"", f"Location: https://10.0.0.1/{'x' * 85}{CANARY}/?k={CANARY}"),
    "a redirect to no url": answer(302, b"", f"Location: https://[{CANARY}"),
    "a redirect to a host named so": answer(302, b"", f"Location: http://{CANARY.replace('/', '-')}.example/{CANARY}"),
    "a redirect with a user": answer(302, b"", f"Location: https://{quote(CANARY, safe='')}@cdn.example/a.png"),
    "an encoding": answer(200, b"x", f"Content-Encoding: {CANARY}"),
    "a label": answer(200, whole_runs.IMAGE, f"Content-Type: image/{CANARY}"),
    "a long label": answer(200, whole_runs.IMAGE, f"Content-Type: image/{'x' * 34}{CANARY}"),
    "a status line": f"HTTP/1.1 404 {CANARY}\r\nContent-Length: 0\r\n\r\n".encode(),
    "no http": f"{CANARY}\r\n\r\n".encode(),
    "a page": answer(200, f"<html>{CANARY}</html>".encode(), "Content-Type: text/html"),
    "a cookie": answer(200, whole_runs.IMAGE, f"Set-Cookie: key={CANARY}"),
}


@pytest.mark.parametrize("name", IMAGE_ECHOES)
async def test_no_host_of_images_spreads_the_key(
    out: Path, debugged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """The endpoint may have told the host: what that says of itself is cleaned like the endpoint's own words."""
    watcher = Watcher()
    async with gateway() as peer:
        peer.image = lambda _nth: IMAGE_ECHOES[name]
        await run_batch(out, peer.url, ["one"], watcher=watcher, download_wait=0.0)
        assert peer.gets
    check(out, debugged, capfd, watcher)


@pytest.mark.parametrize("name", ["a redirect to a blocked url", "a label"])
async def test_a_later_download_spreads_it_as_little(
    out: Path, debugged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """`download` needs no key; one that is in the environment is still kept out of what hosts say, and is not sent."""
    watcher = Watcher()
    async with gateway() as peer:
        peer.image = lambda _nth: answer(404, b"")
        await run_batch(out, peer.url, ["one"], watcher=watcher, download_wait=0.0)
        peer.image = lambda _nth: IMAGE_ECHOES[name]
        folder, settings, ready = opened_for_images(str(out), {"download_wait": 0.0}, {}, out.parent)
        work = Work(folder, settings, ready, {"TT_API_KEY": CANARY}, sends=False)
        await Run(work, lambda _tally: watcher).run()
        assert len(peer.posts) == 1
    check(out, debugged, capfd, watcher)


URLS = {
    "in the path": "{gateway}/i/{key}.png",
    "in the query": "{gateway}/i/1.png?key={key}",
    "as a host": "https://{key}.example.invalid/1.png",
    "as a user": "https://{key}@example.invalid/1.png",
    "as no url": "{key}",
    "behind a redirect": "https://10.0.0.1/{key}",
}


@pytest.mark.parametrize("spelling", ["plain", "url", "hex", "base64", "upper case"])
@pytest.mark.parametrize("place", URLS)
async def test_a_key_in_an_image_url_is_neither_kept_nor_fetched(
    out: Path, debugged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], place: str, spelling: str
) -> None:
    """A gateway that puts the key into the url of an image does not get it carried to that host."""
    if "example" in URLS[place] and spelling in ("plain", "upper case", "base64"):
        spelling = "hex"  # what else a host can be called
    watcher = Watcher()

    def said(peer: Gateway, _arrived: Arrived) -> bytes:
        return peer.sold(image_url=URLS[place].format(gateway=peer.url, key=ENCODINGS[spelling]))

    async with gateway(said) as peer:
        await run_batch(out, peer.url, ["one"], watcher=watcher, download_wait=0.0)
        assert not leaks("\n".join(peer.gets).encode())
    check(out, debugged, capfd, watcher)


async def test_tls_failures_and_dead_gateways_do_not_show_the_key(
    out: Path, debugged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is told of a call that never left holds nothing of its request."""
    watcher = Watcher()
    async with gateway(tls=server_tls("expired")) as peer:
        await run_batch(out, peer.url, ["one"], watcher=watcher, ca_file=str(CA))
    await run_batch(out, "http://127.0.0.1:9", ["one"], watcher=watcher, give_up_after=0.1)
    check(out, debugged, capfd, watcher)


async def test_results_as_csv_hold_no_key_either(out: Path) -> None:
    """What `export` writes comes from the same state."""
    async with gateway(lambda _peer, _arrived: answer(400, failed(f"bad key {CANARY}"))) as peer:
        await run_batch(out, peer.url, ["one"])
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    stream = io.StringIO()
    write_csv(stream, rows)
    assert "***" in stream.getvalue()
    assert leaks(stream.getvalue().encode()) == []


@pytest.mark.parametrize("before", [120, 140, 155, 4000, 4080])
async def test_no_cut_of_a_message_leaves_half_a_key(
    out: Path, debugged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], before: int
) -> None:
    """A page is quoted by its first words: where the quotation ends, the key must be gone already."""
    watcher = Watcher()
    padding = "x" * before if before < 1000 else " " * before
    pages = [f"<title>{padding}{CANARY}</title>", f"{padding}{CANARY}", json.dumps({"x": padding + CANARY})]

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return answer(503, pages[arrived.nth - 1]) if arrived.nth <= len(pages) else peer.sold()

    async with gateway(said) as peer:
        await run_batch(out, peer.url, ["one", "two", "three"], watcher=watcher)
    check(out, debugged, capfd, watcher)
    assert CANARY[:6] not in str(watcher.events)
