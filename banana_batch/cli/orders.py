"""Orders to stop: signals, from the command's first moment to its last.

Rule 1: before the first request an order ends the command; while calls are in flight it lets them end (terminal.py).
Rule 2: none is lost between the two: it waits for whoever can take it.
Rule 3: handlers of our own: what Python does by itself at a SIGINT would break the loop, or a paid call.
"""

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from banana_batch.errors import Stopped
from banana_batch.prepared import Prepared

_NOTICED_WITHIN_S = 0.25


class Orders:
    """Takes orders to stop from before the loop is made until it is closed: raised in there they would break it."""

    def __init__(self) -> None:
        self._to: Callable[[signal.Signals], object] | None = None
        self._waiting: deque[signal.Signals] = deque()

    def come(self, number: int, _frame: object) -> None:
        """Be the handler of a signal."""
        self._waiting.append(signal.Signals(number))
        self.hand_to(self._to)

    def hand_to(self, to: Callable[[signal.Signals], object] | None) -> None:
        """Hand each order, those that wait too, to whoever takes them from now on; None: nobody can, they wait.

        The next may come in the middle of this: each is taken once.
        """
        self._to = to
        while to is not None:
            try:
                number = self._waiting.popleft()
            except IndexError:
                return
            to(number)


@contextlib.contextmanager
def orders() -> Iterator[Orders]:
    """Take orders to stop for as long as the context lasts. One that nobody came to take is forgotten then: the run is
    over."""
    taken = Orders()
    with stops_come_to(taken.come, interrupting=False):
        yield taken


def stop_signals() -> list[signal.Signals]:
    """Return the signals that are an order to stop."""
    # A lost ssh, a closed window: calls in flight are let end. Under nohup it is no order at all.
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


def stopped_early(number: int) -> Stopped:
    """Return what a person is told of an order that came before the first request."""
    name = signal.Signals(number).name
    return Stopped(f"{name}: stopped before anything was sent", "run again; nothing is lost")


class _Broken(BaseException):
    """Raised wherever the program is; no handler of errors takes it for one."""


@contextlib.contextmanager
def breakable(ready: Callable[[], AbstractContextManager[Prepared]]) -> Iterator[Prepared]:
    """Let an order to stop break off what comes before the first request: a manifest of a million rows is long to
    read, a pipe may never end, and there is nothing in flight to wait for.

    Raises:
        Stopped: it was broken off.
    """
    told: list[signal.Signals] = []

    def halt(number: int, _frame: object) -> None:
        if not told:
            told.append(signal.Signals(number))
            raise _Broken

    prepared = None
    with contextlib.ExitStack() as stack:
        try:
            with stops_end_a_wait(halt):
                prepared = stack.enter_context(ready())
        except BaseException:
            if not told:
                raise
        if prepared is None or told:
            if prepared is not None:  # the order was swallowed on its way, by code in C that called back
                prepared.db.close()
            raise stopped_early(told[0])
        yield prepared


@contextlib.contextmanager
def stops_come_to(handler: Callable[[int, object], None], *, interrupting: bool) -> Iterator[None]:
    """Hand orders to stop to a handler.

    Args:
        interrupting: They end a system call that waits, too. It is the other way round before and afterwards.
    """
    before = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        for number in before:
            signal.siginterrupt(number, interrupting)
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
            signal.siginterrupt(number, not interrupting)


@contextlib.contextmanager
def stops_end_a_wait(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Hand orders to stop to a handler, at once, whatever system call this thread waits in."""
    with stops_come_to(handler, interrupting=True), ticking():
        yield


@contextlib.contextmanager
def ticking() -> Iterator[None]:
    """Let an order be noticed that comes while this thread waits for its turn: else only after the next system call."""
    ticking = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _NOTICED_WITHIN_S, _NOTICED_WITHIN_S)
    woken = signal.set_wakeup_fd(-1)  # the loop takes nothing in meanwhile: its pipe would be full in a minute
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, ticking)
