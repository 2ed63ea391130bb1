"""Three in the morning: wrong folders, missing files, no environment, descriptors that are closed or stuck."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from banana_batch.sandbox.config import Latency, SandboxConfig
from banana_batch.sandbox.faults import Canned, Fault, FaultKind

from .command import ARGV, KEY, PACKAGE, charges, command, environment, here, live, results, tree, until
from .peer import serving

TWO = "prompt,model\na,Nano Banana\nb,Nano Banana\n"
# A full disk, as Linux plays it.
FULL = ">/dev/full"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "two.csv").write_text(TWO)
    return tmp_path


def test_images_without_a_state_are_not_paid_for_again(folder: Path) -> None:
    """A folder with images whose state file is gone: refused with 65, nothing sent, nothing touched."""
    images = folder / "out" / "images"
    images.mkdir(parents=True)
    (images / "00001-a.png").write_bytes(b"an old picture")
    before = tree(folder)
    ended = command("run", "two.csv", "--sandbox", "-o", "out", cwd=folder)
    assert ended.code == 65
    assert "state.sqlite3" in ended.err
    assert "→" in ended.err
    assert tree(folder) == before


def test_a_batch_stays_on_its_side(folder: Path) -> None:
    """A sandbox batch is never continued with real money, nor a real one in the sandbox: 78, nothing sent."""
    with serving() as peer:
        assert command("run", "two.csv", "--sandbox", "-o", "out", "-q", cwd=folder).code == 0
        to_live = peer.run("two.csv", "-o", "out", cwd=folder)
        assert to_live.code == 78
        assert "--sandbox" in to_live.err
        assert peer.calls == 0
        assert peer.run("two.csv", "-o", "live", cwd=folder).code == 0
        to_sandbox = command("run", "two.csv", "--sandbox", "-o", "live", cwd=folder)
        assert to_sandbox.code == 78
        assert peer.calls == 2
    assert charges(folder / "live") == []


def test_a_rehearsal_against_a_gateway_here_is_no_real_batch(folder: Path) -> None:
    """What a sandbox of one's own sold is never taken for bought images: 78, nothing sent. Any port here will do."""
    with serving() as peer:
        assert peer.run("two.csv", "-o", "out", "--limit", "1", cwd=folder).code == 0
        elsewhere = ("run", "two.csv", "-o", "out", "--base-url", "https://nowhere.invalid", "--give-up-after", "0")
        refused = command(*elsewhere, cwd=folder, TT_API_KEY=KEY)
        assert refused.code == 78
        assert "--base-url http://127.0.0.1" in refused.err
    with serving() as another:
        assert another.run("two.csv", "-o", "out", cwd=folder).code == 0
        assert another.calls == 1


SLIPS: dict[str, tuple[int, list[str]]] = {
    "no arguments for run": (64, ["run"]),
    "an option that does not exist": (64, ["run", "two.csv", "--sandbox", "--turbo"]),
    "a command that does not exist": (64, ["generate", "two.csv"]),
    "a number that is none": (64, ["run", "two.csv", "--sandbox", "-c", "many"]),
    "a duration that is none": (64, ["run", "two.csv", "--sandbox", "--max-duration", "soon"]),
    "a table that is to be read as prompts": (64, ["run", "two.csv", "--sandbox", "--format", "txt"]),
    "quiet and loud": (64, ["run", "two.csv", "--sandbox", "-q", "-v"]),
    "several manifests and no folder": (64, ["run", "two.csv", "two.csv", "--sandbox"]),
    "a folder for a manifest": (66, ["run", "folder", "--sandbox", "-o", "out"]),
    "bytes that are no text": (65, ["run", "bytes.csv", "--sandbox"]),
    "an empty manifest": (65, ["run", "empty.csv", "--sandbox"]),
    "a header and no prompt": (65, ["run", "header.csv", "--sandbox"]),
    "status of nothing": (66, ["status", "nowhere"]),
    "ledger of a manifest that never ran": (66, ["ledger", "two.csv"]),
    "download of a folder that is no batch": (66, ["download", "folder"]),
    "a file where the folder should be": (73, ["run", "two.csv", "--sandbox", "-o", "header.csv"]),
    "an environment variable that is wrong": (78, ["run", "two.csv", "--sandbox"]),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_of_the_hand_is_told_and_leaves_no_trace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the table, a message, no traceback, and the folder as it was."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "two.csv").write_text(TWO)
    (tmp_path / "header.csv").write_text("prompt,model\n")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "bytes.csv").write_bytes(b"prompt\n\xff\xfe\x00\x81\n")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    if "variable" in name:
        monkeypatch.setenv("BANANA_RPM", "fast")
    ended = here(*SLIPS[name][1])
    assert ended.code == SLIPS[name][0], ended.err
    assert ended.err.strip()
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert tree(tmp_path) == before


def test_no_environment_at_all_is_enough(folder: Path) -> None:
    """As under cron and worse: no PATH, no HOME, no language, working folder /; umlauts in names and prompts."""
    (folder / "größe.csv").write_text("prompt,model\nein Äpfelchen,Nano Banana\n")
    bare = {"PYTHONPATH": str(PACKAGE.parent)}
    ended = command("run", folder / "größe.csv", "--sandbox", "--json", cwd=Path("/"), environ=bare)
    assert ended.code == 0, ended.err
    assert ended.summary["out"] == str(folder / "outputs" / "größe-sandbox")
    assert results(folder / "outputs" / "größe-sandbox")[0]["prompt"] == "ein Äpfelchen"
    status = command("status", folder / "größe.csv", "--json", cwd=Path("/"), environ=bare)
    assert status.summary["jobs"]["done"] == 1


def _shell(line: str, folder: Path) -> "subprocess.CompletedProcess[bytes]":
    words = " ".join(ARGV)
    return subprocess.run(
        ["/bin/sh", "-c", f"{words} {line}"], cwd=folder, env=environment(folder), capture_output=True, check=False,
        timeout=60,
    )  # fmt: skip


def test_closed_descriptors_do_no_harm(folder: Path) -> None:
    """Started with input, output and error closed, a run is done, and no word is printed into a file of the batch."""
    assert _shell("run two.csv --sandbox -o out -v <&- >&- 2>&-", folder).returncode == 0
    assert [row["state"] for row in results(folder / "out")] == ["done", "done"]
    for line in (folder / "out" / "run.log").read_text().splitlines():
        json.loads(line)
    assert json.loads((folder / "out" / ".lock").read_text().splitlines()[0])["pid"]
    for arguments in ("export out --format csv >&-", "status out --json <&- >&-", "ledger out 2>&-"):
        ended = _shell(arguments, folder)
        assert (ended.returncode, ended.stderr) == (0, b""), arguments


@pytest.mark.parametrize(
    "arguments",
    [
        "export out --format csv",
        "status out --json",
        "status out",
        "ledger out --json",
        "run two.csv --sandbox -o out --json -q",
        "plan two.csv --sandbox -o out",
        "verify out",
    ],
)
def test_a_full_disk_behind_standard_output_is_said(folder: Path, arguments: str) -> None:
    """A report that is cut short is no success: one message, 74."""
    assert command("run", "two.csv", "--sandbox", "-o", "out", "-q", cwd=folder).code == 0
    ended = _shell(f"{arguments} {FULL}", folder)
    assert ended.returncode == 74
    assert ended.stderr == b"banana-batch: standard output: can't be written: No space left on device\n"


def test_a_run_whose_words_are_lost_ends_as_it_went(folder: Path) -> None:
    """The code says it all, and what it was to start at its end is started."""
    ended = _shell(f"run two.csv --sandbox -o out --on-finish 'cat > told' {FULL}", folder)
    assert ended.returncode == 0
    told = (folder / "told").read_text()
    ended = _shell(f"run two.csv --sandbox -o out --on-finish 'cat > again' --json -q {FULL}", folder)
    assert ended.returncode == 74
    assert json.loads((folder / "again").read_text())["jobs"] == json.loads(told)["jobs"]


def test_a_report_waits_for_a_reader_that_is_slow(folder: Path) -> None:
    """A pipe that does not wait gets all of it."""
    (folder / "many.txt").write_text("".join(f"a cat, number {number}\n" for number in range(1500)))
    assert command("run", "many.txt", "--sandbox", "-o", "out", "-q", "-y", "--limit", "1", cwd=folder).code == 0
    arguments = [*ARGV, "status", "out", "--jobs"]
    whole = subprocess.run(arguments, cwd=folder, capture_output=True, check=True, timeout=60).stdout
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with subprocess.Popen(arguments, cwd=folder, stdout=writing) as printing, open(reading, "rb") as reader:
        until(lambda: not select.select((), (writing,), (), 0)[1])
        os.close(writing)
        assert reader.read() == whole
    assert printing.returncode == 0


def _stuck_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    for size in (4096, 1):
        try:
            while os.write(writing, b"x" * size):
                pass
        except BlockingIOError:
            pass
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.parametrize("stuck", ["stdout", "stderr"])
def test_a_reader_that_does_not_read_holds_up_nothing(folder: Path, stuck: str) -> None:
    """With an output that takes not one byte, every image is bought, stored and listed all the same."""
    reading, writing = _stuck_pipe()
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stuck: writing}
    process = subprocess.Popen(
        [*ARGV, "run", "two.csv", "--sandbox", "-o", "out", "-v"], cwd=folder, env=environment(folder),
        stdin=subprocess.DEVNULL, stdout=streams["stdout"], stderr=streams["stderr"],
    )  # fmt: skip
    try:
        os.close(writing)
        until((folder / "out" / "results.jsonl").exists)
        assert [row["state"] for row in results(folder / "out")] == ["done", "done"]
        os.set_blocking(reading, False)
        until(lambda: _drained(reading) and process.poll() is not None)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(60)
        os.close(reading)


def _drained(descriptor: int) -> bool:
    try:
        while os.read(descriptor, 1 << 16):
            pass
    except BlockingIOError:
        pass
    return True


def test_a_repair_prints_one_object(folder: Path) -> None:
    """`verify --repair --json` fetches what is gone, free, and prints one JSON object like any other command."""
    assert command("run", "two.csv", "--sandbox", "-o", "out", "-q", cwd=folder).code == 0
    (folder / "out" / results(folder / "out")[0]["image"]).unlink()
    ended = command("verify", "out", "--repair", "--json", cwd=folder)
    assert (ended.code, ended.summary["jobs"]["done"]) == (0, 2)
    assert len(charges(folder / "out")) == 2


def test_the_key_is_nowhere(folder: Path) -> None:
    """After a run with a key, refused or taken, no file of the batch and no output holds it."""
    key = folder / "key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    with serving() as peer:
        ended = command("run", "two.csv", "-o", "out", "-v", "--key-file", key, "--base-url", peer.base_url, cwd=folder)
    assert ended.code == 0, ended.err
    assert KEY not in ended.out + ended.err
    for name in tree(folder / "out"):
        assert os.path.isdir(name) or KEY.encode() not in Path(name).read_bytes()


def test_the_installed_command_is_the_same_program(folder: Path) -> None:
    """`banana-batch` and `python -m banana_batch` print the same version."""
    script = shutil.which("banana-batch", path=str(Path(sys.executable).parent))
    said: Callable[[str], bytes] = lambda line: subprocess.check_output(line, shell=True, env=environment(folder))  # noqa: E731
    assert script is None or said(f"{script} --version") == said(f"{' '.join(ARGV)} --version")


@pytest.mark.parametrize("place", ["environment", "job file"])
def test_a_dry_run_may_be_ordered_anywhere(folder: Path, place: str) -> None:
    """As any option of `run`: nothing is sent and nothing is written."""
    (folder / "night.toml").write_text('[run]\ndry_run = true\n[[jobs]]\nprompt = "a"\n')
    before = tree(folder)
    with serving() as peer:
        said = {"BANANA_DRY_RUN": "1"} if place == "environment" else {}
        manifest = "two.csv" if said else "night.toml"
        environ = environment(folder, TT_API_KEY=KEY, **said)
        ended = command("run", manifest, "--base-url", peer.base_url, cwd=folder, environ=environ)
        assert (ended.code, peer.calls) == (0, 0)
    assert "Nothing was sent" in ended.out
    assert tree(folder) == before


def test_format_and_json_may_be_said_in_the_environment(folder: Path) -> None:
    """Both are needed before there are settings: to read the manifest, and to tell that it can't be read."""
    (folder / "two.csv").rename(folder / "two")
    environ = environment(folder, BANANA_FORMAT="csv", BANANA_JSON="yes")
    ended = command("plan", "two", "--sandbox", cwd=folder, environ=environ)
    assert (ended.code, json.loads(ended.out)["plan"]["new"]) == (0, 2)
    assert json.loads(command("plan", "nowhere", "--sandbox", cwd=folder, environ=environ).out)["exit"] == 66
    ended = command("plan", "two", "--sandbox", cwd=folder, environ=environ | {"BANANA_FORMAT": "pdf"})
    assert (ended.code, json.loads(ended.out)["exit"]) == (78, 78)


def test_a_plan_leaves_an_old_batch_as_it_was(folder: Path) -> None:
    """Not even a file of SQLite's own appears; what `run` would refuse before its first request, it refuses too."""
    assert command("run", "two.csv", "--sandbox", "-o", "out", "-q", cwd=folder).code == 0
    before = tree(folder)
    assert command("plan", "two.csv", "--sandbox", "-o", "out", cwd=folder).code == 0
    assert tree(folder) == before
    assert command("plan", "two.csv", "-o", "out", cwd=folder).code == 78
    assert tree(folder) == before


def test_damage_that_shows_late_is_damage(folder: Path) -> None:
    """A page overwritten in the middle: each command that meets it ends with 65, none with a bug, none sends."""
    assert command("run", "two.csv", "--sandbox", "-o", "out", "-q", cwd=folder).code == 0
    state = folder / "out" / "state.sqlite3"
    content = bytearray(state.read_bytes())
    content[5_000:9_000] = b"\xff" * 4_000
    state.write_bytes(content)
    for arguments in (["status"], ["status", "--json"], ["ledger", "--json"], ["verify", "--json"], ["download"]):
        ended = command(arguments[0], "out", *arguments[1:], cwd=folder)
        assert ended.code == 65, (arguments, ended.err)
        assert "damaged" in ended.err
        assert "→" in ended.err


def test_an_empty_url_is_no_answer(folder: Path) -> None:
    """`--image-url "$URL"` with no such variable must not drop the job."""
    with serving(canned=[Fault(FaultKind.TRUNCATED_JSON), None]) as peer:
        assert peer.run("two.csv", "-o", "out", "-c", "1", cwd=folder).code == 4
    refused = command("resolve", "out", "--all", "--image-url", "", cwd=folder)
    assert refused.code == 64
    assert command("status", "out", "--json", cwd=folder).object["jobs"]["in_doubt"] == 1


def test_no_try_more_where_none_is_wanted(folder: Path) -> None:
    """`--retries 0` holds for every refusal, also for those that the table gives one more."""
    (folder / "one.csv").write_text("prompt\na\n")
    with serving(canned=[Canned(200, {}, b'{"status": "FAILED", "message": "weird", "data": {}}')] * 9) as peer:
        assert peer.run("one.csv", "-o", "out", "--retries", "0", cwd=folder).code == 3
        assert peer.calls == 1


def test_a_bad_setting_is_told_with_its_place(folder: Path) -> None:
    """The job file it stands in, or the option; never a name that is none."""
    (folder / "night.toml").write_text('[run]\nconcurrency = 0\n[[jobs]]\nprompt = "a"\n')
    assert "night.toml:2: run.concurrency: 0 → greater than or equal to 1" in here("plan", folder / "night.toml").err
    assert "--quiet: with --verbose" in here("plan", folder / "two.csv", "-q", "-v").err


def test_trouble_of_earlier_runs_is_told_though_quiet(folder: Path) -> None:
    """Cron mails what -q prints: a night that ends with doubts of last night's tells of them."""
    with serving(canned=[Fault(FaultKind.DROP_AFTER_CHARGE)]) as peer:
        assert peer.run("two.csv", "-o", "out", "-c", "1", cwd=folder).code == 4
        again = peer.run("two.csv", "-o", "out", "-q", cwd=folder)
    assert (again.code, "banana-batch resolve " in again.err) == (4, True), again.err


@pytest.mark.parametrize(("moved", "at"), [("out", 2), ("out/images", 2), ("out/images", 9)])
def test_a_folder_that_goes_away_stops_what_would_be_paid(folder: Path, moved: str, at: int) -> None:
    """Moved while the run is live: the next run would not find its ledger, or its images, so nothing more is bought, and
    nothing is called done: 74. Put back under its name, nothing is bought twice."""
    (folder / "rows.csv").write_text("prompt,model\n" + "".join(f"row {number},Nano Banana\n" for number in range(9)))
    arguments = ("run", "rows.csv", "-o", "out", "-c", "1")
    with serving(SandboxConfig(plain_pictures=True, latency=Latency("fixed", 0.3))) as peer:
        with live(*arguments, "--base-url", peer.base_url, cwd=folder, TT_API_KEY=KEY) as run:
            until(lambda: peer.calls == at)
            (folder / moved).rename(folder / "away")
            ended = run.end()
        assert (ended.code, "moved" in ended.err, len(peer.charges) <= at + 1) == (74, True, True), ended.err
        (folder / "away").rename(folder / moved)
        assert peer.run(*arguments[1:], cwd=folder).code == 0
        assert {charge.prompt for charge in peer.charges} == {f"row {number}" for number in range(9)}
        assert len(peer.charges) == 9
