"""Runs of the real command as children that are forked, not started: an interpreter's start costs as much as a batch.

Rule 1: a child is the command as it is: same entry, same arguments, same exit. Only latency and pictures of the
        embedded endpoint may be cheaper, and a gate may hold a thread until a tracer has it.
Rule 2: whoever forks has one thread. Suites run their cases in worker processes (`streams`), never in a test's own.
Rule 3: every wait is for a condition and has a bound; only own children are signalled, by pid.
"""

import contextlib
import functools
import importlib
import os
import pkgutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import banana_batch
from banana_batch.errors import Exit
from banana_batch.images.outside import MANY
from banana_batch.sandbox.config import Latency, SandboxConfig

Case = TypeVar("Case")
Found = TypeVar("Found")

STREAMS = 2
BOUND_S = 60.0
HUNG = -1000  # in place of an exit code
_NAP_S = 0.002
_ORDERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a run imports by itself as it goes.
_LATE = (
    "banana_batch.__main__",
    "encodings.utf_8_sig",
    "importlib.readers",
    "importlib.resources.readers",
    "typer._adapters",
    "typer._click.decorators",
)
QUICK = SandboxConfig(latency=Latency("uniform", 0.0, 0.06), plain_pictures=True, count_requests=False)


def streams(work: Callable[[Case], Found], cases: Iterable[Case]) -> Iterator[Found]:
    """Do the cases in processes side by side; yield what each found, in their order."""
    with ProcessPoolExecutor(STREAMS, mp_context=get_context("spawn"), initializer=preload) as pool:
        yield from pool.map(work, cases)


def apart(work: Callable[..., Found], *arguments: object) -> Found:
    """Do one piece of work in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=preload) as pool:
        return pool.submit(work, *arguments).result()


def preload() -> None:
    """Import all of the program, so that no child has to."""
    for module in pkgutil.walk_packages(banana_batch.__path__, "banana_batch."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for module_name in _LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(module_name)


@dataclass(slots=True)
class Gate:
    """Holds the first thread of a name until it is let through: `main`, or that of an executor.

    Attributes:
        role: `main`, `reader` (of the process that the run forks to read its manifest), `state`, `images`, `disk`, or
            another executor's name.
    """

    role: str
    _told: tuple[int, int] = field(default_factory=os.pipe)
    _let: tuple[int, int] = field(default_factory=os.pipe)
    _passed: bool = False

    def stand(self) -> None:
        """In the child, on the thread in question: tell the thread's id, wait to be let through."""
        if not self._passed:
            self._passed = True
            os.write(self._told[1], threading.get_native_id().to_bytes(8, "little"))
            os.read(self._let[0], 1)

    def thread(self, pid: int, bound_s: float = BOUND_S) -> int | None:
        """In the parent: return the id of the thread that stands here; None if the child ended before it came."""
        os.set_blocking(self._told[0], False)
        for _ in until(bound_s):
            with contextlib.suppress(BlockingIOError):
                return int.from_bytes(os.read(self._told[0], 8), "little")
            if _has_ended(pid):
                return None
        return None

    def open(self) -> None:
        """In the parent: let it through."""
        os.write(self._let[1], b"g")

    def close(self) -> None:
        """In the parent: forget the pipes."""
        for end in (*self._told, *self._let):
            os.close(end)


def fork(arguments: Sequence[str], said: Path, *, gate: Gate | None = None, mutate: Callable[[], None] | None = None,
         config: SandboxConfig = QUICK, many: int = MANY) -> int:  # fmt: skip
    """Run the command with `arguments` in a child; return its pid. What it prints goes to `said`.

    Args:
        mutate: Takes a defence away, in the child only.
        many: Images in a group from which on another process writes them.
    """
    # A signal that came before the child is the command would be raised in its parent's code, of which it is a copy.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
        return pid
    code = 70
    try:
        _redirect(said)
        os.environ["TT_API_KEY"] = "rehearsal"
        _equip(config, gate, many)
        if mutate is not None:
            mutate()
        if gate is not None and gate.role == "main":
            gate.stand()
        if gate is not None and gate.role == "reader":
            _hold_forked(gate)
        sys.argv = ["banana-batch", *arguments]
        code = _command()
    except BaseException:  # noqa: BLE001  # a forked child must never return into its parent's code
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _hold_forked(gate: Gate) -> None:
    once = os.fork

    def fork() -> int:
        pid = once()
        if not pid:
            gate.stand()
        return pid

    os.fork = fork


def _command() -> int:
    from banana_batch.__main__ import main

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return 0


def _redirect(said: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Nothing that a batch opens may get a descriptor below 3, whatever the parent's were.
    os.setsid()


def _equip(config: SandboxConfig, gate: Gate | None, many: int) -> None:
    from banana_batch.batch import Machinery, Run
    from banana_batch.cli import running
    from banana_batch.images.outside import Outside
    from banana_batch.sandbox.server import Sandbox

    def executor(threads: int, name: str) -> ThreadPoolExecutor:
        held = gate is not None and gate.role == name
        return ThreadPoolExecutor(threads, name, initializer=gate.stand if gate is not None and held else None)

    machinery = Machinery(
        executor=executor,
        images=functools.partial(Outside, many=many),
        sandbox=functools.partial(Sandbox, config=config),
    )
    vars(running)["Run"] = functools.partial(Run, machinery=machinery)


def run(arguments: Sequence[str], said: Path, bound_s: float = BOUND_S, **options: object) -> int:
    """Run the command to its end; return its exit code, negative for a signal, HUNG if it had to be killed."""
    return finish(fork(arguments, said, **options), bound_s)  # type: ignore[arg-type]


def finish(pid: int, bound_s: float = BOUND_S) -> int:
    """Wait for a child's end; see `run`."""
    code = wait(pid, bound_s)
    if code is None:
        kill(pid)
        return HUNG
    return code


def wait(pid: int, bound_s: float) -> int | None:
    """Return a child's exit code; None if it still runs when the time is over."""
    for _ in until(bound_s):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
    return None


def kill(pid: int) -> int:
    """Send SIGKILL to an own child and reap it; return its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def listens(port: int) -> None:
    """Wait until somebody listens on a port of this machine.

    Raises:
        RuntimeError: nobody does.
    """
    for _ in until(BOUND_S):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise RuntimeError(f"nobody listens on port {port}")


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def until(bound_s: float) -> Iterator[None]:
    """Yield at least once, then until the time is over, with naps between."""
    end_s = time.monotonic() + bound_s
    yield
    while (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(_NAP_S, left_s))
        yield
