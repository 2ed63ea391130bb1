"""A run begins in two processes: whatever becomes of one of them, it is told as one command, and nothing is left."""

import json
import os
import pickle
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from banana_batch import errors
from banana_batch.errors import BananaError, ManifestError, Problem

from .command import ARGV, BOUND_S, Live, catches, charges, command, environment, live, script, until


@contextmanager
def reading(tmp_path: Path, name: str, *options: str) -> Iterator[Live]:
    """A run whose manifest is a pipe that says nothing."""
    os.mkfifo(tmp_path / name)
    with live("run", name, "--sandbox", "--json", "-o", "out", *options, cwd=tmp_path) as run:
        yield run


def reader_of(run: Live) -> int:
    """Return the pid of the process that reads for a run, once it is there."""
    pid = run.process.pid
    (reader,) = until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return int(reader)


def is_at_work(pid: int) -> bool:
    """Tell whether a process is there, and not only what is left of one that ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_run_leaves_nobody_who_holds_the_batch(tmp_path: Path) -> None:
    """`kill -9` of the command while its manifest is read: what reads ends too, and the next run begins at once."""
    with reading(tmp_path, "rows.txt") as run:
        until((tmp_path / "out" / ".lock").exists)
        reader = reader_of(run)
        run.process.kill()
        assert run.end().code == -signal.SIGKILL
        until(lambda: not is_at_work(reader))
    (tmp_path / "cats.txt").write_text("a cat\n")
    again = command("run", "cats.txt", "--sandbox", "--json", "-o", "out", cwd=tmp_path)
    assert (again.code, again.summary["jobs"]["done"]) == (0, 1), again.err


def test_the_batch_is_held_in_the_command_s_name_from_the_start(tmp_path: Path) -> None:
    """Whoever asks while the manifest is still read is told the pid that was started, and that a run is at work."""
    with reading(tmp_path, "rows.txt") as run:
        until(lambda: (tmp_path / "out" / ".lock").exists() and (tmp_path / "out" / ".lock").stat().st_size)
        (tmp_path / "cats.txt").write_text("a cat\n")
        second = command("run", "cats.txt", "--sandbox", "-o", "out", cwd=tmp_path)
        assert second.code == 75
        assert f"pid {run.process.pid} on " in second.err
        run.signal(signal.SIGTERM)
        assert run.end().code == 7


def test_neither_process_leaves_a_core(tmp_path: Path) -> None:
    """The key is in the memory of both, from the first moment."""
    before, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    with reading(tmp_path, "rows.txt") as run:
        resource.setrlimit(resource.RLIMIT_CORE, (before, most))
        until((tmp_path / "out" / ".lock").exists)
        for pid in (run.process.pid, reader_of(run)):
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            (core,) = [line.split()[4:6] for line in limits if line.startswith("Max core file size")]
            assert core == ["0", "0"]


def test_a_killed_reader_is_told_and_nothing_is_sent(tmp_path: Path) -> None:
    """The system takes the reader for want of memory: the command says so, in words and as JSON, and ends."""
    with reading(tmp_path, "rows.txt") as run:
        until((tmp_path / "out" / ".lock").exists)
        os.kill(reader_of(run), signal.SIGKILL)
        ended = run.end()
    assert (ended.code, ended.summary["reason"]) == (70, "bug")
    assert "what reads the manifest was killed (SIGKILL); nothing was sent" in ended.err
    assert "Traceback" not in ended.err


def test_ctrl_c_while_rows_are_read_is_one_order(tmp_path: Path) -> None:
    """A terminal sends it to both processes: one message, one exit code, nothing left."""
    os.mkfifo(tmp_path / "rows.txt")
    with _in_a_group(tmp_path, "rows.txt") as process:
        until((tmp_path / "out" / ".lock").exists)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=BOUND_S)
    assert (process.returncode, json.loads(out)["reason"]) == (7, "stopped")
    assert err.decode().count("stopped before anything was sent") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
@pytest.mark.parametrize("to_both", [True, False])
def test_an_order_before_the_batch_is_looked_at_ends_the_command(
    tmp_path: Path, number: signal.Signals, code: int, to_both: bool
) -> None:
    """While the job file is read there is nothing to take back and nothing to tell: it ends as any command does."""
    os.mkfifo(tmp_path / "night.toml")
    with _in_a_group(tmp_path, "night.toml") as process:
        writer = until(lambda: _writer(tmp_path / "night.toml"))
        (os.killpg if to_both else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=BOUND_S)
        os.close(writer)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert not (tmp_path / "out").exists()


@contextmanager
def _in_a_group(tmp_path: Path, manifest: str) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen(
        [*ARGV, "run", manifest, "--sandbox", "--json", "-o", "out"],
        cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=BOUND_S)


def _writer(pipe: Path) -> int:
    """Return a descriptor that writes to a pipe; 0 as long as nobody reads from it."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0


def test_a_question_how_it_stands_disturbs_nobody_who_reads(tmp_path: Path) -> None:
    """SIGUSR1 to all of a name, which is how people send it: both go on."""
    os.mkfifo(tmp_path / "rows.txt")
    with _in_a_group(tmp_path, "rows.txt") as process:
        writer = until(lambda: _writer(tmp_path / "rows.txt"))
        until(lambda: catches(process.pid, signal.SIGUSR1))
        os.killpg(process.pid, signal.SIGUSR1)
        os.write(writer, b"a cat\n")
        os.close(writer)
        out, _ = process.communicate(timeout=BOUND_S)
    assert (process.returncode, json.loads(out)["jobs"]["done"]) == (0, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_hook_that_hangs_can_be_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """The run is over: an order ends the command, as it ends any; it is not kept for a run that takes no more."""
    (tmp_path / "rows.txt").write_text("a cat\n")
    hook = "touch hooked; exec sleep 60 >/dev/null 2>&1"
    with live("run", "rows.txt", "--sandbox", "-o", "out", "--on-finish", hook, cwd=tmp_path) as run:
        until((tmp_path / "hooked").exists)
        run.signal(number)
        assert run.end().code == (130 if number == signal.SIGINT else -number)


def test_the_system_names_the_command_as_the_holder(tmp_path: Path) -> None:
    """Of a process that has ended, containers list no lock: `status` would say that nobody runs the batch."""
    (tmp_path / "rows.txt").write_text("a cat\n" * 2)
    with live("run", "rows.txt", "--sandbox", "-o", "out", "-c", "1", cwd=tmp_path) as run:
        until(lambda: charges(tmp_path / "out"))
        inode = (tmp_path / "out" / ".lock").stat().st_ino
        (lock,) = [line for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
        assert lock.split()[1:5] == ["FLOCK", "ADVISORY", "WRITE", str(run.process.pid)]


def test_whoever_starts_it_may_not_want_to_hear_of_its_children(tmp_path: Path) -> None:
    """SIGCHLD that is ignored is inherited: a run ends as any other."""
    (tmp_path / "rows.txt").write_text("a cat\n")
    ran = subprocess.run(
        ["env", "--ignore-signal=CHLD", *ARGV, "run", "rows.txt", "--sandbox", "--json", "-o", "out"],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert (ran.returncode, json.loads(ran.stdout)["jobs"]["done"]) == (0, 1), ran.stderr


_STRUCK = """
import os, signal, sys
from banana_batch.cli import apart
number, where = signal.Signals[sys.argv[1]], sys.argv[2]
def strike():
    os.kill(os.getpid(), number)
if where == "reader begins":
    def breakable(ready, once=apart.breakable):
        strike()
        return once(ready)
    apart.breakable = breakable
elif where == "reader hands over":
    def send(self, told, *lock, once=apart._Run._send):
        if lock:
            strike()
        once(self, told, *lock)
    apart._Run._send = send
else:
    def loads(said, once=apart.pickle.loads):
        told = once(said)
        if not isinstance(told, apart._Wanted):
            strike()
        return told
    apart.pickle.loads = loads
from banana_batch.__main__ import main
sys.argv[1:] = ["run", "rows.txt", "--sandbox", "--json", "-o", "out"]
main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["reader begins", "reader hands over", "run takes over"])
def test_an_order_at_any_moment_of_the_start_stops_it(tmp_path: Path, number: str, where: str) -> None:
    """Never 0 with nothing done, and never a bug: it says by what it was stopped, and holds the batch no more."""
    (tmp_path / "rows.txt").write_text("a cat\n")
    ran = script(_STRUCK, number, where, cwd=tmp_path)
    told = json.loads(ran.stdout)
    assert (ran.returncode, told["reason"], told["running"]) == (7, "stopped", False), ran.stderr
    assert ran.stderr.count(f"{number}: stopped before anything was sent") == 1
    assert not charges(tmp_path / "out")


_ALONE = """
import os
def none():
    raise BlockingIOError("no process can be had")
os.fork = none
"""

_RUN = """
import sys
from banana_batch.__main__ import main
sys.argv[1:] = ["run", "rows.txt", "--sandbox", "--json", "-o", "out", "--on-finish", "cat > hooked"]
main()
"""

_BROKEN = """
import sqlite3
from banana_batch.store.founding import Founder
def broken(*_, **__):
    raise {raised}
Founder.apply = broken
"""


def test_where_no_process_can_be_had_one_does_it_all(tmp_path: Path) -> None:
    """A limit on processes is no reason not to run."""
    (tmp_path / "rows.txt").write_text("a cat\n")
    ran = script(_ALONE + _RUN, cwd=tmp_path)
    assert (ran.returncode, json.loads(ran.stdout)["jobs"]["done"]) == (0, 1), ran.stderr


@pytest.mark.parametrize(
    ("raised", "code", "reason", "told"),
    [
        ("ZeroDivisionError('canary')", 70, "bug", "a bug here: ZeroDivisionError at "),  # where, and never its words
        ("sqlite3.OperationalError('disk I/O error')", 74, "disk", "can't be read or written: disk I/O error"),
        ("sqlite3.DatabaseError('malformed')", 65, "bad_input", "malformed"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_what_breaks_before_the_first_request_is_told_alike(
    tmp_path: Path, raised: str, code: int, reason: str, told: str, alone: bool
) -> None:
    """By one process or two: once, with its code, to the hook too; nothing is left of the batch that was to be made."""
    (tmp_path / "rows.txt").write_text("a cat\n")
    ran = script(_ALONE * alone + _BROKEN.format(raised=raised) + _RUN, cwd=tmp_path)
    assert (ran.returncode, json.loads(ran.stdout)["reason"]) == (code, reason)
    assert ran.stderr.count(told) == 1
    assert "canary" not in ran.stderr
    assert json.loads((tmp_path / "hooked").read_bytes())["exit"] == code
    assert not (tmp_path / "out").exists()


def _all_errors(of: type[BananaError] = BananaError) -> Iterator[type[BananaError]]:
    yield of
    for below in of.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _all_errors(below)


@pytest.mark.parametrize("kind", list(_all_errors()))
def test_every_error_comes_over_whole(kind: type[BananaError]) -> None:
    """What the reader raised is raised in the run: message, hint, exit code and problems."""
    raised = kind("a message", "a hint")
    if isinstance(raised, ManifestError):
        raised.problems = (Problem("rows.csv", 3, "model", "x", "y"),)
    came = pickle.loads(pickle.dumps(raised))  # our own
    assert (type(came), came.args, came.exit, vars(came)) == (kind, raised.args, raised.exit, vars(raised))
