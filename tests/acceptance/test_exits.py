"""Every exit code, each by what makes it, on standard error in words and with `--json` in figures."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from banana_batch.errors import REASONS, Exit
from banana_batch.sandbox.config import Latency, SandboxConfig
from banana_batch.sandbox.faults import Canned, Fault, FaultKind

from .command import KEY, Ended, command, live, results, until
from .peer import refusal, serving, sold

CHEAP = "prompt,model\na,Nano Banana\nb,Nano Banana\nc,Nano Banana\n"
SLOW = SandboxConfig(plain_pictures=True, latency=Latency("fixed", 30.0))
UNUSED_PORT = 9

Scenario = Callable[[Path], Ended]


def _manifest(folder: Path, text: str = CHEAP) -> Path:
    path = folder / "prompts.csv"
    path.write_text(text)
    return path


def _done(folder: Path) -> Ended:
    with serving() as peer:
        return peer.run(_manifest(folder), "--json", cwd=folder)


def _failed(folder: Path) -> Ended:
    with serving(canned=[refusal(400, "banned word")]) as peer:
        return peer.run(_manifest(folder), "--json", cwd=folder)


def _in_doubt(folder: Path) -> Ended:
    with serving(canned=[None, Fault(FaultKind.DROP_AFTER_CHARGE)]) as peer:
        return peer.run(_manifest(folder), "--json", "-c", "1", cwd=folder)


def _budget(folder: Path) -> Ended:
    with serving() as peer:
        return peer.run(_manifest(folder), "--json", "--budget", "5", cwd=folder)


def _not_fetched(folder: Path) -> Ended:
    with serving(canned=[Fault(FaultKind.IMAGE_404)]) as peer:
        return peer.run(_manifest(folder), "--json", "--download-wait", "0", cwd=folder)


def _stopped(folder: Path) -> Ended:
    with serving(SandboxConfig(plain_pictures=True, latency=Latency("fixed", 0.5))) as peer:
        return peer.run(_manifest(folder), "--json", "-c", "1", "--max-duration", "0.7", cwd=folder)


def _out_of_credits(folder: Path) -> Ended:
    with serving(SandboxConfig(plain_pictures=True, balance=4_000_000)) as peer:
        return peer.run(_manifest(folder), "--json", cwd=folder)


def _usage(folder: Path) -> Ended:
    return command("run", _manifest(folder), "--json", "--base-url", "http://example.com", cwd=folder, TT_API_KEY=KEY)


def _bad_input(folder: Path) -> Ended:
    return command("run", _manifest(folder, "prompt,image_size\na,1k\n"), "--json", "--sandbox", cwd=folder)


def _no_input(folder: Path) -> Ended:
    return command("run", "missing.csv", "--json", "--sandbox", cwd=folder)


def _unavailable(folder: Path) -> Ended:
    dead = f"http://127.0.0.1:{UNUSED_PORT}"
    return command(
        "run", _manifest(folder), "--json", "--base-url", dead, "--give-up-after", "1", cwd=folder, TT_API_KEY=KEY
    )


def _no_output(folder: Path) -> Ended:
    (folder / "taken").write_text("a file, not a folder")
    return command("run", _manifest(folder), "--json", "--sandbox", "-o", "taken/out", cwd=folder)


def _locked(folder: Path) -> Ended:
    with serving(SLOW) as peer:
        arguments = ("run", _manifest(folder), "--json", "--base-url", peer.base_url)
        with live(*arguments, cwd=folder, TT_API_KEY=KEY) as first:
            until(lambda: peer.calls)
            ended = command(*arguments, cwd=folder, TT_API_KEY=KEY)
            assert f"pid {first.process.pid} on {os.uname().nodename}" in ended.err
            assert peer.calls <= 3
    return ended


def _protocol(folder: Path) -> Ended:
    with serving(canned=[Canned(302, {"Location": "/portal"})]) as peer:
        return peer.run(_manifest(folder), "--json", "-c", "1", cwd=folder)


def _forbidden_url(folder: Path) -> Ended:
    with serving(canned=[sold(f"http://127.0.0.2:{UNUSED_PORT}/x.png")]) as peer:
        return peer.run(_manifest(folder), "--json", "-c", "1", cwd=folder)


def _no_key(folder: Path) -> Ended:
    return command("run", _manifest(folder), "--json", cwd=folder)


def _key_refused(folder: Path) -> Ended:
    with serving(canned=[refusal(401, f"bad key {KEY}")]) as peer:
        return peer.run(_manifest(folder), "--json", "-c", "1", cwd=folder)


def _open_key_file(folder: Path) -> Ended:
    key = folder / "key"
    key.write_text(KEY)
    key.chmod(0o644)
    return command("run", _manifest(folder), "--json", "--key-file", key, cwd=folder)


def _wrong_gateway(folder: Path) -> Ended:
    with serving(canned=[refusal(404)]) as peer:
        return peer.run(_manifest(folder), "--json", "-c", "1", cwd=folder)


def _twice(folder: Path, number: signal.Signals) -> Ended:
    with serving(SLOW) as peer:
        arguments = ("run", _manifest(folder), "--json", "--base-url", peer.base_url)
        with live(*arguments, cwd=folder, TT_API_KEY=KEY) as run:
            until(lambda: len(peer.charges) == 3)
            run.signal(number)
            until(lambda: b'"drain"' in (folder / "outputs" / "prompts" / "run.log").read_bytes())
            if number is signal.SIGINT:
                time.sleep(1.1)  # the rule itself: a second Ctrl-C counts one second after the first
            run.signal(number)
            ended = run.end()
            assert ended.took_s < 2
            assert len(peer.charges) == 3
            return ended


SCENARIOS: dict[str, tuple[Exit, dict[str, int], Scenario]] = {
    "all is done": (Exit.DONE, {"done": 3}, _done),
    "a row is refused for good": (Exit.FAILED, {"done": 2, "failed": 1}, _failed),
    "an answer is lost": (Exit.IN_DOUBT, {"done": 2, "in_doubt": 1}, _in_doubt),
    "the budget is reached": (Exit.BUDGET, {"done": 2, "pending": 1}, _budget),
    "an image can't be had yet": (Exit.NOT_FETCHED, {"done": 2, "paid": 1}, _not_fetched),
    "the time is over": (Exit.STOPPED, {"done": 1, "pending": 2}, _stopped),
    "the account is empty": (Exit.OUT_OF_CREDITS, {"done": 2, "pending": 1}, _out_of_credits),
    "http to another machine": (Exit.USAGE, {}, _usage),
    "a bad row": (Exit.BAD_INPUT, {}, _bad_input),
    "no such manifest": (Exit.NO_INPUT, {}, _no_input),
    "nobody answers": (Exit.UNAVAILABLE, {"pending": 3}, _unavailable),
    "a file in the way": (Exit.NO_OUTPUT, {}, _no_output),
    "another run holds the batch": (Exit.LOCKED, {}, _locked),
    "a captive portal": (Exit.PROTOCOL, {"pending": 3}, _protocol),
    "an image elsewhere on this machine": (Exit.PROTOCOL, {"paid": 1}, _forbidden_url),
    "no key": (Exit.KEY, {"pending": 3}, _no_key),
    "the key is refused": (Exit.KEY, {"pending": 3}, _key_refused),
    "a key file open to others": (Exit.KEY, {"pending": 3}, _open_key_file),
    "no such endpoint": (Exit.SETTINGS, {"pending": 3}, _wrong_gateway),
    "two Ctrl-C": (Exit.INTERRUPTED, {"in_doubt": 3}, lambda folder: _twice(folder, signal.SIGINT)),
    "two SIGTERM": (Exit.TERMINATED, {"in_doubt": 3}, lambda folder: _twice(folder, signal.SIGTERM)),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[Ended]"]]:
    """Every scenario, a few at a time: they wait more than they work."""
    with ThreadPoolExecutor(4) as pool:
        yield {
            name: pool.submit(scenario, tmp_path_factory.mktemp("exit")) for name, (_, _, scenario) in SCENARIOS.items()
        }


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_end_has_its_code(name: str, ends: dict[str, "Future[Ended]"]) -> None:
    """The code, its word and the jobs' states are as promised, as an exit code and as the last line of --json."""
    code, jobs, _ = SCENARIOS[name]
    ended = ends[name].result(120)
    assert ended.code == code, ended.err
    summary = ended.summary
    assert (summary["exit"], summary["reason"]) == (code, REASONS[code])
    assert {state: summary["jobs"][state] for state in jobs} == jobs
    assert summary["running"] == (code is Exit.LOCKED)


@pytest.mark.parametrize("name", SCENARIOS)
def test_trouble_is_told_without_traceback_or_key(name: str, ends: dict[str, "Future[Ended]"]) -> None:
    """What went wrong stands on standard error, in words; neither a traceback nor the key is in any output."""
    ended = ends[name].result(120)
    assert "Traceback" not in ended.err
    assert KEY not in ended.err + ended.out
    assert ended.code == 0 or ended.err.strip()


def test_every_code_has_a_scenario() -> None:
    """Only a bug here (70) and a broken disk (74) are proved elsewhere."""
    assert {code for code, _, _ in SCENARIOS.values()} == set(Exit) - {Exit.BUG, Exit.DISK}


def test_results_that_cannot_be_written_are_no_success(tmp_path: Path) -> None:
    """Who reads results.jsonl at seven in the morning is told: 74, with every image kept; the next run writes them."""
    with serving() as peer:
        out = tmp_path / "out"
        (out / "results.jsonl").mkdir(parents=True)
        ended = peer.run(_manifest(tmp_path), "--json", "-o", out, cwd=tmp_path)
        assert (ended.code, ended.summary["reason"], ended.summary["jobs"]["done"]) == (74, "disk", 3)
        assert f"banana-batch export {out}" in ended.err
        assert command("status", out, "--json", cwd=tmp_path).summary["exit"] == 74
        (out / "results.jsonl").rmdir()
        assert peer.run(_manifest(tmp_path), "-o", out, cwd=tmp_path).code == 0
        assert len(results(out)) == len(peer.charges) == 3


def test_a_download_is_judged_like_a_run_but_for_what_waits_to_be_bought(tmp_path: Path) -> None:
    """Doubts and failures are told by each command that ends a run; rows that left the manifest by none."""
    canned = [None, Fault(FaultKind.DROP_AFTER_CHARGE), refusal(400, "banned word")]
    with serving(canned=canned) as peer:
        rows, out = _manifest(tmp_path, "prompt,model,id\n" + "".join(f"{x},Nano Banana,{x}\n" for x in "abcd")), "out"
        arguments = (rows, "--json", "-o", out, "-c", "1")
        assert peer.run(*arguments, "--limit", "3", cwd=tmp_path).code == 4
        fetched = command("download", out, "--json", cwd=tmp_path)
        assert (fetched.code, fetched.summary["jobs"]["pending"]) == (4, 1)
        assert command("resolve", out, "--drop", "--all", cwd=tmp_path).code == 0
        assert command("download", out, "--json", cwd=tmp_path).code == 3
        rows.write_text("prompt,model,id\na,Nano Banana,a\nd,Nano Banana,d\n")
        assert peer.run(*arguments, cwd=tmp_path).code == 0
        assert command("download", out, "--json", cwd=tmp_path).code == 0


def test_a_repair_waits_for_images_as_long_as_it_is_told(tmp_path: Path) -> None:
    """What is gone from the host too is 6 at once, as with `download`."""
    out = tmp_path / "out"
    with serving() as peer:
        assert peer.run(_manifest(tmp_path), "-o", out, cwd=tmp_path).code == 0
    (out / results(out)[0]["image"]).unlink()
    ended = command("verify", out, "--repair", "--download-wait", "0", "--json", cwd=tmp_path)
    assert (ended.code, ended.summary["jobs"]["paid"]) == (6, 1)
