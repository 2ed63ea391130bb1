"""Each row of the images' table, served to a whole run: what was paid for is kept, and nothing is paid again."""

import errno
from pathlib import Path
from typing import Any

import pytest

from banana_batch.errors import Exit
from banana_batch.images import failures
from banana_batch.images.committer import Committer
from banana_batch.images.download import Downloader
from banana_batch.models import PaidImage
from tests.integration.answers_peer import answer
from tests.integration.whole_runs import IMAGE, Arrived, Ended, Gateway, gateway, run_batch
from tests.unit.images.samples import png

PROMPTS = ("one", "two", "three")
HTML = answer(200, "<html>not here</html>", "Content-Type: text/html")
SERVED: dict[str, bytes | None] = {
    "image_unreachable": None,
    "image_server_error": answer(503, ""),
    "image_gone": answer(404, ""),
    "image_refused": answer(401, ""),
    "image_short": b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + IMAGE,
    "image_wrong_type": HTML,
    "image_damaged": answer(200, IMAGE[:-30], "Content-Type: image/png"),
    "image_too_large": answer(200, png(50_000, 50_000), "Content-Type: image/png"),
}
# The same bytes twice, and no whole image in them: nothing will make them one.
HOPELESS = {"image_damaged", "image_too_large"}
ELSEWHERE = {"image_blocked", "disk", "output"}


def kept(ended: Ended, posts: int) -> None:
    """Whatever became of the images: three calls, three prices, none at risk."""
    assert posts == 3
    assert ended.credits == (6.0, 0.0, 0.0)
    assert {outcome: count for outcome, count in ended.outcomes.items() if outcome != "not_sent"} == {"paid": 3}


@pytest.mark.parametrize("name", sorted(SERVED))
async def test_a_failure_that_passes(out: Path, name: str) -> None:
    """The first image comes with the second try, free of charge: 0."""
    async with gateway() as peer:
        usual = peer.image
        peer.image = lambda nth: SERVED[name] if nth == 1 else usual(nth)
        ended = await run_batch(out, peer.url, PROMPTS)
    kept(ended, len(peer.posts))
    assert (ended.exit, dict(ended.jobs), len(peer.gets)) == (Exit.DONE, {"done": 3}, 4)
    told = [line["error"] for line in ended.log if line["event"] == "fetch_failed"]
    # A cut of a reused connection is tried again by the library itself: a GET is free.
    assert told == [name] or (told == [] and name == "image_unreachable")


@pytest.mark.parametrize("name", sorted(SERVED))
async def test_a_failure_that_stays(out: Path, name: str) -> None:
    """After --download-wait the images stay paid, 6; hopeless ones are lost, their bytes kept, 3."""
    async with gateway() as peer:
        peer.image = lambda _nth: SERVED[name]
        ended = await run_batch(out, peer.url, PROMPTS, download_wait=0.1)
        kept(ended, len(peer.posts))
        hopeless = name in HOPELESS
        expected = (Exit.FAILED, {"lost": 3}) if hopeless else (Exit.NOT_FETCHED, {"paid": 3})
        assert (ended.exit, dict(ended.jobs)) == expected
        assert ended.totals.wasted == (6_000_000 if hopeless else 0)
        assert len(list((out / "damaged").glob("*"))) == (3 if hopeless else 0)
        assert not list((out / "images").glob("*"))
        # A later start: gone for good is lost; all else is fetched once the host is well.
        if name != "image_gone":
            peer.image = Gateway().image
        later = await run_batch(out, peer.url, PROMPTS, download_wait=0.1)
    kept(later, len(peer.posts))
    if name == "image_gone":
        assert later.jobs == {"lost": 3}
        # Three lost would hold further spending back (69); with nothing left to buy the run is finished.
        assert later.exit is Exit.FAILED
    elif not hopeless:
        assert (later.exit, later.jobs) == (Exit.DONE, {"done": 3})


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/x.png", "https://127.0.0.1/x.png", "https://10.0.0.1/x.png", "file:///etc/passwd", "any text",
     "https://cdn..example.com/x.png", f"https://{'a' * 64}.com/x.png"],
)  # fmt: skip
async def test_an_address_that_may_not_be_asked(out: Path, url: str) -> None:
    """The url is kept, the job paid, nothing is connected to, and no more is bought: 76."""
    async with gateway(lambda peer, _arrived: peer.sold(image_url=url)) as peer:
        ended = await run_batch(out, peer.url, PROMPTS)
        connections = peer.connections
    assert ended.exit is Exit.PROTOCOL
    assert ended.jobs["paid"] == len(peer.posts) < 3
    assert ended.jobs["pending"] == 3 - len(peer.posts)
    assert ended.credits == (2.0 * len(peer.posts), 0.0, 0.0)
    assert peer.gets == []
    assert connections >= 1


async def test_a_url_that_some_library_refuses_keeps_no_other_from_coming(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job stays paid, 76; the others' images come, in this run and in each later one."""
    receive = Downloader.receive

    async def picky(self: Downloader, image: PaidImage, *rest: Any) -> Any:
        if image.index == 1:
            raise UnicodeError("label empty or too long")
        return await receive(self, image, *rest)

    monkeypatch.setattr(Downloader, "receive", picky)
    async with gateway() as peer:
        ended = await run_batch(out, peer.url, PROMPTS, concurrency=3)
    assert (ended.exit, ended.jobs) == (Exit.PROTOCOL, {"paid": 1, "done": 2})


@pytest.mark.parametrize(
    ("number", "code", "row"),
    [
        (errno.ENOSPC, Exit.DISK, "disk"),
        (errno.EIO, Exit.DISK, "disk"),
        (errno.EDQUOT, Exit.DISK, "disk"),
        (errno.EROFS, Exit.DISK, "disk"),
        (errno.EACCES, Exit.NO_OUTPUT, "output"),
    ],
)
async def test_a_disk_that_takes_no_image(
    out: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: Exit, row: str
) -> None:
    """No more is bought; what was paid for stays paid and is fetched by the next run."""
    commit = Committer.commit

    def broken(_self: Committer, group: list[object]) -> list[object]:
        return [failures.by_disk(OSError(number, "no")) for _ in group]

    async with gateway() as peer:
        monkeypatch.setattr(Committer, "commit", broken)
        ended = await run_batch(out, peer.url, PROMPTS)
        bought = len(peer.posts)
        assert ended.exit is code
        assert dict(ended.jobs) == {"paid": bought} | ({"pending": 3 - bought} if bought < 3 else {})
        assert next(line["error"] for line in ended.log if line["event"] == "fetch_failed") == row
        monkeypatch.setattr(Committer, "commit", commit)
        later = await run_batch(out, peer.url, PROMPTS)
    kept(later, len(peer.posts))
    assert (later.exit, later.jobs) == (Exit.DONE, {"done": 3})


def test_no_row_without_a_case() -> None:
    """A row that is added to the images' table needs an answer here."""
    rows = {row.name for row in vars(failures).values() if isinstance(row, failures.Row)}
    assert set(SERVED) | ELSEWHERE == rows


async def test_a_url_that_may_not_be_fetched_stops_one_run_and_not_the_batch(out: Path) -> None:
    """The first run stops for it, as others may follow; the next buys the rest, and is 76 while the row is there."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return peer.sold(image_url="/i.png") if arrived.nth == 1 else peer.sold()

    async with gateway(said) as peer:
        first = await run_batch(out, peer.url, PROMPTS, limit=1)
        second = await run_batch(out, peer.url, PROMPTS)
        third = await run_batch(out, peer.url, PROMPTS[1:], on_change="accept")
    assert (first.exit, dict(first.jobs)) == (Exit.PROTOCOL, {"paid": 1, "pending": 2})
    assert first.told("stop")
    assert (second.exit, dict(second.jobs)) == (Exit.PROTOCOL, {"paid": 1, "done": 2})
    assert not second.told("stop")
    # Out of the manifest, it decides no exit code any more.
    assert (third.exit, dict(third.jobs)) == (Exit.DONE, {"paid": 1, "done": 2})
    kept(third, len(peer.posts))
