"""A run begins in two processes at once: one reads what was asked for, the other loads what will send it.

    the run: the command's own process ──fork──► the reader: options, settings, manifest, plan
      loads HTTP client and engine                  │
      Wanted, Ready + the lock ◄──────socket────────┘ ends

Each takes a processor for some 0.15 s: one after the other, the first call would wait for both.

Rule 1: the reader is the command as it would be in one process, up to the first request: same order, same words, same
        exit code. It sends nothing; what could send is not even loaded there.
Rule 2: the batch's lock is never let go: the run has it before the reader ends.
Rule 3: an order to stop goes to both, whichever the system told; the reader takes back what it began.
Rule 4: however the run ends, the reader ends at once (`_end_with`): a crash while planning, which harms no batch.
Rule 5: until the run has the batch, the exit code is 0 only where the reader said so of itself (`--dry-run`, `--help`).
Rule 6: where no process can be had, one does it all.
"""

import contextlib
import fcntl
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from msgspec import Struct

from banana_batch.errors import BananaError, Exit, OutputError, Problem
from banana_batch.loading import by_itself, keep_what_is_loaded, leave_no_core
from banana_batch.prepared import Prepared
from banana_batch.run_settings import RunSettings
from banana_batch.store import database
from banana_batch.store.difference import Difference
from banana_batch.store.lock import take_over

from . import outcome
from .orders import Orders, breakable, stop_signals, stopped_early, stops_come_to, stops_end_a_wait, ticking

_LENGTH = struct.Struct("<Q")
_PIECE_BYTES = 1 << 20

HandOver = Callable[[Path, RunSettings, Callable[[], AbstractContextManager[Prepared]]], NoReturn]
Command = Callable[[list[str], HandOver | None], int]


class _Wanted(Struct):
    """What the run is to do: said before the manifest is read."""

    out: Path
    settings: RunSettings


class _Ready(Struct):
    """What Prepared tells of a batch; its lock comes with this."""

    difference: Difference
    warnings: list[Problem]
    fresh: bool
    unchanged: bool


def begin(arguments: list[str], command: Command) -> int:
    """Run `banana-batch run`; return its exit code.

    Args:
        command: Does it in this process; where it is handed something to hand over to, up to the first request.
    """
    leave_no_core()
    parted = _part()
    if parted is None:
        return command(arguments, None)
    if isinstance(parted, _Reader):
        return _run(arguments, parted)
    with ticking():  # an order is passed on to it just once
        return command(arguments, parted.hand_over)


def _part() -> "_Run | _Reader | None":
    # By Linux's rules a process ends with another, and a lock changes hands.
    if sys.platform != "linux":
        return None
    # Where it is ignored, the system forgets how a process ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with contextlib.ExitStack() as stack:
            ours, theirs = map(stack.enter_context, socket.socketpair())
            heard, tie = os.pipe()
            stack.callback(os.close, heard)
            stack.callback(os.close, tie)
            fcntl.fcntl(heard, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
            reader = os.fork()
            stack.pop_all()
    except OSError:
        return None
    if reader:
        theirs.close()
        os.close(heard)
        return _Reader(reader, ours, tie)
    ours.close()
    os.close(tie)
    _end_with(heard)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks the run how it stands, and may come to all of a name
    return _Run(theirs)


def _run(arguments: list[str], reader: "_Reader") -> int:
    taken = Orders()

    def come(number: int, frame: object) -> None:
        reader.tell(number)
        taken.come(number, frame)

    told = outcome.Told(json="--json" in arguments)
    # What is told, and the hook, come after the listening: whoever waits there can be stopped as anywhere.
    with outcome.json_whatever_happens(told), contextlib.ExitStack() as listening:
        listening.enter_context(stops_come_to(come, interrupting=False))
        with by_itself():
            from .running import buy
        keep_what_is_loaded()
        with stops_end_a_wait(come):
            wanted = reader.wanted()
        if wanted is None:
            listening.close()
            return reader.code()
        settings = wanted.settings
        told.out, told.json, told.budget = wanted.out, settings.json_output, settings.budget

        @contextlib.contextmanager
        def listened() -> Iterator[Orders]:
            with listening:
                yield taken

        return buy(wanted.out, settings, lambda: reader.prepared(wanted.out), told, listened)
    return told.code


class _Reader:
    """The reader as the run sees it."""

    def __init__(self, pid: int, link: socket.socket, tie: int) -> None:
        self._pid = pid
        self._link = link
        self._tie = tie
        self._code: int | None = None
        self._lock: int | None = None

    def tell(self, number: int) -> None:
        """Pass an order on; one that has ended needs none."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):  # it came while its end was being noticed
                os.kill(self._pid, number)

    def wanted(self) -> _Wanted | None:
        """Return what the run is to do; None: nothing, the reader has told all that there is to tell."""
        wanted = self._receive()
        return wanted if isinstance(wanted, _Wanted) else None

    def code(self) -> int:
        """Return the exit code of a reader that ended without a run; where an order ended it, this process ends so too.

        Raises:
            BananaError: it was killed.
        """
        code = self._wait()
        if code >= 0:
            return code
        if -code not in stop_signals():
            raise _killed(-code)
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        return 128 - code  # the first process of a container can't be ended so

    @contextlib.contextmanager
    def prepared(self, out: Path) -> Iterator[Prepared]:
        """Wait for the batch, and hold it.

        Raises:
            BananaError: whatever the reader's part raised; nothing was sent.
        """
        try:
            try:
                ready = self._receive()
            except BaseException:  # an order to stop, that came while this waited
                self.tell(signal.SIGTERM)
                self._wait()
                raise
            if isinstance(ready, BananaError):
                self._wait()
                raise ready
            if not isinstance(ready, _Ready):
                raise _broken_off(self._wait())
            if self._lock is None:
                raise OutputError(f"{out}: no file can be opened any more", "ulimit -n 1024")
            take_over(out, self._lock)
            db = database.taken_over(out)
            self._wait()
            yield Prepared(db, ready.difference, ready.warnings, ready.fresh, ready.unchanged, self._lock)
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _receive(self) -> object:
        """Return what the reader says next, and keep the lock that comes with it; None: it says nothing more."""
        length, descriptors, _, _ = socket.recv_fds(self._link, _LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
        if descriptors:
            (self._lock,) = descriptors
        if len(length) < _LENGTH.size:
            return None
        left, said = _LENGTH.unpack(length)[0], bytearray()
        while len(said) < left:
            piece = self._link.recv(min(left - len(said), _PIECE_BYTES))
            if not piece:
                return None
            said += piece
        told: object = pickle.loads(said)  # noqa: S301  # from a copy of this very process
        return told

    def _wait(self) -> int:
        """Return how the reader ended: an exit code, or a signal's number below 0."""
        if self._code is None:
            self._link.close()  # one that is still talking waits for nobody
            _, status = os.waitpid(self._pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
            os.close(self._tie)
        return self._code


def _killed(number: int) -> BananaError:
    name = signal.Signals(number).name
    return BananaError(f"what reads the manifest was killed ({name}); nothing was sent", "run again; was memory short?")


def _broken_off(code: int) -> BananaError:
    """Return what it means that the reader ended without a word, after it had said what is wanted."""
    number = signal.SIGINT if code == Exit.INTERRUPTED else -code
    if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        return stopped_early(number)
    if number > 0:
        return _killed(number)
    return BananaError(f"what reads the manifest ended with {code}; nothing was sent", "run again")


class _Run:
    """The run as the reader sees it."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def hand_over(
        self, out: Path, settings: RunSettings, ready: Callable[[], AbstractContextManager[Prepared]]
    ) -> NoReturn:
        """Say what is wanted, make the batch ready, hand both over, and end this process."""
        self._send(_Wanted(out, settings))
        try:
            with breakable(ready) as prepared:
                prepared.db.close()
                made = _Ready(prepared.difference, prepared.warnings, prepared.fresh, prepared.unchanged)
                assert prepared.lock is not None
                self._send(made, prepared.lock)
                os._exit(Exit.DONE)
        except Exception as failed:  # noqa: BLE001  # the run tells it
            told = outcome.as_told(failed) or outcome.a_bug(failed)
        self._send(told)
        os._exit(told.exit)

    def _send(self, told: _Wanted | _Ready | BananaError, *descriptors: int) -> None:
        """Say something whole: an order that comes in the middle waits. The run has it as well."""
        body = pickle.dumps(told)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
        try:
            socket.send_fds(self._link, [_LENGTH.pack(len(body))], descriptors)
            self._link.sendall(body)
        except BrokenPipeError:  # it listens no more
            os._exit(Exit.STOPPED)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(heard: int) -> None:
    """End this process as soon as nobody holds the other end of a pipe any more, even by SIGKILL."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
    fcntl.fcntl(heard, fcntl.F_SETOWN, os.getpid())
    with contextlib.suppress(BlockingIOError):  # nothing is ever written: it is open
        os.read(heard, 1)
        os._exit(Exit.INTERRUPTED)
