"""From bytes to durable files: order, names that are taken, disks that fail."""

import errno
import hashlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from banana_batch.errors import DiskError, Exit, OutputError
from banana_batch.images import committer as committer_module
from banana_batch.images import files, folders, names
from banana_batch.images.committer import Committer, Received
from banana_batch.images.folders import Folders
from banana_batch.images.parts import StreamedPart
from banana_batch.models import KEPT_FREE_BYTES, FetchFailed, PaidImage, StoredImage
from tests.unit.images.samples import WHOLE, png

BOUND_S = 20.0

PNG = WHOLE["png"][1]


def paid(index: int = 1, *, stem: str | None = None, damaged: bytes | None = None) -> PaidImage:
    sha256 = None if damaged is None else hashlib.sha256(damaged).hexdigest()
    return PaidImage(index, str(index), "https://cdn.example/a.png", stem or f"{index:05d}-cat", (64, 48), 0, sha256)


def received(body: bytes, image: PaidImage | None = None, label: str | None = "image/png") -> Received:
    return Received(image or paid(), body, label, measured=True)


@pytest.fixture
def disk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Folders]:
    held = Folders(tmp_path)
    yield held
    held.close()


@pytest.fixture
def commit(opened: Folders, disk: ThreadPoolExecutor) -> Callable[..., Sequence[object]]:
    made = Committer(opened, disk)
    return lambda *group: made.commit(group)


Commit = Callable[..., Sequence[object]]


def everything(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}


def test_a_whole_image_gets_its_name(commit: Commit, tmp_path: Path) -> None:
    """The bytes are exactly those served, private, under the content's own extension, and no part is left."""
    assert commit(received(PNG)) == [
        StoredImage("images/00001-cat.png", len(PNG), hashlib.sha256(PNG).hexdigest(), 64, 48, "image/png", None)
    ]
    path = tmp_path / "images/00001-cat.png"
    assert path.read_bytes() == PNG
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert everything(tmp_path) == {"images/00001-cat.png"}


def test_a_body_is_let_go_once_it_is_in_its_part(commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a group is synced the next one comes: none of its bodies is in memory any more."""
    group = [received(PNG, paid(index)) for index in (1, 2)]
    held = list[int]()

    def looking(fd: int) -> None:
        held.append(sum(len(one.body) for one in group if isinstance(one.body, bytes)))
        files.sync_part(fd)

    monkeypatch.setattr(committer_module, "sync_part", looking)
    assert all(isinstance(outcome, StoredImage) for outcome in commit(*group))
    assert held == [0, 0]


def test_a_group_lands_in_order_with_one_sync_a_folder(
    commit: Commit, opened: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image has its own outcome, whatever its neighbours came to."""
    opened.below(("images", "1"))
    folder_syncs: list[int] = []
    real = os.fsync

    def watched(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            folder_syncs.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    group = [received(PNG, paid(index)) for index in range(9_990, 10_010)]
    group[5] = received(b"<html>", paid(9_995))
    outcomes = commit(*group)
    assert [type(one) for one in outcomes] == [FetchFailed if at == 5 else StoredImage for at in range(20)]
    assert isinstance(outcomes[10], StoredImage)
    assert outcomes[10].path == "images/1/10000-cat.png"
    assert len(folder_syncs) == 2
    assert len(everything(tmp_path)) == 19


def test_the_order_of_the_steps_is_the_promised_one(commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    """sync of the part, then the name, then the part is gone, then the folder is synced: never otherwise."""
    steps: list[str] = []
    sync, link, unlink = os.fsync, os.link, os.unlink

    def synced(fd: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync part")
        sync(fd)

    def linked(*names: str, **where: int) -> None:
        steps.append("link")
        link(*names, **where)  # type: ignore[arg-type]

    def unlinked(name: str, **where: int) -> None:
        steps.append("unlink")
        unlink(name, **where)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(os, "unlink", unlinked)
    monkeypatch.setattr(files, "_advise", lambda *_: steps.append("advise"))
    commit(received(PNG))
    # The first advice has the writing begun, the second lets its memory go, which it can only once that has ended.
    assert steps == ["advise", "sync part", "advise", "link", "unlink", "sync folder"]


def test_memory_that_is_not_let_go_costs_no_image(commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither before its sync, which writes then, nor after it."""

    def refuses(*_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(files, "_advise", refuses)
    [stored] = commit(received(PNG))
    assert isinstance(stored, StoredImage)


def test_a_taken_name_is_never_overwritten(commit: Commit, tmp_path: Path) -> None:
    """Both files are kept: theirs where it was, ours in conflicts/, and the job is told so."""
    for _ in range(2):
        (tmp_path / "images/00001-cat.png").write_text("not ours")
        [stored] = commit(received(PNG))
        assert isinstance(stored, StoredImage)
        assert (tmp_path / stored.path).read_bytes() == PNG
        assert stored.warning is not None
        assert "was there already" in stored.warning
    assert (tmp_path / "images/00001-cat.png").read_text() == "not ours"
    assert everything(tmp_path) == {"images/00001-cat.png", "conflicts/00001-cat.png", "conflicts/00001-cat~2.png"}


def test_the_same_bytes_under_the_name_are_our_own(commit: Commit, tmp_path: Path) -> None:
    """A run that was killed between the name and its record left them: nothing is kept twice."""
    first, second = commit(received(PNG)), commit(received(PNG))
    assert first == second
    assert everything(tmp_path) == {"images/00001-cat.png"}


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder"])
def test_whatever_holds_the_name_is_left_alone(commit: Commit, tmp_path: Path, kind: str) -> None:
    """A symlink is not followed, a FIFO does not block, a folder is no place for the image."""
    outside = tmp_path / "outside"
    outside.write_text("sentinel")
    target = tmp_path / "images/00001-cat.png"
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(outside if kind == "symlink" else tmp_path / "nowhere")
    [stored] = commit(received(PNG))
    assert isinstance(stored, StoredImage)
    assert stored.path == "conflicts/00001-cat.png"
    assert outside.read_text() == "sentinel"
    assert not (tmp_path / "nowhere").exists()


def test_a_symlink_in_place_of_a_part_is_replaced_not_followed(commit: Commit, tmp_path: Path) -> None:
    """The bytes never go where it points."""
    outside = tmp_path / "outside"
    outside.write_text("sentinel")
    (tmp_path / "images/.1.part").symlink_to(outside)
    assert isinstance(commit(received(PNG))[0], StoredImage)
    assert outside.read_text() == "sentinel"


def test_without_hard_links_nothing_is_overwritten_either(
    commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT and the like: a placeholder holds the name, the part is renamed over it."""

    def unsupported(*_names: str, **_where: int) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    assert isinstance(commit(received(PNG))[0], StoredImage)
    (tmp_path / "images/00002-cat.png").write_text("not ours")
    [stored] = commit(received(PNG, paid(2)))
    assert isinstance(stored, StoredImage)
    assert (tmp_path / "images/00001-cat.png").read_bytes() == PNG
    assert (tmp_path / "images/00002-cat.png").read_text() == "not ours"
    assert (tmp_path / stored.path).read_bytes() == PNG
    assert not list((tmp_path / "images").glob(".*"))


def test_a_rename_that_fails_takes_its_placeholder_back(
    commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file under a final name would be a lie."""

    def failing(code: int) -> Callable[..., None]:
        def fails(*_names: str, **_where: int) -> None:
            raise OSError(code, os.strerror(code))

        return fails

    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    monkeypatch.setattr(os, "rename", failing(errno.EIO))
    [failed] = commit(received(PNG))
    assert isinstance(failed, FetchFailed)
    assert everything(tmp_path) == set()


ODD = [
    (PNG + b"tail", paid(), "image/png", "4 B after the end of the image"),
    (PNG, PaidImage(1, "1", "u", "00001-cat", (1024, 1024)), "image/png", "64x48 pixels instead of 1024x1024"),
    (PNG, paid(), "image/jpeg", "labelled image/jpeg, is image/png"),
    (PNG, paid(), "text/html; charset=utf-8", "labelled text/html, is image/png"),
    (PNG, paid(), "application/octet-stream", None),
    (PNG, paid(), None, None),
    (WHOLE["jpeg"][1], paid(), "image/jpg", None),
    (png(9, 9) + b"x", paid(), "image/gif",
     "1 B after the end of the image; 9x9 pixels instead of 64x48; labelled image/gif, is image/png"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "image", "label", "warning"), ODD)
def test_a_harmless_oddity_is_a_warning(
    commit: Commit, body: bytes, image: PaidImage, label: str | None, warning: str | None
) -> None:
    """What was paid for is kept wherever it is a whole image."""
    [stored] = commit(received(body, image, label))
    assert isinstance(stored, StoredImage)
    assert stored.warning == warning


def test_damaged_bytes_are_not_kept_the_first_time(commit: Commit, tmp_path: Path) -> None:
    """They are tried again; their hash tells whether the same come twice."""
    cut = PNG[:-20]
    [failed] = commit(received(cut))
    assert isinstance(failed, FetchFailed)
    assert (failed.name, failed.lost, failed.retries) == ("image_damaged", False, 2)
    assert failed.sha256 == hashlib.sha256(cut).hexdigest()
    assert everything(tmp_path) == set()


def test_the_same_damaged_bytes_twice_are_kept_apart_and_lost(commit: Commit, tmp_path: Path) -> None:
    """They were paid for: damaged/ keeps them, never images/."""
    cut = PNG[:-20]
    [failed] = commit(received(cut, paid(damaged=cut)))
    assert isinstance(failed, FetchFailed)
    assert failed.lost
    [kept] = everything(tmp_path)
    assert kept.startswith("damaged/00001-")
    assert kept in failed.message
    assert (tmp_path / kept).read_bytes() == cut


def test_other_damaged_bytes_are_tried_again(commit: Commit, tmp_path: Path) -> None:
    """Only the very same bytes prove that the host has no better ones."""
    [failed] = commit(received(PNG[:-20], paid(damaged=PNG[:-21])))
    assert isinstance(failed, FetchFailed)
    assert not failed.lost
    assert everything(tmp_path) == set()


def test_a_page_or_an_empty_body_never_makes_an_image_lost(commit: Commit, tmp_path: Path) -> None:
    """A maintenance page comes twice the same; the image may still be there tomorrow."""
    for body, name in ((b"<html>busy</html>", "image_wrong_type"), (b"", "image_short")):
        [failed] = commit(received(body, paid(damaged=body)))
        assert isinstance(failed, FetchFailed)
        assert (failed.name, failed.lost, failed.sha256) == (name, False, None)
    assert everything(tmp_path) == set()


def test_a_body_that_ended_with_its_connection_may_have_been_cut(commit: Commit) -> None:
    """No length was announced, so more tries are worth it than for a damaged image."""
    [failed] = commit(Received(paid(), PNG[:-20], None, measured=False))
    assert isinstance(failed, FetchFailed)
    assert (failed.name, failed.retries) == ("image_short", 5)


def test_a_pixel_bomb_is_kept_apart_without_decoding(commit: Commit, tmp_path: Path) -> None:
    """Paid bytes are paid bytes: twice the same, and they lie in damaged/."""
    bomb = png(50_000, 50_000)
    [first] = commit(received(bomb))
    [second] = commit(received(bomb, paid(damaged=bomb)))
    assert isinstance(first, FetchFailed)
    assert isinstance(second, FetchFailed)
    assert (first.name, first.lost, second.lost) == ("image_too_large", False, True)
    assert len(everything(tmp_path)) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "link", "unlink"])
def test_a_failing_disk_stops_the_run_and_loses_nothing(
    commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    """Whatever step fails: the job stays paid, exit 74, and a later fetch succeeds."""

    def fails(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, step, fails)
        [failed] = commit(received(PNG))
    assert isinstance(failed, FetchFailed)
    assert failed.stop is not None
    assert (failed.stop.exit, failed.lost, failed.retries) == (Exit.DISK, False, 0)
    [stored] = commit(received(PNG))
    assert isinstance(stored, StoredImage)
    assert stored.warning is None
    assert everything(tmp_path) == {"images/00001-cat.png"}


def test_a_folder_that_cannot_be_synced_makes_nothing_done(
    commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name may be gone after a power cut, so no image of that folder counts."""
    real = os.fsync

    def fails(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fails)
    outcomes = commit(received(PNG), received(PNG, paid(2)))
    assert all(isinstance(one, FetchFailed) and one.stop is not None for one in outcomes)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG])
def test_a_folder_that_may_not_be_written_is_no_output(
    commit: Commit, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Permissions are the user's to mend: 73."""

    def fails(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "create_part", fails)
    [failed] = commit(received(PNG))
    assert isinstance(failed, FetchFailed)
    assert failed.stop is not None
    assert failed.stop.exit == Exit.NO_OUTPUT


def test_a_stem_outside_images_ends_the_run(commit: Commit, tmp_path: Path) -> None:
    """The plan never makes one, so it is no one image's failure; its neighbours are stored."""
    escaped, stored = commit(received(PNG, paid(stem="../../etc/cat")), received(PNG, paid(2)))
    assert isinstance(escaped, OutputError)
    assert isinstance(stored, StoredImage)
    assert everything(tmp_path) == {"images/00002-cat.png"}


def test_a_sub_folder_that_is_a_symlink_is_not_followed(commit: Commit, tmp_path: Path) -> None:
    """`images/pets` may lead anywhere."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (tmp_path / "images/pets").symlink_to(outside)
    [failed] = commit(received(PNG, paid(stem="pets/cat")))
    assert isinstance(failed, FetchFailed)
    assert failed.stop is not None
    assert failed.stop.exit == Exit.NO_OUTPUT
    assert list(outside.iterdir()) == []


def test_descriptors_stay_bounded_over_many_folders(
    commit: Commit, opened: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template with a folder a job must not use up the process's files."""
    monkeypatch.setattr(folders, "MAX_OPEN", 4)
    before = len(os.listdir("/dev/fd"))
    for index in range(1, 40):
        [stored] = commit(received(PNG, paid(index, stem=f"f{index % 20}/{index}")))
        assert isinstance(stored, StoredImage)
    assert len(os.listdir("/dev/fd")) <= before + 5


def test_a_streamed_part_is_named_like_a_small_one(commit: Commit, opened: Folders, tmp_path: Path) -> None:
    """Hashed while it is written, examined from the disk."""
    body = png(fill=1 << 20)
    part = StreamedPart(opened, 1)
    for at in range(0, len(body), 300_000):
        part.writelines([body[at : at + 100_000], body[at + 100_000 : at + 300_000]])
    [stored] = commit(Received(paid(), part.seal(), None, measured=True))
    assert isinstance(stored, StoredImage)
    assert (stored.bytes, stored.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert (tmp_path / stored.path).read_bytes() == body


def test_a_damaged_streamed_part_is_removed(commit: Commit, opened: Folders, tmp_path: Path) -> None:
    """Nothing of it stays, the first time."""
    part = StreamedPart(opened, 1)
    part.writelines([PNG[:-5]])
    assert isinstance(commit(Received(paid(), part.seal(), None, measured=True))[0], FetchFailed)
    assert everything(tmp_path) == set()


def test_short_writes_are_followed_up(opened: Folders, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk that takes a piece at a time gets all of them; one that takes nothing is broken."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:7])))
    os.close(files.write_part(opened.images, 1, PNG))
    assert (tmp_path / "images/.1.part").read_bytes() == PNG
    monkeypatch.setattr(os, "writev", lambda fd, group: real(fd, bytes(group[0][:3])))
    part = StreamedPart(opened, 2)
    part.writelines([PNG[:10]] + [PNG[at : at + 1] for at in range(10, len(PNG))])
    part.seal()
    assert (tmp_path / "images/.2.part").read_bytes() == PNG
    monkeypatch.setattr(os, "write", lambda _fd, _data: 0)
    with pytest.raises(OSError, match="Input/output"):
        files.write_part(opened.images, 3, PNG)


def test_an_output_folder_that_anybody_may_change_is_refused(tmp_path: Path) -> None:
    """Without the sticky bit, another user could swap every file."""
    tmp_path.chmod(0o777)
    with pytest.raises(OutputError):
        Folders(tmp_path)
    tmp_path.chmod(0o1777)
    Folders(tmp_path).close()
    (tmp_path / "images").chmod(0o777)
    with pytest.raises(OutputError):
        Folders(tmp_path)


def test_images_must_be_a_folder_of_its_own(tmp_path: Path) -> None:
    """No symlink, no file, no missing output folder; and a disk that fails is named as such."""
    with pytest.raises(OutputError):
        Folders(tmp_path / "missing")
    (tmp_path / "real").mkdir()
    (tmp_path / "images").symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="symlink"):
        Folders(tmp_path)
    (tmp_path / "images").unlink()
    (tmp_path / "images").write_text("a file")
    with pytest.raises(OutputError):
        Folders(tmp_path)


def test_an_output_folder_that_cannot_be_made_durable_is_a_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may vanish at a power cut is no place for paid images."""

    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(DiskError):
        Folders(tmp_path)


def test_a_group_may_be_larger_than_the_disk_pool(commit: Commit) -> None:
    """Slices share the pool and none waits for the committer itself."""
    outcomes = commit(*(received(PNG, paid(index)) for index in range(1, committer_module.SLICES * 5)))
    assert all(isinstance(one, StoredImage) for one in outcomes)


class Exhausted(ThreadPoolExecutor):
    """A pool whose second piece of work finds no thread to be had, though it may still be done by the first one."""

    asked = 0

    def submit(self, *work: Any, **given: Any) -> Any:
        """See Executor."""
        self.asked += 1
        made = super().submit(*work, **given)
        if self.asked > 1:
            raise RuntimeError("can't start new thread")
        return made


def test_each_part_is_synced_once_before_it_gets_its_name(opened: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are for it; what they have not come to by then is waited for."""
    synced: Counter[int] = Counter()
    ours_done = threading.Event()
    sync, link = os.fsync, os.link
    committing = threading.get_ident()

    def watched(fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            if threading.get_ident() != committing:
                assert ours_done.wait(BOUND_S)
            synced[status.st_ino] += 1
            if threading.get_ident() == committing:
                ours_done.set()
        sync(fd)

    def named(name: str, *names: str, src_dir_fd: int, **where: Any) -> None:
        assert synced[os.stat(name, dir_fd=src_dir_fd).st_ino] == 1
        link(name, *names, src_dir_fd=src_dir_fd, **where)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "link", named)
    index = 0
    for pool in (*(ThreadPoolExecutor(threads) for threads in (1, 2, 3, 8)), Exhausted(2)):
        for size in (1, 2, 7, 8, 9, 40):
            open_before = len(os.listdir("/proc/self/fd"))
            group = [received(PNG, paid(index := index + 1)) for _ in range(size)]
            assert all(isinstance(one, StoredImage) for one in Committer(opened, pool).commit(group))
            assert len(os.listdir("/proc/self/fd")) == open_before
            assert (sum(synced.values()), set(synced.values())) == (size, {1})
            synced.clear()
            ours_done.clear()
        pool.shutdown()


def test_what_was_not_synced_gets_no_name(commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kept it from that, and wherever that was told."""
    committing = threading.get_ident()
    failed = threading.Event()
    sync = files.sync_part

    def fails(fd: int) -> None:
        if threading.get_ident() != committing:
            failed.set()
            raise MemoryError
        assert failed.wait(BOUND_S)
        sync(fd)

    monkeypatch.setattr(committer_module, "sync_part", fails)
    outcomes = commit(*(received(PNG, paid(index)) for index in range(1, 40)))
    stored = [one for one in outcomes if isinstance(one, StoredImage)]
    assert everything(tmp_path) == {one.path for one in stored}
    assert 0 < len(stored) < len(outcomes)
    assert all(isinstance(one, StoredImage | FetchFailed) for one in outcomes)


def test_a_folder_that_another_process_makes_meanwhile_is_ours_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run and its process store images of one folder; each makes sure that its name is durable."""
    synced: list[int] = []
    made, sync = os.mkdir, os.fsync

    def raced(*arguments: Any, **options: Any) -> None:
        made(*arguments, **options)
        made(*arguments, **options)

    def noted(descriptor: int) -> None:
        synced.append(descriptor)
        sync(descriptor)

    with closing(Folders(tmp_path)) as first, closing(Folders(tmp_path)) as second:
        monkeypatch.setattr(os, "mkdir", raced)
        monkeypatch.setattr(os, "fsync", noted)
        assert first.below((names.IMAGES, "cats")) >= 0
        assert second.below((names.IMAGES, "cats")) >= 0
        assert synced == [first.images, second.images]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_last_of_a_disk_is_left_to_the_ledger(
    commit: Commit, opened: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """An image that would fit into what is kept free is not written: the disk is full for it, and nothing is left."""
    monkeypatch.setattr(
        os, "fstatvfs", lambda _fd: SimpleNamespace(f_blocks=1 << 20, f_bavail=KEPT_FREE_BYTES, f_frsize=1)
    )
    if streamed:
        part = StreamedPart(opened, 1)
        with pytest.raises(OSError, match="No space left"):
            part.writelines([PNG])
        part.discard()
    else:
        (failure,) = commit(received(PNG))
        assert isinstance(failure, FetchFailed)
        assert failure.stop is not None
        assert failure.stop.exit is Exit.DISK
    assert everything(tmp_path) == set()
