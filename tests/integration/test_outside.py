"""Images fetched by a process of their own: the same promises, and nothing lost when that process is."""

import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from banana_batch.errors import BatchLocked, Exit, OutputError
from banana_batch.images import folders, frames, outside
from banana_batch.images.folders import Folders, lock_images
from banana_batch.images.names import part_name
from banana_batch.images.outside import Outside
from banana_batch.models import FetchFailed, PaidImage, StoredImage
from banana_batch.secret import Secret
from tests.acceptance.command import until
from tests.integration import test_images as contract
from tests.integration import test_images_guarded as guarded
from tests.integration.whole_runs import gateway, run_batch
from tests.unit.images.samples import WHOLE

from . import images_peer
from .images_peer import Host, answer, everything, fetching, host

PNG = WHOLE["png"][1]
KEY = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"
BOUND_S = 20.0
LOOK_S = 0.005


class Watched(Outside):
    """One that counts what it fetches in this process."""

    here = 0

    async def __aenter__(self) -> "Watched":
        """See Outside."""
        await super().__aenter__()
        fetch = self._here.fetch

        async def counted(image: PaidImage) -> StoredImage | FetchFailed:
            self.here += 1
            return await fetch(image)

        self._here.fetch = counted  # type: ignore[method-assign]
        return self

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The process, once it is attached."""
        assert self._helper is not None
        return self._helper._process

    async def settled(self) -> None:
        """Wait until the process is ready, or has ended."""
        if self._many is not None:
            self._launch()
        if self._launched is not None:
            await self._attach()
        async with asyncio.timeout(BOUND_S):
            while self._helper is not None and not self._helper.ready and self._helper._ended is None:
                await asyncio.sleep(LOOK_S)


class Ready(Watched):
    """One whose process is ready."""

    async def __aenter__(self) -> "Ready":
        """See Outside."""
        await super().__aenter__()
        await self.settled()
        assert self._helper is not None
        assert self._helper.ready
        return self

    async def __aexit__(self, *ending: Any) -> None:
        """See Outside. All was fetched by the process."""
        await super().__aexit__(*ending)
        assert not self.here


@pytest.fixture(autouse=True)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have all that a promise is asked of fetched by a process."""
    promised = getattr(request.node, "originalname", "") in PROMISES
    if promised:
        images_peer.MADE.append(Ready)
    yield
    if promised:
        images_peer.MADE.pop()


def image(peer: Host, index: int = 1) -> PaidImage:
    return PaidImage(index, str(index), f"{peer.url}/other/cat.png", f"{index:05d}-cat", (64, 48))


@asynccontextmanager
async def watched(out: Path, peer: Host | None = None, **settings: Any) -> AsyncIterator[Watched]:
    gateway = peer.url if peer else "https://gateway.example"
    async with fetching(out, gateway, made=settings.pop("made", Watched), **settings) as made:
        yield cast(Watched, made)


# What is promised of a fetcher is promised of this one.
_PROMISES = (
    contract.test_a_served_image_is_stored_as_served,
    contract.test_many_images_come_over_few_connections,
    contract.test_a_large_image_streams_to_the_disk,
    contract.test_each_status_is_a_row_of_the_table,
    contract.test_a_broken_answer_leaves_nothing_and_may_be_tried_again,
    contract.test_a_refused_connection_is_tried_again,
    contract.test_the_same_damaged_bytes_twice_are_kept_and_lost,
    contract.test_a_large_image_that_is_cut_leaves_nothing,
    contract.test_no_byte_more_than_announced_is_taken,
    guarded.test_any_text_as_url_stays_paid_and_stops_the_run,
    guarded.test_a_redirect_is_judged_like_the_first_url,
    guarded.test_at_most_three_redirects_are_followed,
    guarded.test_a_redirect_to_nowhere_is_a_failure_like_others,
    guarded.test_an_allowed_host_is_fetched_over_trusted_tls,
    guarded.test_the_system_s_certificates_are_where_the_user_says,
    guarded.test_a_large_image_comes_whole_over_tls,
    guarded.test_an_untrusted_certificate_is_never_accepted,
)
PROMISES = {promise.__name__: promise for promise in _PROMISES}
globals().update(PROMISES)


async def test_images_that_come_one_by_one_need_no_process(tmp_path: Path) -> None:
    """Fewer than so many within one group: none is started. So many at once: one is, and fetches what comes then."""
    async with host(answer(PNG)) as peer, watched(tmp_path, peer, many=4) as made:
        for index in range(1, 10):
            assert isinstance(await made.fetch(image(peer, index)), StoredImage)
        assert made._launched is None
        assert made._helper is None
        await asyncio.gather(*(made.fetch(image(peer, index)) for index in range(10, 20)))
        await made.settled()
        made.here = 0
        assert isinstance(await made.fetch(image(peer, 20)), StoredImage)
        assert made.here == 0
    assert len(everything(tmp_path)) == 20


async def test_a_wide_run_starts_it_before_images_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing behind where none ever come."""
    monkeypatch.setattr(outside, "SOON_S", 0.0)
    async with watched(tmp_path, soon=True) as made:
        async with asyncio.timeout(BOUND_S):
            while made._launched is None:
                await asyncio.sleep(LOOK_S)
        process = made._launched[0]
    assert process.returncode is not None
    async with watched(tmp_path, soon=True, many=None) as made:
        assert made._timer is None


@pytest.mark.parametrize("when", ["idle", "asked"])
async def test_a_process_that_dies_is_not_missed(tmp_path: Path, when: str) -> None:
    """What it was asked for is fetched here, whatever it had done of it; so is all that follows."""
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        await made.settled()
        if when == "asked":
            # It stands still with what it was asked for, and dies like that.
            made.process.send_signal(signal.SIGSTOP)
            asked = [asyncio.create_task(made.fetch(image(peer, index))) for index in (1, 2)]
            await _unread(made)
            made.process.kill()
            outcomes = [await task for task in asked]
        else:
            made.process.kill()
            made.process.wait(BOUND_S)
            outcomes = [await made.fetch(image(peer, index)) for index in (1, 2)]
        outcomes.append(await made.fetch(image(peer, 3)))
        assert made.here == 3
        assert made.process.returncode is not None
    assert [isinstance(one, StoredImage) for one in outcomes] == [True] * 3
    assert everything(tmp_path) == {f"images/{number:05d}-cat.png" for number in (1, 2, 3)}


async def test_a_process_that_stands_still_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen, not dead: it gives no sign of life, is ended, and what it had is fetched here."""
    monkeypatch.setattr(outside, "SIGN_S", 0.02)
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        await made.settled()
        made.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(BOUND_S):
            outcomes = await asyncio.gather(*(made.fetch(image(peer, index)) for index in (1, 2, 3)))
        assert made.here == 3
        assert made.process.returncode == -signal.SIGKILL
    assert [isinstance(one, StoredImage) for one in outcomes] == [True] * 3
    assert everything(tmp_path) == {f"images/{number:05d}-cat.png" for number in (1, 2, 3)}


async def test_a_process_whose_host_is_slow_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it is there as often as it is asked."""
    monkeypatch.setattr(outside, "SIGN_S", 0.02)
    signs = 0

    def take(frame: bytes) -> None:
        nonlocal signs
        signs += 1
        heard(frame)
        if signs == 3 * outside.SIGNS:
            peer.hold.set()

    async def slow(_: bytes, writer: asyncio.StreamWriter) -> None:
        await peer.hold.wait()
        writer.write(answer(PNG))

    async with host(slow) as peer, watched(tmp_path, peer, made=Ready) as made:
        assert made._helper is not None
        heard = made._helper.take
        monkeypatch.setattr(made._helper, "take", take)
        async with asyncio.timeout(BOUND_S):
            assert isinstance(await made.fetch(image(peer)), StoredImage)
            while made._helper._watched:  # nothing is asked for: nobody looks any more
                await asyncio.sleep(LOOK_S)


async def _unread(made: Watched) -> None:
    """Wait until something lies in the socket that the process has not taken."""
    assert made._helper is not None
    ours = made._helper.transport.get_extra_info("socket")
    async with asyncio.timeout(BOUND_S):
        while not struct.unpack("i", fcntl.ioctl(ours.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
            await asyncio.sleep(LOOK_S)


async def test_its_threads_keep_to_one_processor_but_those_that_stream(tmp_path: Path) -> None:
    """Small images are a matter of turns in one interpreter; large ones are hashed beside it."""

    async def either(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(contract.LARGE if b"large" in request else PNG))

    def allowed(process: int) -> list[set[int]]:
        return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{process}/task").iterdir()]

    everywhere = os.sched_getaffinity(0)
    async with host(either) as peer, watched(tmp_path, peer, made=Ready) as made:
        stored = await asyncio.gather(*(made.fetch(image(peer, index)) for index in range(1, 20)))
        small = allowed(made.process.pid)
        large = replace(image(peer, 20), url=f"{peer.url}/large.png")
        stored.append(await made.fetch(large))
        both = allowed(made.process.pid)
    assert all(isinstance(one, StoredImage) for one in stored)
    assert len(small) > 2
    assert [len(processors) for processors in small] == [1] * len(small)
    assert everywhere in both


async def test_what_it_had_named_when_it_died_is_known(tmp_path: Path) -> None:
    """The image has its name, the answer never came: the same bytes are ours, no conflict."""
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        await made.settled()
        done = await made.fetch(image(peer))
        assert made.here == 0
        made.process.kill()
        made.process.wait(BOUND_S)
        assert await made.fetch(image(peer)) == done
    assert everything(tmp_path) == {"images/00001-cat.png"}


def _saying(said: bytes) -> str:
    return (
        "import socket, sys; said = socket.socket(fileno=int(sys.argv[1]));"
        f"said.sendall({said!r}); said.recv(1); said.recv(99)"
    )


_READY = struct.pack("!I", len(frames.READY)) + frames.READY


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0\0\0\0050.0.0",
        b"Traceback (most recent call last)",
        _READY + b"\0\0\0\1?",
        _READY + b"\0\0\0\2\x91\xc0",
    ],
)
async def test_a_process_that_says_something_else_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A program that was replaced meanwhile, can't start, or has lost its wits."""
    monkeypatch.setattr(outside, "END_S", 0.2)
    monkeypatch.setattr(outside, "_START", _saying(said))
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        made._launch()
        assert made._launched is not None
        process = made._launched[0]
        for index in range(1, 4):
            assert isinstance(await made.fetch(image(peer, index)), StoredImage)
    assert process.returncode is not None
    assert everything(tmp_path) == {f"images/{number:05d}-cat.png" for number in (1, 2, 3)}


@pytest.mark.parametrize("lacking", ["", "/nowhere/python", "frozen", "no descriptor left", "a path that is no text"])
async def test_without_an_interpreter_there_is_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """And none is needed."""
    if lacking == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif lacking == "no descriptor left":
        monkeypatch.setattr(socket, "socketpair", lambda: (_ for _ in ()).throw(OSError(errno.EMFILE, "no")))
    elif lacking != "a path that is no text":
        monkeypatch.setattr(sys, "executable", lacking)
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        if lacking == "a path that is no text":
            made._ca_file = Path("ca-\udcff.pem")
        await made.settled()
        assert made._helper is None
        assert isinstance(await made.fetch(image(peer)), StoredImage)


async def test_a_process_that_cannot_be_talked_to_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor, no memory: images are fetched here, and nothing is left running."""
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        made._launch()
        assert made._launched is not None
        process = made._launched[0]

        async def refused(*_arguments: Any, **_options: Any) -> None:
            raise OSError(errno.ENOMEM, "no memory")

        with monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "create_connection", refused)
            await made._attach()
        assert process.returncode is not None
        assert isinstance(await made.fetch(image(peer)), StoredImage)


async def test_what_must_end_the_run_is_raised_by_it(tmp_path: Path) -> None:
    """A name that is no file below `images/` is told of here, not lost in another process."""
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        await made.settled()
        with pytest.raises(OutputError):
            await made.fetch(replace(image(peer), stem="../x"))
        # A url that can't be written down is refused here too.
        assert isinstance(await made.fetch(replace(image(peer), url="http://\ud800/")), FetchFailed)
        assert made.here == 2


async def test_the_key_is_nowhere_and_kept_out_of_what_hosts_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in its environment nor in its arguments; a host that says the key is not quoted."""
    monkeypatch.setenv("TT_API_KEY", KEY)
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    async with (
        host(answer(PNG, f"Content-Type: image/{KEY}")) as peer,
        watched(tmp_path, peer, secret=Secret(KEY)) as made,
    ):
        await made.settled()
        proc = Path(f"/proc/{made.process.pid}")
        environ = (proc / "environ").read_bytes().split(b"\0")
        assert {line.partition(b"=")[0] for line in environ} == {
            b"SSL_CERT_FILE",
            b"MALLOC_ARENA_MAX",
            b"GLIBC_TUNABLES",
            b"",
        }
        assert KEY.encode() not in (proc / "cmdline").read_bytes()
        stored = await made.fetch(image(peer))
        assert isinstance(stored, StoredImage)
        assert stored.warning == "labelled image/***, is image/png"
        assert made.here == 0


async def test_it_hears_no_signal_and_holds_nothing_of_the_run(tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM are not for it; neither the state file nor the batch's lock is open there."""
    async with host(answer(PNG)) as peer, watched(tmp_path, peer) as made:
        await made.settled()
        process = made.process
        assert os.getsid(process.pid) == process.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        assert isinstance(await made.fetch(image(peer)), StoredImage)
        assert made.here == 0
        assert process.poll() is None
        kept = {os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert not [name for name in kept if "sqlite" in name or ".lock" in name]


def test_what_could_buy_is_not_loaded_there() -> None:
    """Neither the paid endpoint nor the state file; nor what takes long to import and is not needed."""
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, banana_batch.images.served; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    strange = ("pydantic", "sqlite3", "typer", "PIL", "tqdm", "banana_batch.endpoint", "banana_batch.store")
    assert not [name for name in listed if name.startswith(strange)]


async def test_descriptors_above_a_thousand(tmp_path: Path) -> None:
    """A wide run has thousands of connections open when images begin to come fast."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        async with host(answer(PNG)) as peer, watched(tmp_path, peer, made=Ready) as made:
            assert isinstance(await made.fetch(image(peer)), StoredImage)
    finally:
        for descriptor in held:
            os.close(descriptor)


async def test_a_run_that_is_cut_off_leaves_no_process(tmp_path: Path) -> None:
    """Fetches under way are given up, and what had come of them goes."""

    async def half(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(contract.LARGE)[: 1 << 20])
        await writer.drain()
        half_way.set()
        await peer.hold.wait()

    half_way = asyncio.Event()
    async with host(half) as peer:
        async with watched(tmp_path, peer) as made:
            await made.settled()
            task = asyncio.create_task(made.fetch(image(peer)))
            await asyncio.wait_for(half_way.wait(), BOUND_S)
            task.cancel()
            await asyncio.wait([task])
            process = made.process
        assert process.returncode == 0
    assert everything(tmp_path) == set()


def test_it_ends_with_the_run_that_is_killed(tmp_path: Path) -> None:
    """And holds the lock of `images/` exactly as long as it lives."""
    script = f"""
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from banana_batch.images.outside import Outside

async def run():
    one = Outside(Path({str(tmp_path)!r}), gateway="https://gateway.example",
                  committer=ThreadPoolExecutor(1), disk=ThreadPoolExecutor(1))
    async with one:
        one._launch()
        await one._attach()
        while not one._helper.ready:
            await asyncio.sleep({LOOK_S})
        print(one._helper._process.pid, flush=True)
        await asyncio.sleep({BOUND_S})

asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        helper = int(run.stdout.readline())
        os.kill(helper, signal.SIGSTOP)
        run.kill()
        run.wait(BOUND_S)
        later = Folders(tmp_path)
        assert not lock_images(later)
        os.kill(helper, signal.SIGCONT)
        until(lambda: lock_images(later))
        until(lambda: not Path(f"/proc/{helper}").exists() or "Z" in Path(f"/proc/{helper}/stat").read_text())
        later.close()


async def test_a_run_waits_for_the_process_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins when the lock is free, and ends with 75 if it never is."""
    (tmp_path / "images").mkdir()
    former = os.open(tmp_path / "images", os.O_RDONLY)
    fcntl.flock(former, fcntl.LOCK_EX)
    begun = asyncio.Event()

    async def run() -> None:
        async with watched(tmp_path):
            begun.set()

    looks = 0
    looked_twice = asyncio.Event()

    def look(opened: Folders) -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            looked_twice.set()
        return lock_images(opened)

    monkeypatch.setattr(folders, "lock_images", look)
    later = asyncio.create_task(run())
    await asyncio.wait_for(looked_twice.wait(), BOUND_S)
    assert not begun.is_set()
    os.close(former)
    await asyncio.wait_for(later, BOUND_S)
    former = os.open(tmp_path / "images", os.O_RDONLY)
    fcntl.flock(former, fcntl.LOCK_EX)
    monkeypatch.setattr(folders, "FORMER_S", 0.0)
    with pytest.raises(BatchLocked, match="earlier run"):
        await run()
    os.close(former)


async def test_nothing_is_mended_while_a_process_of_the_run_before_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts are its own until it has ended: taken away, they would be named under its hands."""
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    part = out / "images" / part_name(1)
    part.write_bytes(b"half")
    former = os.open(out / "images", os.O_RDONLY)
    fcntl.flock(former, fcntl.LOCK_EX)
    monkeypatch.setattr(folders, "FORMER_S", 0.0)
    async with gateway() as peer:
        with pytest.raises(BatchLocked, match="earlier run"):
            await run_batch(out, peer.url, ["a"])
        assert part.read_bytes() == b"half"
        os.close(former)
        left = await run_batch(out, peer.url, ["a"])
    assert (left.exit, peer.posts) == (Exit.DONE, ["a"])
    assert not part.exists()
