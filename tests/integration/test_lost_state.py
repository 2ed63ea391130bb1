"""A state file that fell behind what was bought is refused with 65 before anything is sent; a torn end is not."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from banana_batch.errors import Exit, ManifestError, SettingsError
from banana_batch.images.names import FOLDER_SIZE
from banana_batch.store import database, evidence
from tests.acceptance.command import command
from tests.integration.whole_runs import Gateway, gateway, run_batch, scratch
from tests.torture import corrupt
from tests.torture.corrupt import LOG, STATE, WAL, Snapshot, would_send


@pytest.fixture(scope="module")
def taken() -> Iterator[dict[str, Snapshot]]:
    """Give batches as a kill leaves them."""
    with scratch() as folder:
        yield {snapshot.name: snapshot for snapshot in asyncio.run(corrupt.snapshots(folder))}


@pytest.fixture
def killed(taken: dict[str, Snapshot], out: Path) -> tuple[Path, frozenset[str]]:
    """Give a copy of a batch that was killed late in its run, and the jobs that had left."""
    shutil.copytree(taken["late"].folder, out)
    return out, taken["late"].sent


def without_log(out: Path) -> None:
    """Take the log away."""
    (out / LOG).unlink()


def without_images(out: Path) -> None:
    """Take the images away."""
    shutil.rmtree(out / "images")


def without_wal(out: Path) -> None:
    """Take what was not yet in the file away."""
    (out / WAL).unlink()


def flipped(out: Path) -> None:
    """Turn one bit in the middle of the `-wal`: SQLite passes over all that follows, in silence."""
    data = bytearray((out / WAL).read_bytes())
    data[len(data) // 2] ^= 1
    (out / WAL).write_bytes(data)


def headless(out: Path) -> None:
    """Turn one bit in the header of the `-wal`: SQLite passes over all of it."""
    data = bytearray((out / WAL).read_bytes())
    data[17] ^= 1
    (out / WAL).write_bytes(data)


def into_the_file(out: Path, *statements: str) -> None:
    """Bring the `-wal` into the file and change it, with its own rules switched off meanwhile."""
    with closing(sqlite3.connect(out / STATE, isolation_level=None)) as db:
        rules = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in rules:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
        for _, rule in rules:
            db.execute(rule)


def renamed(out: Path) -> None:
    """Change one letter of a bought job's id, in its row and not in the index: it would be a new job."""
    into_the_file(out)
    data = (out / STATE).read_bytes()
    row = data.index(b"job 10done")
    (out / STATE).write_bytes(data[:row] + b"joc" + data[row + 3 :])


def other_sums(out: Path) -> None:
    """Change what was spent."""
    into_the_file(out, "UPDATE runs SET spent = spent - 1")


def stray(out: Path) -> None:
    """Let a job name a request that is not there."""
    into_the_file(out, "UPDATE jobs SET attempt = 9999 WHERE job = 1")


@pytest.mark.parametrize(
    ("damages", "says"),
    [
        ([flipped, without_log, without_images], "commits lie behind damage"),
        ([headless, without_log, without_images], "commits lie behind damage"),
        ([without_wal, without_log], "older than its images"),
        ([without_wal, without_images], "older than run.log"),
        ([renamed, without_log, without_images], "damaged"),
        ([other_sums], "its sums are not those"),
        ([stray], "do not fit together"),
    ],
    ids=["flip", "header", "images", "log", "index", "sums", "keys"],
)
def test_a_state_that_forgot_what_it_bought_is_refused(
    killed: tuple[Path, frozenset[str]], damages: list[Callable[[Path], None]], says: str
) -> None:
    """Any one piece of evidence is enough; the message says what to put back and how to go on."""
    folder, _ = killed
    for damage in damages:
        damage(folder / "out")
    with pytest.raises(ManifestError, match=says) as refused:
        would_send(folder)
    assert refused.value.hint
    assert "put" in refused.value.hint


def test_names_that_are_no_text_are_damage(killed: tuple[Path, frozenset[str]]) -> None:
    """A schema whose bytes are no UTF-8 is refused like any other damage, without a traceback."""
    folder, _ = killed
    into_the_file(folder / "out")
    data = (folder / "out" / STATE).read_bytes()
    (folder / "out" / STATE).write_bytes(data.replace(b"credits are stated once", b"credits are st\xc3ted once", 1))
    with pytest.raises(ManifestError, match="damaged"):
        would_send(folder)


def test_what_a_kill_leaves_is_no_damage(killed: tuple[Path, frozenset[str]]) -> None:
    """The copy itself goes on; nothing that had left is sent again."""
    folder, sent = killed
    again = would_send(folder)
    assert again
    assert not again & sent


@pytest.mark.parametrize("cut", [1, 24, 4000, 4121])
def test_a_torn_last_commit_is_no_damage(killed: tuple[Path, frozenset[str]], cut: int) -> None:
    """The last frames may be there in part after a power cut: without other evidence the batch goes on."""
    folder, _ = killed
    data = (folder / "out" / WAL).read_bytes()
    (folder / "out" / WAL).write_bytes(data[:-cut] + bytes(cut))
    assert evidence.lost_commits(folder / "out" / WAL) == 0


async def test_starting_over_as_told_is_no_damage(out: Path) -> None:
    """State and images moved away by the user's own hand: a new batch begins, and its log is its own."""
    async with gateway() as peer:
        await run_batch(out, peer.url, ["a", "b"])
        (out / STATE).unlink()
        shutil.rmtree(out / "images")
        anew = await run_batch(out, peer.url, ["a", "b"], limit=1)
        assert dict(anew.jobs) == {"done": 1, "pending": 1}
        done = await run_batch(out, peer.url, ["a", "b"])
    assert (dict(done.jobs), len(peer.posts)) == ({"done": 2}, 4)
    assert (out / f"{LOG}.old").exists()


async def put_back(out: Path, peer: Gateway) -> None:
    """Buy a, then b and c; put the state of between back."""
    await run_batch(out, peer.url, ["a", "b", "c"], limit=1)
    shutil.copy(out / STATE, out.parent / "backup")
    await run_batch(out, peer.url, ["a", "b", "c"])
    shutil.copy(out.parent / "backup", out / STATE)


async def test_an_older_copy_put_back_is_refused(out: Path) -> None:
    """A backup of the state from before the last run would buy its images again: 65."""
    async with gateway() as peer:
        await put_back(out, peer)
        with pytest.raises(ManifestError, match=r"older than run\.log"):
            await run_batch(out, peer.url, ["a", "b", "c"])
    assert sorted(peer.posts) == ["a", "b", "c"]


async def test_an_older_copy_put_back_is_refused_without_its_log_too(out: Path) -> None:
    """The log was rotated away, or lies elsewhere: the images tell. No command touches such a batch."""
    async with gateway() as peer:
        await put_back(out, peer)
        (out / LOG).rename(out / f"{LOG}.1")
        with pytest.raises(ManifestError, match="older than its images"):
            await run_batch(out, peer.url, ["a", "b", "c"])
    assert sorted(peer.posts) == ["a", "b", "c"]
    before = (out / "results.jsonl").read_bytes()
    for words in (["download"], ["redo", "--failed"], ["resolve", "--all", "--resend"], ["verify"]):
        ended = await asyncio.to_thread(command, words[0], out, *words[1:], cwd=out.parent)
        assert (ended.code, "older than its images" in ended.err) == (65, True), ended.err
    assert (out / "results.jsonl").read_bytes() == before


async def test_a_batch_with_its_log_elsewhere_goes_on(out: Path) -> None:
    """`--log-file`: no log in the folder is no sign of anything."""
    async with gateway() as peer:
        for limit in (1, 1, None):
            left = await run_batch(out, peer.url, ["a", "b", "c"], limit=limit, log_file=str(out.parent / "night.log"))
    assert (left.exit, sorted(peer.posts)) == (Exit.DONE, ["a", "b", "c"])


async def test_a_disk_that_cannot_hold_a_state_durably_is_left_as_it_was(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have no write-ahead log. That shows once the plan is whole, before anything is sent."""

    def refuses(_db: sqlite3.Connection, folder: Path) -> None:
        raise SettingsError(f"{folder}: this file system can't hold a durable state file", "choose another")

    async with gateway() as peer:
        with monkeypatch.context() as patched:
            patched.setattr(database, "make_durable", refuses)
            with pytest.raises(SettingsError, match="can't hold a durable state file"):
                await run_batch(out, peer.url, ["a"])
            assert not out.exists()
            out.mkdir(0o700)
            (out / LOG).write_text('{"event":"sent","attempt":3}\n')
            with pytest.raises(SettingsError):
                await run_batch(out, peer.url, ["a"])
        assert (list(peer.posts), [path.name for path in out.iterdir()]) == ([], [LOG])
        assert (await run_batch(out, peer.url, ["a"])).exit is Exit.DONE


def test_folders_of_images_are_counted_alike() -> None:
    """The state's evidence looks where images lie."""
    assert evidence._FOLDER_SIZE == FOLDER_SIZE


def test_damaged_files_buy_nothing_again() -> None:
    """A small share of `make torture`: 60 damaged files, none of which leads to a second payment."""
    assert corrupt.run_cases(range(60)).violations == []
