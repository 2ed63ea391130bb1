"""Stopped, cut off, killed, and gone on: what is on the wire is never bought twice, what was answered never lost."""

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from PIL import Image

from banana_batch import money
from banana_batch.cli.running import _Resolvers
from banana_batch.sandbox.config import Latency, SandboxConfig

from .command import JOBS, KEY, Live, catches, charges, command, credits_of, live, results, script, tree, until
from .peer import serving

ROWS = "prompt,model\n" + "".join(f"row {number},Nano Banana\n" for number in range(1, 21))
SLOW = SandboxConfig(plain_pictures=True, latency=Latency("fixed", 1.0))


def test_the_first_sigterm_lets_calls_in_flight_finish(tmp_path: Path) -> None:
    """With 4 on the wire, all 4 are stored, no 5th is sent, exit 7; run again, nothing is bought twice."""
    (tmp_path / "rows.csv").write_text(ROWS)
    with serving(SLOW) as peer:
        arguments = ("run", "rows.csv", "--json", "-c", "4", "--base-url", peer.base_url)
        with live(*arguments, cwd=tmp_path, TT_API_KEY=KEY) as run:
            until(lambda: len(peer.charges) == 4)
            run.signal(signal.SIGTERM)
            ended = run.end()
        summary = ended.summary
        assert (ended.code, summary["reason"]) == (7, "stopped")
        assert (summary["jobs"]["done"], summary["jobs"]["pending"]) == (4, 16)
        assert len(peer.charges) == 4
        again = peer.run("rows.csv", "--json", "-c", "32", cwd=tmp_path)
        assert again.summary["jobs"]["done"] == 20
        assert Counter(charge.prompt for charge in peer.charges) == {f"row {n}": 1 for n in range(1, 21)}


def test_one_ctrl_c_that_arrives_twice_is_one(tmp_path: Path) -> None:
    """A second SIGINT within a second of the first cuts nothing off."""
    (tmp_path / "rows.csv").write_text(ROWS)
    with serving(SLOW) as peer:
        arguments = ("run", "rows.csv", "--json", "-c", "2", "--base-url", peer.base_url)
        with live(*arguments, cwd=tmp_path, TT_API_KEY=KEY) as run:
            until(lambda: len(peer.charges) == 2)
            run.signal(signal.SIGINT)
            # Signals that arrive together are one to the kernel: the second has to be one of its own.
            until(lambda: b'"drain"' in (tmp_path / "outputs" / "rows" / "run.log").read_bytes())
            run.signal(signal.SIGINT)
            assert run.end().summary["jobs"] | {"pending": 0} == dict.fromkeys(_states(), 0) | {"done": 2}


def _states() -> list[str]:
    return ["pending", "sending", "paid", "done", "failed", "in_doubt", "lost", "dropped"]


def test_a_second_sigterm_leaves_doubts_that_are_counted(tmp_path: Path) -> None:
    """Cut off, the calls on the wire are in doubt with their price at risk; `keep` leaves them, `resend` completes."""
    (tmp_path / "rows.csv").write_text(ROWS)
    long = SandboxConfig(plain_pictures=True, latency=Latency("fixed", 60.0))
    with serving(long, folder=tmp_path / "vendor") as peer:
        arguments = ("run", "rows.csv", "--json", "-c", "3", "--base-url", peer.base_url)
        with live(*arguments, cwd=tmp_path, TT_API_KEY=KEY) as run:
            until(lambda: len(peer.charges) == 3)
            run.signal(signal.SIGTERM)
            until(lambda: b'"drain"' in (tmp_path / "outputs" / "rows" / "run.log").read_bytes())
            run.signal(signal.SIGTERM)
            ended = run.end()
    assert ended.code == 143
    assert ended.took_s < 2
    assert (ended.summary["jobs"]["in_doubt"], ended.summary["credits"]["at_risk"]) == (3, "150")
    with serving(folder=tmp_path / "vendor") as peer:
        kept = peer.run("rows.csv", "--json", "-c", "32", "--in-doubt", "keep", cwd=tmp_path)
        assert (kept.code, kept.summary["jobs"]["in_doubt"], kept.summary["jobs"]["done"]) == (4, 3, 17)
        # The first price is known: what is at risk is no longer a ceiling.
        assert (kept.summary["credits"]["at_risk"], kept.summary["credits"]["spent"]) == ("6", "34")
        sent = peer.run("rows.csv", "--json", "--in-doubt", "resend", cwd=tmp_path)
        assert (sent.code, sent.summary["jobs"]["done"]) == (0, 20)
        assert sent.summary["credits"] == {
            "spent": "40", "at_risk": "6", "wasted": "0", "reserved": "0", "budget": None
        }  # fmt: skip
        assert credits_of(peer.charges) == "46"


def test_killed_twice_and_resumed_nothing_answered_is_sent_again(tmp_path: Path) -> None:
    """60 prompts, `kill -9` twice: each prompt is charged once; what was in flight is in doubt, at its price, and
    nothing else is; then `--in-doubt resend` completes it, each doubt sent once more."""
    source, out = JOBS / "parti-excerpt.tsv", tmp_path / "out"
    arguments = ("run", source, "--sandbox", "-o", out, "-c", "12", "--json")
    for target in (15, 35):
        with live(*arguments, cwd=tmp_path) as run:
            until(lambda: len(charges(out)) >= target)  # noqa: B023  # called at once
            run.process.kill()
            assert run.end().code == -signal.SIGKILL
        assert max(Counter(charge.prompt for charge in charges(out)).values()) == 1
    status = command("status", out, "--json", cwd=tmp_path).summary
    assert (status["exit"], status["running"]) == (None, False)

    kept = command(*arguments, cwd=tmp_path)
    rows = {row["prompt"]: row for row in results(out)}
    doubts = {prompt for prompt, row in rows.items() if row["state"] == "in_doubt"}
    charged = Counter(charge.prompt for charge in charges(out))
    summary = kept.summary
    assert kept.code == (4 if doubts else 0), kept.err
    assert max(charged.values()) == 1
    assert {row["state"] for row in rows.values()} <= {"done", "in_doubt"}
    assert 0 < len(doubts) <= 24
    assert set(rows) - doubts <= set(charged)
    assert Decimal(summary["credits"]["at_risk"]) == 13 * len(doubts)
    assert Decimal(summary["credits"]["spent"]) == 13 * (60 - len(doubts))
    _whole(out, 60 - len(doubts))

    sent = command(*arguments, "--in-doubt", "resend", cwd=tmp_path)
    assert (sent.code, sent.summary["jobs"]["done"]) == (0, 60), sent.err
    twice = Counter(charge.prompt for charge in charges(out)) - charged
    assert twice == dict.fromkeys(doubts, 1)
    assert sent.summary["credits"]["spent"] == money.credits_text(60 * 13_000_000)
    total = sum(charge.credits for charge in charges(out))
    assert total <= money.parse_credits(sent.summary["credits"]["spent"]) + 13_000_000 * len(doubts)
    _whole(out, 60)


def _whole(out: Path, count: int) -> None:
    names = os.listdir(out / "images")
    assert len(names) == count
    assert not [name for name in tree(out) if name.endswith(".part")]
    for name in names:
        with Image.open(out / "images" / name) as image:
            image.load()


def test_a_second_starter_is_told_at_once(tmp_path: Path) -> None:
    """Two at once: the other ends with 75 in under a second of its own work, names pid and host, sends nothing; and
    `status` sees the run that is live."""
    (tmp_path / "rows.csv").write_text(ROWS)
    with serving(SLOW) as peer:
        arguments = ("run", "rows.csv", "--json", "-c", "2", "--base-url", peer.base_url)
        with live(*arguments, cwd=tmp_path, TT_API_KEY=KEY) as run:
            until(lambda: len(peer.charges) >= 2)
            nothing = min(command("--version", cwd=tmp_path).took_s for _ in range(2))
            second = command(*arguments, cwd=tmp_path, TT_API_KEY=KEY)
            status = command("status", "rows.csv", "--json", cwd=tmp_path)
            run.signal(signal.SIGTERM)
            run.end()
    assert (second.code, second.summary["reason"]) == (75, "locked")
    assert f"pid {run.process.pid} on {os.uname().nodename}" in second.err
    assert second.took_s < max(1.0, 40 * nothing)
    assert (status.code, status.summary["running"]) == (0, True)
    assert max(Counter(charge.prompt for charge in peer.charges).values()) == 1


def test_the_estimate_is_of_the_whole(tmp_path: Path) -> None:
    """When the first price is known, what all of it will cost is told, with what was spent already."""
    (tmp_path / "rows.csv").write_text(ROWS)
    with serving(SandboxConfig(plain_pictures=True, latency=Latency("fixed", 0.05))) as peer:
        ended = peer.run("rows.csv", "-c", "2", "--json", cwd=tmp_path)
        (log,) = [
            json.loads(line)
            for line in (tmp_path / "outputs" / "rows" / "run.log").read_text().splitlines()
            if '"estimate"' in line
        ]
    assert "about 40 credits ($0.40)" in ended.err
    assert log["expected_micro"] == log["most_micro"] == 40_000_000


def test_an_ended_run_waits_for_no_name_server() -> None:
    """A lookup that nobody answers is left alone: after a second signal two seconds are all there is."""
    answered = threading.Event()

    async def look() -> None:
        asyncio.get_running_loop().set_default_executor(_Resolvers(1, "names"))
        asyncio.get_running_loop().run_in_executor(None, answered.wait, 20.0)
        await asyncio.sleep(0)

    asyncio.run(look())
    left = [thread for thread in threading.enumerate() if thread.name.startswith("names")]
    answered.set()
    assert len(left) == 1


@contextmanager
def waiting_for_rows(tmp_path: Path, said: bytes) -> Iterator[Live]:
    """A run of a pipe that said some rows and then nothing, for as long as it is open."""
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    arguments = ("run", pipe, "--sandbox", "--json", "-o", tmp_path / "out")
    with live(*arguments, cwd=tmp_path) as run, pipe.open("wb", buffering=0) as rows:
        rows.write(said)
        yield run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_waits_for_its_manifest_can_be_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """A pipe that never speaks: nothing is on the wire, so one order ends the run; nothing is left, all is told."""
    with waiting_for_rows(tmp_path, b"a lighthouse\n") as run:
        until((tmp_path / "out" / ".lock").exists)
        run.signal(number)
        ended = run.end()
    assert (ended.code, ended.summary["reason"]) == (7, "stopped")
    assert f"{number.name}: stopped before anything was sent" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out").exists()


_STRUCK = """
import os, signal, sys
number = getattr(signal, sys.argv[1])
# The loop asks for its pipe when it begins and is closed by its runner: neither may be broken off in the middle.
if sys.argv[2] == "begins":
    import socket
    def struck(*given, pair=socket.socketpair):
        if "banana_batch.cli.running" in sys.modules:
            socket.socketpair = pair
            os.kill(os.getpid(), number)
        return pair(*given)
    socket.socketpair = struck
else:
    import asyncio
    def struck(runner, close=asyncio.Runner.close):
        os.kill(os.getpid(), number)
        close(runner)
    asyncio.Runner.close = struck
from banana_batch.__main__ import main
sys.argv[1:] = ["run", "rows.txt", "--sandbox", "--json", "-o", "out"]
main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(("moment", "code", "done"), [("begins", 7, 0), ("ends", 0, 1)])
def test_an_order_while_the_loop_is_made_or_closed_is_one_like_any_other(
    tmp_path: Path, number: str, moment: str, code: int, done: int
) -> None:
    """It waits until somebody can take it: nothing breaks; after the last image there is nothing left to stop."""
    (tmp_path / "rows.txt").write_text("a lighthouse\n")
    ran = script(_STRUCK, number, moment, cwd=tmp_path)
    assert (ran.returncode, json.loads(ran.stdout)["jobs"]["done"]) == (code, done), ran.stderr
    assert "bug" not in ran.stderr


def test_a_long_wait_for_a_manifest_is_a_silent_one(tmp_path: Path) -> None:
    """The ticks by which a waiting run notices orders are not told, however many (the loop's pipe holds some 300)."""
    with waiting_for_rows(tmp_path, b"a lighthouse\n") as run:
        until(lambda: catches(run.process.pid, signal.SIGALRM))
        for _ in range(10_000):
            run.signal(signal.SIGALRM)
            os.sched_yield()
        run.signal(signal.SIGTERM)
        ended = run.end()
    assert ended.code == 7
    assert len(ended.err.splitlines()) == 2


def test_a_batch_is_left_as_it_was_by_a_run_that_is_stopped_early(tmp_path: Path) -> None:
    """A run that is told to stop while it reads new rows changes nothing, and the next goes on."""
    (tmp_path / "rows.txt").write_text("a lighthouse\n")
    out = tmp_path / "out"
    assert command("run", "rows.txt", "--sandbox", "-o", out, cwd=tmp_path).code == 0
    held = (out / ".lock").stat().st_mtime_ns
    with waiting_for_rows(tmp_path, b"a lighthouse\na basalt cliff\n") as run:
        until(lambda: (out / ".lock").stat().st_mtime_ns != held)
        run.signal(signal.SIGTERM)
        ended = run.end()
    assert (ended.code, ended.summary["jobs"]["done"], ended.summary["jobs"]["pending"]) == (7, 1, 0)
    again = command("run", "rows.txt", "--sandbox", "--json", "-o", out, cwd=tmp_path)
    assert (again.code, again.summary["jobs"]["done"]) == (0, 1)
