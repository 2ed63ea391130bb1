"""The committer in a process of its own: the same promises, and nothing lost when that process is."""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from banana_batch.errors import BatchLocked
from banana_batch.images import fetcher, outside
from banana_batch.images.committer import Committer, Received
from banana_batch.images.folders import Folders
from banana_batch.images.outside import Outside, lock_images
from banana_batch.models import StoredImage
from tests.acceptance.command import until
from tests.unit.images import test_committer as contract

from .images_peer import fetching

PNG, paid, received = contract.PNG, contract.paid, contract.received
BOUND_S = 20.0


class Here(Committer):
    """The committer of this process, with a count of the groups that came to it."""

    groups = 0

    def commit(self, group: Sequence[Received]) -> list[object]:  # type: ignore[override]
        """See Committer."""
        self.groups += 1
        return super().commit(group)  # type: ignore[return-value]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Folders]:
    held = Folders(tmp_path)
    yield held
    with contextlib.suppress(OSError):
        held.close()


@pytest.fixture
def here(opened: Folders) -> Iterator[Here]:
    with ThreadPoolExecutor(4) as disk:
        yield Here(opened, disk)


@pytest.fixture
def made(opened: Folders, here: Here) -> Iterator[Outside]:
    """One whose process is ready."""
    one = Outside(opened, here, many=0)
    one.commit([])
    until(one._answers)
    here.groups = 0
    yield one
    one.close()


@pytest.fixture
def commit(made: Outside) -> Callable[..., Sequence[object]]:
    return lambda *group: made.commit(group)


def unread(sent: socket.socket | None) -> int:
    """Return the bytes that the other end of a socket has not taken yet."""
    assert sent is not None
    (waiting,) = struct.unpack("i", fcntl.ioctl(sent, termios.TIOCOUTQ, bytes(4)))
    return int(waiting)


# What is promised of a committer is promised of this one.
test_a_whole_image = contract.test_a_whole_image_gets_its_name
test_a_taken_name = contract.test_a_taken_name_is_never_overwritten
test_the_same_bytes = contract.test_the_same_bytes_under_the_name_are_our_own
test_whatever_holds_the_name = contract.test_whatever_holds_the_name_is_left_alone
test_a_symlink = contract.test_a_symlink_in_place_of_a_part_is_replaced_not_followed
test_a_harmless_oddity = contract.test_a_harmless_oddity_is_a_warning
test_damaged_bytes = contract.test_damaged_bytes_are_not_kept_the_first_time
test_the_same_damaged_bytes = contract.test_the_same_damaged_bytes_twice_are_kept_apart_and_lost
test_other_damaged_bytes = contract.test_other_damaged_bytes_are_tried_again
test_a_page_or_an_empty_body = contract.test_a_page_or_an_empty_body_never_makes_an_image_lost
test_a_stem_outside_images = contract.test_a_stem_outside_images_ends_the_run
test_a_streamed_part = contract.test_a_streamed_part_is_named_like_a_small_one
test_a_large_group = contract.test_a_group_may_be_larger_than_the_disk_pool


def test_small_images_are_written_there_and_large_ones_here(made: Outside, here: Here) -> None:
    """A group that fits goes there whole, in several parts if it is large."""
    images = [received(PNG + bytes(200_000), paid(number)) for number in range(1, 60)]
    outcomes = made.commit(images)
    assert here.groups == 0
    assert [one.path for one in outcomes if isinstance(one, StoredImage)] == [
        f"images/{number:05d}-cat.png" for number in range(1, 60)
    ]


@pytest.mark.parametrize("when", ["idle", "asked"])
def test_a_process_that_dies_is_not_missed(made: Outside, here: Here, tmp_path: Path, when: str) -> None:
    """Its group is committed here, whatever it had done of it; so are all that follow."""
    process = made._process
    assert process is not None
    if when == "asked":
        # It stands still with the group before it, and dies like that.
        process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as thread:
            under_way = thread.submit(made.commit, [received(PNG, paid(1)), received(PNG, paid(2))])
            until(lambda: unread(made._socket))
            process.kill()
            outcomes = under_way.result(BOUND_S)
    else:
        process.kill()
        process.wait(BOUND_S)
        outcomes = made.commit([received(PNG, paid(1)), received(PNG, paid(2))])
    outcomes = [*outcomes, *made.commit([received(PNG, paid(3))])]
    assert [isinstance(one, StoredImage) for one in outcomes] == [True] * 3
    assert here.groups == 2
    assert contract.everything(tmp_path) == {f"images/{number:05d}-cat.png" for number in (1, 2, 3)}


def test_what_it_had_named_when_it_died_is_known(made: Outside, here: Here, opened: Folders, tmp_path: Path) -> None:
    """The image has its name, the answer never came: the same bytes are ours, no conflict."""
    [done] = made.commit([received(PNG)])
    assert here.groups == 0
    assert made._process is not None
    made._process.kill()
    assert made.commit([received(PNG)]) == [done]
    assert contract.everything(tmp_path) == {"images/00001-cat.png"}


@pytest.mark.parametrize("sent", [b"", b"0.0.0", b"Traceback"])
def test_a_process_that_says_something_else_is_not_asked(
    opened: Folders, here: Here, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A program that was replaced meanwhile, or can't start."""
    monkeypatch.setattr(
        outside, "_START", f"import socket, sys; socket.socket(fileno=int(sys.argv[1])).sendall({sent!r})"
    )
    one = Outside(opened, here, many=0)
    one.commit([])
    assert one._process is not None
    until(lambda: one._answers() or one._socket is None)
    assert isinstance(one.commit([received(PNG)])[0], StoredImage)
    assert here.groups == 2
    one.close()


@pytest.mark.parametrize("interpreter", ["", "/nowhere/python", "frozen", "no descriptor left"])
def test_without_an_interpreter_there_is_no_process(
    opened: Folders, here: Here, monkeypatch: pytest.MonkeyPatch, interpreter: str
) -> None:
    """And none is needed."""
    if interpreter == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif interpreter == "no descriptor left":
        monkeypatch.setattr(socket, "socketpair", lambda: (_ for _ in ()).throw(OSError(errno.EMFILE, "no")))
    else:
        monkeypatch.setattr(sys, "executable", interpreter)
    one = Outside(opened, here, many=0)
    assert isinstance(one.commit([received(PNG)])[0], StoredImage)
    assert one._process is None
    one.close()


def test_it_knows_no_secret_and_hears_no_signal(made: Outside, here: Here) -> None:
    """No environment, nothing of the run in its arguments but paths and numbers; Ctrl-C and SIGTERM are not for it."""
    process = made._process
    assert process is not None
    assert Path(f"/proc/{process.pid}/environ").read_bytes() == b""
    assert os.getsid(process.pid) == process.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert isinstance(made.commit([received(PNG)])[0], StoredImage)
    assert here.groups == 0
    assert process.poll() is None
    kept = {os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
    assert not [name for name in kept if "sqlite" in name or ".lock" in name]


def test_it_starts_without_the_network() -> None:
    """What takes a quarter of a second to import is not its business."""
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, banana_batch.images.outside; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert {"aiohttp", "pydantic", "asyncio", "ssl", "sqlite3"} & set(listed) == set()


def test_descriptors_above_a_thousand(opened: Folders, here: Here) -> None:
    """A wide run has thousands of connections open when images begin to come fast."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        one = Outside(opened, here, many=0)
        one.commit([])
        until(one._answers)
        assert isinstance(one.commit([received(PNG)])[0], StoredImage)
        one.close()
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_it_ends_with_the_run_that_is_killed(tmp_path: Path) -> None:
    """And holds the lock of `images/` exactly as long as it lives."""
    script = f"""
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from banana_batch.images.committer import Committer
from banana_batch.images.folders import Folders
from banana_batch.images.outside import Outside, lock_images
folders = Folders(Path({str(tmp_path)!r}))
assert lock_images(folders)
one = Outside(folders, Committer(folders, ThreadPoolExecutor(1)), many=0)
one.commit([])
while not one._answers():
    time.sleep(0.01)
print(one._process.pid, flush=True)
time.sleep({BOUND_S})
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
        async with fetching(tmp_path, "https://gateway.example"):
            begun.set()

    looks = 0
    looked_twice = asyncio.Event()

    def look(folders: Folders) -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            looked_twice.set()
        return lock_images(folders)

    monkeypatch.setattr(fetcher, "lock_images", look)
    later = asyncio.create_task(run())
    await asyncio.wait_for(looked_twice.wait(), BOUND_S)
    assert not begun.is_set()
    os.close(former)
    await asyncio.wait_for(later, BOUND_S)
    former = os.open(tmp_path / "images", os.O_RDONLY)
    fcntl.flock(former, fcntl.LOCK_EX)
    monkeypatch.setattr(fetcher, "FORMER_S", 0.0)
    with pytest.raises(BatchLocked, match="earlier run"):
        await run()
    os.close(former)
