"""What is said in several places: which word counts, and which trouble is told first."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from banana_batch.sandbox.config import Latency, SandboxConfig
from tests.integration.answers_peer import answer
from tests.integration.whole_runs import gateway

from .command import KEY, command, environment, here, live, tree, until
from .peer import serving

SLOW = SandboxConfig(plain_pictures=True, latency=Latency("fixed", 30.0))
TWO = "prompt,model\na,Nano Banana\nb,Nano Banana\n"
ELSEWHERE = {"BANANA_SANDBOX": "1", "BANANA_BASE_URL": "https://nowhere.invalid", "BANANA_ALLOW_HOST": "x.invalid"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "two.csv").write_text(TWO)
    return tmp_path


async def test_a_download_stays_where_the_batch_was_bought(folder: Path) -> None:
    """What the environment says is meant for what will be bought: it sends no download elsewhere, nor is it kept."""
    arguments = ("run", "two.csv", "-o", "out", "-c", "1", "--budget", "9", "--download-wait", "0", "--base-url")
    environ = environment(folder, TT_API_KEY=KEY)
    async with gateway() as peer:
        picture, peer.image = peer.image, lambda _nth: answer(503, b"")
        first = await asyncio.to_thread(command, *arguments, peer.url, cwd=folder, environ=environ)
        peer.image = picture
        fetched = await asyncio.to_thread(command, "download", "out", "--json", cwd=folder, environ=environ | ELSEWHERE)
        assert (first.code, fetched.code, fetched.summary["jobs"]["done"]) == (6, 0, 2), fetched.err
        assert fetched.summary["credits"]["budget"] == "9"
        assert (await asyncio.to_thread(command, *arguments, peer.url, cwd=folder, environ=environ)).code == 0
        assert len(peer.posts) == 2


ORDERS: dict[str, tuple[int, list[str], str]] = {
    "a folder that an unset variable names": (64, ["run", "two.csv", "-o", ""], "-o"),
    "a proxy that is none": (64, ["run", "two.csv", "--proxy", "socks5://127.0.0.1:1080"], "--proxy"),
    "a port that there is not": (64, ["run", "two.csv", "--base-url", "http://127.0.0.1:99999"], "--base-url"),
    "a host that is none": (64, ["run", "two.csv", "--allow-host", "https://cdn.example/x"], "--allow-host"),
    "a price of nothing": (64, ["run", "two.csv", "--sandbox", "--max-price", "0"], "--max-price"),
    "a log over the manifest": (64, ["run", "two.csv", "--sandbox", "--log-file", "./two.csv"], "--log-file"),
    "a log over the ledger": (64, ["run", "two.csv", "-o", "out", "--log-file", "out/state.sqlite3"], "--log-file"),
    "an option before a manifest that is missing": (64, ["run", "nowhere.csv", "--rpm", "0"], "--rpm"),
    "an option before a bad manifest": (64, ["run", "bad.csv", "--sandbox", "--in-doubt", "maybe"], "--in-doubt"),
    "a bad manifest before the batch's side": (65, ["run", "bad.csv", "-o", "out"], "bad.csv"),
    "a bad manifest before the batch's side, planned": (65, ["plan", "bad.csv", "-o", "out"], "bad.csv"),
    "the batch's side": (78, ["run", "two.csv", "-o", "out"], "--sandbox"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_nearest_slip_is_told_first(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, then the manifest, then the batch; each before anything is written or sent."""
    (folder / "bad.csv").write_text("prompt,image_size\na,1k\n")
    assert command("run", "two.csv", "--sandbox", "-o", "out", "-q", cwd=folder).code == 0
    before = _kept(folder)
    monkeypatch.chdir(folder)
    code, arguments, told = ORDERS[name]
    ended = here(*arguments)
    assert (ended.code, told in ended.err) == (code, True), ended.err
    assert _kept(folder) == before


def _kept(folder: Path) -> set[str]:
    """Return what there is but for SQLite's own files, which a look may leave."""
    return {name for name in tree(folder) if not name.endswith(("-wal", "-shm"))}


def test_quiet_or_verbose_is_the_nearest_ones_word(folder: Path) -> None:
    """A job file that is verbose, run with -q from cron, is quiet; both on one line contradict each other."""
    (folder / "night.toml").write_text('[run]\nverbose = true\n[[jobs]]\nprompt = "a"\n')
    ended = command("run", "night.toml", "--sandbox", "-o", "out", "-q", cwd=folder)
    assert (ended.code, ended.err) == (0, "")


def test_a_setting_that_is_none_is_not_repeated(folder: Path) -> None:
    """A key under a name of one's own has no place on a screen."""
    (folder / "night.toml").write_text(f'[run]\napi_key = "{KEY}"\n[[jobs]]\nprompt = "a"\n')
    ended = command("plan", "night.toml", cwd=folder)
    assert (ended.code, "api_key: no such key" in ended.err, KEY in ended.err) == (65, True, False)


def test_a_plan_refuses_what_the_run_would(folder: Path) -> None:
    """A state file put back from a backup: `plan` finds it as `run` does, and leaves all as it was."""
    with serving() as peer:
        assert peer.run("two.csv", "-o", "out", "--limit", "1", cwd=folder).code == 0
        shutil.copy(folder / "out" / "state.sqlite3", folder / "old")
        assert peer.run("two.csv", "-o", "out", cwd=folder).code == 0
        shutil.copy(folder / "old", folder / "out" / "state.sqlite3")
        before = tree(folder)
        planned = command("plan", "two.csv", "-o", "out", "--base-url", peer.base_url, cwd=folder)
        assert (planned.code, tree(folder)) == (65, before), planned.out
        assert peer.run("two.csv", "-o", "out", cwd=folder).code == 65
        assert peer.calls == 2


def test_a_plan_tells_of_a_run_that_is_live(folder: Path) -> None:
    """`running` of its object is what `status` says."""
    with serving(SLOW) as peer, live("run", "two.csv", "--base-url", peer.base_url, cwd=folder, TT_API_KEY=KEY):
        until(lambda: peer.calls)
        planned = command("plan", "two.csv", "--json", "--base-url", peer.base_url, cwd=folder)
        assert (planned.code, planned.object["running"]) == (0, True), planned.err


def test_a_folder_that_is_gone_is_told(folder: Path) -> None:
    """A shell that stands in a folder that was deleted: 66, and no traceback."""
    gone = folder / "gone"
    gone.mkdir()
    for arguments in ("run two.csv --sandbox", "status out", "ledger out", "redo out --failed", "verify out"):
        line = f'rmdir "{gone}"; exec {sys.executable} -m banana_batch {arguments}; '
        gone.mkdir(exist_ok=True)
        ended = subprocess.run(
            ["/bin/sh", "-c", line], cwd=gone, env=environment(folder), capture_output=True, text=True, check=False,
            timeout=60,
        )  # fmt: skip
        assert (ended.returncode, "was deleted" in ended.stderr) == (66, True), ended.stderr


def test_a_manifest_from_a_pipe_may_grow(folder: Path) -> None:
    """`<(...)` can be read but once: a batch that is there already is planned from it as a new one is."""
    arguments = "-m banana_batch run /dev/stdin --format csv --sandbox -o out -q"
    for rows in (TWO, TWO + "c,Nano Banana\n"):
        ended = subprocess.run(
            ["/bin/sh", "-c", f"printf '%s' '{rows}' | {sys.executable} {arguments}"], cwd=folder,
            env=environment(folder), capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, "")
    assert command("status", "out", "--json", cwd=folder).summary["jobs"]["done"] == 3


def test_an_unreadable_standard_input_is_told(folder: Path) -> None:
    """Opened for writing alone: 66, and no bug."""
    ended = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m banana_batch run - --format csv --sandbox -o out 0>/dev/null"],
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, "bug" in ended.stderr) == (66, False), ended.stderr
