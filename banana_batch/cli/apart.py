"""A run begins in two processes at once: one reads what was asked for, the other loads what will send it.

    the run: the command's own process ──fork──► the reader: options, settings, manifest, plan
      loads HTTP client and engine                  │
      Wanted, Ready + the lock ◄──────socket────────┘ ends

Each takes a processor for some 0.15 s: one after the other, the first call would wait for both.

Rule 1: the reader is the command as it would be in one process, up to the first request: same order, same words, same
        exit code. It sends nothing; what could send is not even loaded there.
Rule 2: the batch's lock is never let go: the run has it before the reader ends.
Rule 3: an order to stop goes to both, whichever the system told; the reader takes back what it began.
Rule 4: however the run ends, the reader ends at once (`_tie`). That is a crash while planning, which harms no batch.
Rule 5: where no process can be had, one does it all.
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
from typing import Any, NoReturn

from msgspec import Struct

from banana_batch.errors import BananaError, Exit, Problem
from banana_batch.loading import by_itself, keep_what_is_loaded, leave_no_core
from banana_batch.prepared import Prepared
from banana_batch.run_settings import RunSettings
from banana_batch.store import database
from banana_batch.store.difference import Difference

from . import outcome
from .orders import Orders, breakable, stop_signals, stops_come_to, stops_end_a_wait

_LENGTH = struct.Struct("<Q")

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
    try:
        parted = _part()
    except OSError:
        parted = None
    if parted is None or isinstance(parted, _Run):
        return command(arguments, None if parted is None else parted.hand_over)
    return _run(arguments, parted)


def _part() -> "_Run | _Reader | None":
    if sys.platform != "linux":  # a process ends with another by its rules
        return None
    with contextlib.ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        heard, tie = os.pipe()
        stack.callback(os.close, heard)
        stack.callback(os.close, tie)
        reader = os.fork()
        stack.pop_all()
    if reader:
        theirs.close()
        os.close(heard)
        return _Reader(reader, ours, tie)
    ours.close()
    os.close(tie)
    _end_with(heard)
    return _Run(theirs)


def _run(arguments: list[str], reader: "_Reader") -> int:
    taken = Orders()

    def come(number: int, frame: object) -> None:
        reader.tell(number)
        taken.come(number, frame)

    told = outcome.Told(json="--json" in arguments)
    with stops_come_to(come, interrupting=False):
        with by_itself():
            from .running import Work, finish
        keep_what_is_loaded()
        with outcome.json_whatever_happens(told):
            with stops_end_a_wait(come):
                wanted = reader.wanted()
            if wanted is None:
                return reader.code()
            settings = wanted.settings
            told.out, told.json, told.budget = wanted.out, settings.json_output, settings.budget
            work = Work(
                wanted.out,
                settings,
                lambda: breakable(lambda: reader.prepared(wanted.out)),
                os.environ,
                run_command=["banana-batch", *arguments],
            )
            return finish(work, told, taken)
    return told.code


class _Reader:
    """The reader as the run sees it."""

    def __init__(self, pid: int, link: socket.socket, tie: int) -> None:
        self._pid = pid
        self._link = link
        self._tie = tie
        self._code: int | None = None

    def tell(self, number: int) -> None:
        """Pass an order on; one that has ended needs none."""
        if self._code is None:
            os.kill(self._pid, number)

    def wanted(self) -> _Wanted | None:
        """Return what the run is to do; None: nothing, the reader has told all that there is to tell."""
        wanted, _ = self._receive()
        return wanted if isinstance(wanted, _Wanted) else None

    def code(self) -> int:
        """Return the exit code of a reader that ended without a run; where an order ended it, this process ends so too.

        Raises:
            BananaError: it was killed.
        """
        code = self._wait()
        if code >= 0:
            return code
        number = signal.Signals(-code)
        if number in stop_signals():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise BananaError(
            f"what reads the manifest was killed ({number.name}); nothing was sent", "run again; was memory short?"
        )

    @contextlib.contextmanager
    def prepared(self, out: Path) -> Iterator[Prepared]:
        """Wait for the batch, and hold it.

        Raises:
            BananaError: whatever the reader's part raised; nothing was sent.
        """
        try:
            ready, descriptors = self._receive()
        except BaseException:  # an order to stop, that came while this waited
            self.tell(signal.SIGTERM)
            self._wait()
            raise
        if isinstance(ready, _Ready):
            (lock,) = descriptors
            try:
                db = database.taken_over(out)
                self._wait()
                yield Prepared(db, ready.difference, ready.warnings, ready.fresh, ready.unchanged, lock)
            finally:
                os.close(lock)
        elif isinstance(ready, BananaError):
            self._wait()
            raise ready
        else:
            raise BananaError(f"what reads the manifest ended with {self.code()}; nothing was sent", "run again")

    def _receive(self) -> tuple[Any, list[int]]:
        """Return what the reader says next, with descriptors; None: it says nothing more."""
        length, descriptors, _, _ = socket.recv_fds(self._link, _LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
        if len(length) < _LENGTH.size:
            return None, []
        left, said = _LENGTH.unpack(length)[0], bytearray()
        while len(said) < left:
            piece = self._link.recv(left - len(said))
            if not piece:
                return None, []
            said += piece
        return pickle.loads(said), descriptors  # noqa: S301  # from a copy of this very process

    def _wait(self) -> int:
        if self._code is None:
            _, status = os.waitpid(self._pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
            self._link.close()
            os.close(self._tie)
        return self._code


class _Run:
    """The run as the reader sees it."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def hand_over(
        self, out: Path, settings: RunSettings, ready: Callable[[], AbstractContextManager[Prepared]]
    ) -> NoReturn:
        """Say what is wanted, make the batch ready, hand both over, and end this process."""

        @contextlib.contextmanager
        def said() -> Iterator[Prepared]:
            self._send(_Wanted(out, settings))
            with ready() as prepared:
                yield prepared

        try:
            with breakable(said) as prepared:
                prepared.db.close()
                made = _Ready(prepared.difference, prepared.warnings, prepared.fresh, prepared.unchanged)
                assert prepared.lock is not None
                self._send(made, prepared.lock)
                os._exit(Exit.DONE)
        except Exception as failed:  # noqa: BLE001  # the run tells it
            self._send(outcome.as_told(failed) or outcome.a_bug(failed))
        os._exit(Exit.DONE)

    def _send(self, told: _Wanted | _Ready | BananaError, *descriptors: int) -> None:
        body = pickle.dumps(told)
        socket.send_fds(self._link, [_LENGTH.pack(len(body))], descriptors)
        self._link.sendall(body)


def _end_with(heard: int) -> None:
    """End this process as soon as nobody holds the other end of a pipe any more, even by SIGKILL."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(heard, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(heard, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    with contextlib.suppress(BlockingIOError):  # nothing is ever written: it is open
        os.read(heard, 1)
        os._exit(Exit.INTERRUPTED)
