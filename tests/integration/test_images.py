"""From a url to a durable file, over real sockets on loopback."""

import asyncio
import errno
import gzip
import hashlib
import os
from pathlib import Path

import pytest
from aiohttp import web
from msgspec.structs import replace

from banana_batch.errors import Exit, OutputError
from banana_batch.images import bodies, parts
from banana_batch.images.fetcher import MAX_WAYS
from banana_batch.images.recovery import adopt, remove_parts
from banana_batch.models import FetchFailed, PaidImage, StoredImage
from tests.integration.images_peer import Host, answer, everything, fetching, host
from tests.unit.images.samples import WHOLE, png

PNG = WHOLE["png"][1]
LARGE = png(fill=3 << 20)


async def once(out: Path, peer: Host, image: PaidImage | None = None) -> StoredImage | FetchFailed:
    async with fetching(out, peer.url) as fetcher:
        return await fetcher.fetch(image or peer.image)


async def failed(out: Path, peer: Host, image: PaidImage | None = None) -> FetchFailed:
    outcome = await once(out, peer, image)
    assert isinstance(outcome, FetchFailed)
    return outcome


@pytest.mark.parametrize("kind", sorted(WHOLE))
async def test_a_served_image_is_stored_as_served(tmp_path: Path, kind: str) -> None:
    """Exactly the bytes served, under the extension of their content, whatever the url says."""
    content_type, body = WHOLE[kind]
    async with host(answer(body, f"Content-Type: {content_type}")) as peer:
        stored = await once(tmp_path, peer)
    assert isinstance(stored, StoredImage)
    assert (stored.sha256, stored.bytes) == (hashlib.sha256(body).hexdigest(), len(body))
    assert (stored.width, stored.height, stored.content_type, stored.warning) == (64, 48, content_type, None)
    assert (tmp_path / stored.path).read_bytes() == body


async def test_many_images_come_over_few_connections(tmp_path: Path) -> None:
    """64 at once, through a real server: each under its own name, none mixed up."""
    bodies = {index: png(data=index.to_bytes(4, "big") * 4) for index in range(1, 201)}

    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=bodies[int(request.match_info["index"])], content_type="image/png")

    app = web.Application()
    app.router.add_get("/{index}.png", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    waiting = iter(sorted(bodies))

    async with fetching(tmp_path, f"http://127.0.0.1:{port}") as fetcher:

        async def work() -> None:
            for index in waiting:
                image = PaidImage(index, str(index), f"http://127.0.0.1:{port}/{index}.png", f"{index:05d}", None)
                assert isinstance(await fetcher.fetch(image), StoredImage)

        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(work())
    await runner.cleanup()
    assert {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()} == {
        f"{index:05d}.png": body for index, body in bodies.items()
    }


async def _all_ways_taken(peer: Host) -> None:
    """Wait until as many images are asked for as may come at once."""
    while len(peer.requests) < MAX_WAYS:
        await asyncio.sleep(0)


async def test_however_many_are_asked_for_64_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait without a connection, and come when one of the first has come."""
    monkeypatch.setattr("banana_batch.images.fetcher.PATIENCE_S", 60.0)

    async def serve(_request: bytes, writer: asyncio.StreamWriter) -> None:
        await peer.hold.wait()
        writer.write(answer(PNG))

    async with host(serve) as peer, fetching(tmp_path, peer.url) as fetcher:
        images = [replace(peer.image, index=n, stem=f"{n:05d}-cat") for n in range(1, MAX_WAYS + 37)]
        fetches = asyncio.gather(*map(fetcher.fetch, images))
        await _all_ways_taken(peer)
        # Whoever had connected too would have been let in before this one.
        _, last = await asyncio.open_connection("127.0.0.1", peer.port)
        while peer.connections <= MAX_WAYS:
            await asyncio.sleep(0)
        connections = peer.connections
        last.close()
        peer.hold.set()
        stored = await fetches
    assert connections == MAX_WAYS + 1
    assert all(isinstance(image, StoredImage) for image in stored)


async def test_a_silent_host_does_not_keep_the_images_of_others_waiting(tmp_path: Path) -> None:
    """With 64 images that do not come, the next ones come all the same."""

    async def serve(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"/silent/" in request:
            await peer.hold.wait()
        writer.write(answer(PNG))

    async with host(serve) as peer, fetching(tmp_path, peer.url) as fetcher:
        silent = [replace(peer.image, index=n, url=f"{peer.url}/silent/{n}.png") for n in range(2, MAX_WAYS + 2)]
        waiting = asyncio.gather(*map(fetcher.fetch, silent))
        await _all_ways_taken(peer)
        assert isinstance(await fetcher.fetch(peer.image), StoredImage)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # Each gave its way back; the one that lost its patience had none.
        assert fetcher._ways.free == MAX_WAYS


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_large_image_streams_to_the_disk(tmp_path: Path, framing: str) -> None:
    """However its end is marked; hashed while it comes, and no part stays."""

    async def stream(_request: bytes, writer: asyncio.StreamWriter) -> None:
        if framing == "length":
            writer.write(answer(LARGE))
            return
        chunked = framing == "chunked"
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"Transfer-Encoding: chunked" if chunked else b"Connection: close"))
        writer.write(b"\r\n\r\n")
        for at in range(0, len(LARGE), 50_000):
            piece = LARGE[at : at + 50_000]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        writer.write(b"0\r\n\r\n" if chunked else b"")

    async with host(stream) as peer:
        stored = await once(tmp_path, peer)
    assert isinstance(stored, StoredImage)
    assert stored.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert everything(tmp_path) == {stored.path}
    assert (tmp_path / stored.path).read_bytes() == LARGE


STATUSES = [
    (401, "image_refused", False), (403, "image_gone", True), (404, "image_gone", True), (410, "image_gone", True),
    (418, "image_refused", False), (429, "image_server_error", False), (500, "image_server_error", False),
    (503, "image_server_error", False), (524, "image_server_error", False), (408, "image_server_error", False),
    (202, "image_server_error", False), (300, "image_refused", False),
]  # fmt: skip


@pytest.mark.parametrize(("status", "name", "gone"), STATUSES)
async def test_each_status_is_a_row_of_the_table(tmp_path: Path, status: int, name: str, gone: bool) -> None:
    """A missing image may come back, so none of them makes the job lost here."""
    async with host(answer(PNG, status=f"{status} Whatever")) as peer:
        failure = await failed(tmp_path, peer)
    assert (failure.name, failure.gone, failure.lost, failure.stop) == (name, gone, False, None)
    assert failure.retries >= 6
    assert str(status) in failure.message
    assert everything(tmp_path) == set()


BROKEN = [
    (answer(PNG[:-9], length=len(PNG)), "image_short"),
    (answer(LARGE[:-9], length=len(LARGE)), "image_short"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(PNG) + PNG, "image_short"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PNG[:-9], "image_short"),
    (answer(b""), "image_short"),
    (answer(PNG[:-9]), "image_damaged"),
    (answer(LARGE[:-9]), "image_damaged"),
    (answer(b"<html>captive portal</html>"), "image_wrong_type"),
    (answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Content-Type: image/svg+xml"), "image_wrong_type"),
    (answer(gzip.compress(PNG), "Content-Encoding: gzip"), "image_wrong_type"),
    (answer(PNG, "Content-Encoding: br"), "image_wrong_type"),
    (b"garbage that is no HTTP\r\n\r\n", "image_server_error"),
    (b"", "image_unreachable"),
    (answer(png(50_000, 50_000)), "image_too_large"),
]


@pytest.mark.parametrize(("reply", "name"), BROKEN)
async def test_a_broken_answer_leaves_nothing_and_may_be_tried_again(tmp_path: Path, reply: bytes, name: str) -> None:
    """Short, cut, mislabelled, encoded, no HTTP at all: the job stays paid."""
    async with host(reply) as peer:
        failure = await failed(tmp_path, peer)
    assert (failure.name, failure.lost, failure.stop) == (name, False, None)
    assert failure.retries >= 2
    assert everything(tmp_path) == set()


async def test_a_refused_connection_is_tried_again(tmp_path: Path) -> None:
    """The host is down: nothing is known of the image."""
    async with host(b"") as peer:
        gone = peer.image
    async with fetching(tmp_path, peer.url) as fetcher:
        failure = await fetcher.fetch(gone)
    assert isinstance(failure, FetchFailed)
    assert (failure.name, failure.retries) == ("image_unreachable", 8)


async def test_the_same_damaged_bytes_twice_are_kept_and_lost(tmp_path: Path) -> None:
    """Over a large body too: what streamed to the part becomes the file in damaged/."""
    body = LARGE[:-9]
    async with host(answer(body)) as peer:
        first = await failed(tmp_path, peer)
        assert first.sha256 == hashlib.sha256(body).hexdigest()
        again = PaidImage(1, "1", peer.image.url, "00001-cat", None, 1, first.sha256)
        second = await failed(tmp_path, peer, again)
    assert second.lost
    [kept] = everything(tmp_path)
    assert kept.startswith("damaged/")
    assert (tmp_path / kept).read_bytes() == body


async def test_an_endless_body_is_cut_at_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at bounded memory and disk; the same endless body is known again and kept up to the cap."""
    monkeypatch.setattr(bodies, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(bodies, "CHUNK_BYTES", 300_000)

    async def endless(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + PNG)
        while True:
            writer.write(b"x" * 64_000)
            await writer.drain()

    async with host(endless) as peer:
        first = await failed(tmp_path, peer)
        assert (first.name, first.lost) == ("image_too_large", False)
        assert everything(tmp_path) == set()
        second = await failed(tmp_path, peer, PaidImage(1, "1", peer.image.url, "c", None, 1, first.sha256))
    assert second.lost
    [kept] = everything(tmp_path)
    assert (tmp_path / kept).stat().st_size == 1_000_000


async def test_a_body_that_stops_coming_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle for too long, small or large: a try that failed, and no part stays."""
    monkeypatch.setattr(bodies, "IDLE_S", 0.2)
    for body in (PNG, LARGE):

        async def stalls(_request: bytes, writer: asyncio.StreamWriter, body: bytes = body) -> None:
            writer.write(answer(body)[:-100])
            await writer.drain()
            await peer.hold.wait()

        async with host(stalls) as peer:
            failure = await failed(tmp_path, peer)
        assert failure.name == "image_unreachable"
        assert "in time" in failure.message
    assert everything(tmp_path) == set()


async def test_a_slow_body_has_time_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packet renews the patience, up to the wall-clock cap."""
    monkeypatch.setattr(bodies, "IDLE_S", 0.3)
    monkeypatch.setattr(bodies, "RENEW_S", 0.0)
    pieces = [PNG[at : at + len(PNG) // 8] for at in range(0, len(PNG), len(PNG) // 8)]

    async def slow(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"", length=len(PNG)))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.06)

    async with host(slow) as peer:
        assert isinstance(await once(tmp_path, peer), StoredImage)
        monkeypatch.setattr(bodies, "WALL_S", 0.1)
        assert (await failed(tmp_path, peer)).name == "image_unreachable"


async def _until(path: Path) -> None:
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.005)


async def test_a_cancelled_stream_leaves_no_part(tmp_path: Path) -> None:
    """The write that is under way ends first, then the part is removed; nothing is abandoned half way."""

    async def stalls(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(LARGE)[:-100])
        await writer.drain()
        await peer.hold.wait()

    async with host(stalls) as peer, fetching(tmp_path, peer.url) as fetcher:
        fetch = asyncio.ensure_future(fetcher.fetch(peer.image))
        await _until(tmp_path / "images/.1.part")
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert everything(tmp_path) == set()


async def test_a_cancelled_commit_goes_on_and_is_adopted(tmp_path: Path) -> None:
    """Its file is whole under its name; the next start records it instead of fetching it again."""
    async with host(answer(PNG)) as peer, fetching(tmp_path, peer.url) as fetcher:
        commits = fetcher._commits
        taken = asyncio.Event()
        put = commits.put

        def noticed(item: object) -> "asyncio.Future[object]":
            taken.set()
            return put(item)  # type: ignore[arg-type,return-value]

        commits.put = noticed  # type: ignore[method-assign,assignment]
        fetch = asyncio.ensure_future(fetcher.fetch(peer.image))
        await taken.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        await _until(tmp_path / "images/00001-cat.png")
    assert remove_parts(tmp_path) == 0
    adopted = adopt(tmp_path, peer.image)
    assert adopted is not None
    assert adopted.sha256 == hashlib.sha256(PNG).hexdigest()


async def test_a_cancelled_commit_that_gathers_still_is_made_before_the_end(tmp_path: Path) -> None:
    """Closing waits for it: no late group writes into folders that are closed, and no image that came is lost."""
    async with host(answer(PNG)) as peer:
        second = replace(peer.image, index=2, stem="00002-cat")
        async with fetching(tmp_path, peer.url) as fetcher:
            assert isinstance(await fetcher.fetch(peer.image), StoredImage)
            commits = fetcher._commits
            put, taken = commits.put, asyncio.Event()

            def noticed(item: object) -> "asyncio.Future[object]":
                taken.set()
                return put(item)  # type: ignore[arg-type,return-value]

            commits.put = noticed  # type: ignore[method-assign,assignment]
            fetch = asyncio.ensure_future(fetcher.fetch(second))
            await taken.wait()
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
        assert everything(tmp_path) == {"images/00001-cat.png", "images/00002-cat.png"}


@pytest.mark.parametrize("missing", [1, 700_000])
async def test_a_large_image_that_is_cut_leaves_nothing(tmp_path: Path, missing: int) -> None:
    """However much of the announced length came: it is tried again, and no part stays."""
    async with host(answer(LARGE)[:-missing]) as peer:
        failure = await once(tmp_path, peer)
    assert isinstance(failure, FetchFailed)
    assert failure.name == "image_short"
    assert everything(tmp_path) == set()


async def test_no_byte_more_than_announced_is_taken(tmp_path: Path) -> None:
    """What a host sends after a large image is not part of it."""
    async with host(answer(LARGE) + b"HTTP/1.1 200 OK\r\n\r\nmore") as peer:
        stored = await once(tmp_path, peer)
    assert isinstance(stored, StoredImage)
    assert (tmp_path / stored.path).read_bytes() == LARGE


@pytest.mark.parametrize("step", ["open", "writev", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_fails_under_a_stream_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    """Exit 74, the image stays paid, the part is gone; with space again the same fetch succeeds."""

    def fails(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    async with host(answer(LARGE)) as peer, fetching(tmp_path, peer.url) as fetcher:
        with monkeypatch.context() as broken:
            if step == "open":
                broken.setattr(parts, "create_part", fails)
            else:
                broken.setattr(os, step, fails)
            failure = await fetcher.fetch(peer.image)
        assert isinstance(failure, FetchFailed)
        assert failure.stop is not None
        assert failure.stop.exit == Exit.DISK
        assert everything(tmp_path) == set()
        assert isinstance(await fetcher.fetch(peer.image), StoredImage)


async def test_an_output_folder_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    """Before anything is fetched; no session is left open."""
    with pytest.raises(OutputError):
        async with fetching(tmp_path / "missing", "http://127.0.0.1:1"):
            pass


async def test_late_work_after_closing_touches_nothing(tmp_path: Path) -> None:
    """A group that came too late finds closed folders, never descriptors that mean something else by then."""
    async with fetching(tmp_path, "http://127.0.0.1:1") as fetcher:
        folders = fetcher._folders
    for place in (("images",), ("conflicts",)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.close(os.open("late", os.O_CREAT, dir_fd=folders.below(place)))
    assert everything(tmp_path) == set()
