"""The command as a user has it: a process of its own, in a folder of its own, with next to no environment.

Rule 1: what is run is the package that these tests import, wherever it lies.
Rule 2: every wait has a bound; a process that outlives it is ended by its pid, and the test fails.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import banana_batch
from banana_batch import money
from banana_batch.cli import app
from banana_batch.sandbox.charges import Charge, read_charges

PACKAGE = Path(banana_batch.__file__).parent
JOBS = PACKAGE.parent / "jobs"
ARGV = (sys.executable, "-m", "banana_batch")
KEY = "canary-key-0123456789abcdef"
BOUND_S = 60.0

SUMMARY_KEYS = ["exit", "reason", "jobs", "credits", "elapsed_s", "out", "running"]
STATES = ["pending", "sending", "paid", "done", "failed", "in_doubt", "lost", "dropped"]
AMOUNTS = ["spent", "at_risk", "wasted", "reserved", "budget"]

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; negative: the signal that ended it.
        took_s: From its start to its end.
    """

    code: int
    out: str
    err: str
    took_s: float

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON object of `--json`: alone on standard output, with exactly the promised keys."""
        found = self.object
        assert list(found) == SUMMARY_KEYS
        assert list(found["jobs"]) == STATES
        assert list(found["credits"]) == AMOUNTS
        return found

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object that is all of standard output."""
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return all the environment there is."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "PYTHONPATH": str(PACKAGE.parent),
        **variables,
    }


def command(
    *arguments: str | Path,
    cwd: Path,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
    **variables: str,
) -> Ended:
    """Run a command to its end."""
    began_s = time.monotonic()
    done = subprocess.run(
        [*ARGV, *map(str, arguments)],
        cwd=cwd,
        env=environment(cwd, **variables) if environ is None else environ,
        input=stdin,
        capture_output=True,
        timeout=BOUND_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode(), time.monotonic() - began_s)


def here(*arguments: str | Path) -> Ended:
    """Run a command that only looks, in this process and its working folder: a start costs more than the look.

    What is printed goes to the descriptors themselves, so they are turned to files meanwhile. One at a time.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _turned(1, out), _turned(2, err):
        with redirect_stdout(io.StringIO()) as helped:
            code = app.main([str(argument) for argument in arguments])
        os.write(1, helped.getvalue().encode())
        out.seek(0)
        err.seek(0)
        said, told = out.read().decode(), err.read().decode()
    return Ended(code, said, told, time.monotonic() - began_s)


@contextmanager
def _turned(descriptor: int, file: IO[bytes]) -> Iterator[None]:
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def script(text: str, *arguments: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a Python program that uses the package, in a process of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


@dataclass(frozen=True, slots=True)
class Live:
    """A command that is under way."""

    process: "subprocess.Popen[bytes]"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait for its end."""
        began_s = time.monotonic()
        out, err = self.process.communicate(timeout=BOUND_S)
        return Ended(self.process.returncode, out.decode(), err.decode(), time.monotonic() - began_s)


@contextmanager
def live(*arguments: str | Path, cwd: Path, **variables: str) -> Iterator[Live]:
    """Start a command; it is gone when this ends."""
    process = subprocess.Popen(
        [*ARGV, *map(str, arguments)],
        cwd=cwd,
        env=environment(cwd, **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Live(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=BOUND_S)


def until(found: Callable[[], Found], bound_s: float = 30.0) -> Found:
    """Wait for a condition, looking fifty times a second; return what it found."""
    ends_s = time.monotonic() + bound_s
    while not (value := found()):
        assert time.monotonic() < ends_s, f"not so within {bound_s:g} s"
        time.sleep(0.02)
    return value


def catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    (caught,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def results(out: Path) -> list[dict[str, Any]]:
    """Return what results.jsonl holds."""
    return [json.loads(line) for line in (out / "results.jsonl").read_bytes().splitlines()]


def charges(out: Path) -> list[Charge]:
    """Return what the batch's own sandbox charged; none while there is no log."""
    folder = out / "sandbox"
    return read_charges(folder) if (folder / "charges.jsonl").exists() else []


def credits_of(charged: list[Charge]) -> str:
    """Return the sum of charges as the program writes credits."""
    return money.credits_text(sum(charge.credits for charge in charged))


def tree(folder: Path) -> set[str]:
    """Return every name below a folder."""
    return {os.path.join(where, name) for where, folders, files in os.walk(folder) for name in (*folders, *files)}
