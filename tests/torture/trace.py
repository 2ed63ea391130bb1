"""System calls of one thread of a run: counted, written down, or made to fail, by strace.

strace counts calls by thread, so a call is named by the thread's role, the call, and its number there. The thread is
held at a gate until strace has it: what came before (imports, reading the command line) is not under test.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from banana_batch.sandbox.server import choose_port

from . import process
from .harness import Batch

DISK_CALLS = (
    "openat", "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate",
    "link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat",
)  # fmt: skip
NET_CALLS = ("read",)  # and `write`, among the disk's: the loop's sockets are written with it too
_TOKEN = "0" * 8
ROLES = ("main", "reader", "state", "images")
_CALL = re.compile(r"^(?:\d+ +)?(?:[\d.]+ )?([a-z0-9_]+)\(")


def missing() -> str | None:
    """Return why nothing can be traced here: strace is absent. Where it is present and broken, suites fail."""
    return None if shutil.which("strace") else "strace is not installed"


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, Path]]:
    """Serve the embedded endpoint in a process of its own; yield its address and its charge log."""
    port = choose_port()
    arguments = ["sandbox", "--folder", str(folder), "--port", str(port), "--plain-pictures"]
    pid = process.fork([*arguments, "--latency", "uniform:0,0.01"], folder.parent / "server-said")
    try:
        process.listens(port)
        yield f"http://127.0.0.1:{port}", folder / "charges.jsonl"
    finally:
        process.kill(pid)


def run_traced(
    batch: Batch, role: str, options: list[str], *, every_thread: bool = False, mutate: Callable[[], None] | None = None
) -> int | None:
    """Run a batch with strace on the thread of a role; return the exit code, None if it ended before that thread."""
    gate = process.Gate(role)
    pid = process.fork(batch.arguments(), batch.said, gate=gate, mutate=mutate)
    tracer = None
    try:
        thread = gate.thread(pid)
        if thread is None:
            process.finish(pid)
            return None
        # A process that was forked before has to be named.
        pids = {pid, thread} if every_thread and role == "reader" else {pid if every_thread else thread}
        target = [word for one in pids for word in ("-p", str(one))] + ["-f"] * every_thread
        tracer = subprocess.Popen(
            ["strace", "-qq", *target, *options], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        _attached(tracer, thread)
        gate.open()
        return process.finish(pid)
    finally:
        gate.close()
        if tracer is not None:
            with suppress(subprocess.TimeoutExpired):
                tracer.wait(10)
            tracer.kill()
            tracer.communicate()


def _attached(tracer: "subprocess.Popen[bytes]", thread: int) -> None:
    status = Path(f"/proc/{thread}/status")
    for _ in process.until(10.0):
        try:
            # Ended: by a kill at its first call, which is the one that it stands in.
            if re.search(r"^(TracerPid:\t[1-9]|State:\tZ)", status.read_text(), re.MULTILINE):
                return
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended: nothing of it is left to be struck
            return
        if tracer.poll() is not None:
            break
    ended = tracer.poll()
    tracer.kill()
    assert tracer.stderr is not None
    said = tracer.stderr.read().decode(errors="replace")[-300:]
    raise RuntimeError(f"strace is here and does not work (ended with {ended}): {said}")


def name_parts() -> None:
    """Let what is written beside its final name have a name that is known before."""
    import secrets

    secrets.token_hex = lambda nbytes=None: _TOKEN


def only_files(batch: Batch) -> list[str]:
    """Return strace's options that leave calls on sockets and the loop's own descriptors out: no disk fails there.

    Of runs whose parts are named by `name_parts`.
    """
    parts = [f".{name}.{_TOKEN}.part" for name in ("results.jsonl", "summary.md")]
    names = ["run.log", ".ballast", *parts, *(f"images/.{job}.part" for job in range(1, batch.jobs + 1))]
    return [word for path in (batch.said, *(batch.out / name for name in names)) for word in ("-P", str(path))]


def counted(batch: Batch, role: str, calls: tuple[str, ...], files: bool = False) -> Counter[str]:
    """Run a batch undisturbed; return how often the thread of a role made each call; `files`: on a file."""
    record = batch.folder / f"trace-{role}"
    options = ["-o", str(record), "-e", f"trace={','.join(calls)}", *(only_files(batch) if files else [])]
    code = run_traced(batch, role, options, mutate=name_parts)
    if code != 0:
        raise RuntimeError(f"a traced run ended with {code}")
    found = map(_CALL.match, record.read_text(errors="replace").splitlines())
    return Counter(match[1] for match in found if match)


def injection(call: str, number: int, what: str, *, sticky: bool = False) -> list[str]:
    """Return strace's options that let a call's `number`-th time, or that and all later ones, meet `what`."""
    effect = "signal=KILL" if what == "KILL" else f"error={what}"
    return [
        "-o",
        os.devnull,
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{effect}:when={number}{'+' if sticky else ''}",
    ]
