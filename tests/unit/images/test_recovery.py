"""What a crash left behind, and the hashes that `verify` compares."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from banana_batch.errors import DiskError, OutputError
from banana_batch.images import recovery
from banana_batch.images.recovery import adopt, rehash, remove_parts
from banana_batch.models import PaidImage, StoredImage
from tests.unit.images.samples import WHOLE

PNG, JPEG = WHOLE["png"][1], WHOLE["jpeg"][1]
IMAGE = PaidImage(1, "1", "https://cdn.example/a.png", "00001-cat", (64, 48))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def test_parts_are_removed_and_nothing_else(out: Path) -> None:
    """Only names that we make, only files on their way."""
    keep = ["00001-cat.png", ".keep", ".1.part.bak", "x.part", ".a.part"]
    for name in (*keep, ".1.part", ".20000.part"):
        (out / "images" / name).write_bytes(b"x")
    assert remove_parts(out) == 2
    assert sorted(path.name for path in (out / "images").iterdir()) == sorted(keep)
    assert remove_parts(out) == 0


def test_a_part_that_is_a_symlink_goes_alone(out: Path) -> None:
    """Its target stays."""
    (out / "target").write_text("sentinel")
    (out / "images/.3.part").symlink_to(out / "target")
    assert remove_parts(out) == 1
    assert (out / "target").read_text() == "sentinel"


def test_a_whole_image_under_the_final_name_is_adopted(out: Path) -> None:
    """The run died between the last sync and its commit: the image is there and is not fetched again."""
    (out / "images/00001-cat.png").write_bytes(PNG)
    sha256 = hashlib.sha256(PNG).hexdigest()
    assert adopt(out, IMAGE) == StoredImage("images/00001-cat.png", len(PNG), sha256, 64, 48, "image/png", None)


def test_an_adopted_image_has_its_warnings(out: Path) -> None:
    """As if it had been fetched, but for the label, which is gone."""
    (out / "images/00001-cat.jpg").write_bytes(JPEG + b"tail")
    adopted = adopt(out, IMAGE)
    assert adopted is not None
    assert adopted.warning == "4 B after the end of the image"


@pytest.mark.parametrize("body", [b"", PNG[:-3], b"not ours", JPEG])
def test_what_is_no_whole_image_of_its_name_is_moved_aside(out: Path, body: bytes) -> None:
    """Never deleted, never overwritten: the next fetch finds its name free."""
    (out / "images/00001-cat.png").write_bytes(body)
    assert adopt(out, IMAGE) is None
    assert (out / "conflicts/00001-cat.png").read_bytes() == body
    assert not (out / "images/00001-cat.png").exists()


def test_of_an_image_that_was_done_only_the_same_is_adopted(out: Path) -> None:
    """A repair was cut off: another whole image under the name is not what was paid for."""
    (out / "images/00001-cat.png").write_bytes(PNG)
    assert adopt(out, IMAGE, hashlib.sha256(JPEG).hexdigest()) is None
    assert (out / "conflicts/00001-cat.png").read_bytes() == PNG
    (out / "images/00001-cat.png").write_bytes(PNG)
    assert adopt(out, IMAGE, hashlib.sha256(PNG).hexdigest()) is not None


def test_images_may_lie_on_a_disk_of_their_own(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not ours is moved to `conflicts/`, whole, though no link reaches there."""

    def elsewhere(*_names: object, **_folders: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", elsewhere)
    for name in ("00001-cat.png", "00001-cat~2.png"):
        (out / "images/00001-cat.png").write_bytes(b"not ours")
        assert adopt(out, IMAGE) is None
        assert (out / "conflicts" / name).read_bytes() == b"not ours"
        assert not (out / "images/00001-cat.png").exists()


def test_a_symlink_under_the_final_name_is_moved_aside_unread(out: Path) -> None:
    """It may point at anything, also at a whole image of somebody else's."""
    (out / "target.png").write_bytes(PNG)
    (out / "images/00001-cat.png").symlink_to(out / "target.png")
    assert adopt(out, IMAGE) is None
    assert (out / "conflicts/00001-cat.png").is_symlink()
    assert (out / "target.png").read_bytes() == PNG


def test_of_two_names_one_is_adopted(out: Path) -> None:
    """An image has one file; another extension under the same stem is somebody else's."""
    (out / "images/00001-cat.png").write_bytes(PNG)
    (out / "images/00001-cat.jpg").write_bytes(JPEG)
    adopted = adopt(out, IMAGE)
    assert adopted is not None
    assert adopted.path == "images/00001-cat.png"
    assert (out / "conflicts/00001-cat.jpg").read_bytes() == JPEG


def test_nothing_there_is_nothing_adopted(out: Path) -> None:
    """Neither file nor folder; a folder of that name is no image either, and none is made."""
    assert adopt(out, IMAGE) is None
    assert adopt(out, PaidImage(20_000, "x", "u", "pets/cat", None)) is None
    (out / "images/00001-cat.png").mkdir()
    assert adopt(out, IMAGE) is None
    assert not (out / "images/2").exists()


def test_images_in_numbered_folders_are_found(out: Path) -> None:
    """From index 10,000 on they lie one deeper."""
    (out / "images/1/pets").mkdir(parents=True)
    (out / "images/1/pets/cat.png").write_bytes(PNG)
    adopted = adopt(out, PaidImage(10_000, "x", "u", "pets/cat", None))
    assert adopted is not None
    assert adopted.path == "images/1/pets/cat.png"


def test_a_stored_image_is_hashed_again(out: Path) -> None:
    """The hash and size of what lies there now."""
    (out / "images/00001-cat.png").write_bytes(PNG)
    assert rehash(out, "images/00001-cat.png") == (hashlib.sha256(PNG).hexdigest(), len(PNG))


@pytest.mark.parametrize(
    "path", ["images/none.png", "images/no/cat.png", "images/link.png", "images/way/a.png", "images"]
)
def test_what_is_no_plain_file_has_no_hash(out: Path, path: str) -> None:
    """Missing, a folder, or reached over a symlink: None, so that it counts as gone."""
    (out / "real").mkdir()
    (out / "real/a.png").write_bytes(PNG)
    (out / "images/link.png").symlink_to(out / "real/a.png")
    (out / "images/way").symlink_to(out / "real")
    assert rehash(out, path) is None


@pytest.mark.parametrize("call", ["remove_parts", "adopt", "rehash"])
def test_a_disk_that_cannot_be_read_is_a_disk_error(out: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """An image that can't be read now is not gone: nothing may be decided on it."""
    (out / "images/00001-cat.png").write_bytes(PNG)
    (out / "images/.1.part").write_bytes(PNG)

    def fails(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "unlink", fails)
    monkeypatch.setattr(os, "pread", fails)
    arguments = {"remove_parts": (out,), "adopt": (out, IMAGE), "rehash": (out, "images/00001-cat.png")}
    with pytest.raises(DiskError):
        getattr(recovery, call)(*arguments[call])


def test_a_folder_that_cannot_be_opened_is_a_disk_error(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO on the way is not the same as a missing folder."""

    def fails(_fd: int, _name: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(recovery, "open_below", fails)
    with pytest.raises(DiskError):
        rehash(out, "images/00001-cat.png")


def test_an_unusable_output_folder_is_said(tmp_path: Path) -> None:
    """Missing, or anybody's."""
    with pytest.raises(OutputError):
        rehash(tmp_path / "missing", "images/a.png")
    with pytest.raises(OutputError):
        remove_parts(tmp_path / "missing")
