"""The terminal: progress on standard error, questions where somebody can answer, signals."""

import asyncio
import contextlib
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from banana_batch import money
from banana_batch.batch import Run
from banana_batch.engine.stops import Stop
from banana_batch.errors import Exit, Stopped
from banana_batch.planning import Prepared
from banana_batch.ports import Listener
from banana_batch.report.moments import local_text
from banana_batch.report.progress import Progress, status_line
from banana_batch.report.stream import Stream
from banana_batch.report.tally import Tally
from banana_batch.settings import Settings
from banana_batch.store.queries import Doubt
from banana_batch.text import plural, printable

# One keystroke may arrive twice, and one hang-up from the system and the shell: the second counts after this long.
_SECOND_AFTER_S = 1.0
_NOTICED_WITHIN_S = 0.25


class Terminal:
    """Implements `batch.View`."""

    def __init__(self, tally: Tally, settings: Settings) -> None:
        self._settings = settings
        self._progress = Progress(
            tally, quiet=settings.quiet, verbose=settings.verbose, bar=not settings.no_progress and not settings.quiet
        )

    @property
    def can_ask(self) -> bool:
        """Somebody sits at a terminal, and did not say yes to everything beforehand."""
        return is_terminal() and not self._settings.yes

    def emit(self, event: str, /, **facts: object) -> None:
        """See ports.Events."""
        self._progress.emit(event, **facts)

    def listener(self, event: str) -> Listener | None:
        """See ports.Events."""
        return self._progress.listener(event)

    def close(self) -> None:
        """Leave the terminal to what is printed next."""
        self._progress.close()

    async def ask(self, question: str) -> bool:
        """Ask a yes-or-no question. Anything but yes is no."""
        with self._progress.paused():
            answer = await _typed(f"{question} [y/N] ")
        return answer.strip().lower() in ("y", "yes")

    async def ask_doubts(self, doubts: Sequence[Doubt]) -> bool:
        """Ask once, in money, whether requests without an answer are sent again."""
        at_risk = money.priced_text(sum(doubt.at_risk for doubt in doubts))
        question = (
            f"{plural(len(doubts), 'request')} got no answer; at most {at_risk} may be paid twice."
            " Send again? [y/N/list] "
        )
        while True:
            answer = (await _typed(question)).strip().lower()
            if answer not in ("l", "list"):
                return answer in ("y", "yes")
            for doubt in doubts:
                Stream().write(doubt_line(doubt) + "\n")


def doubt_line(doubt: Doubt) -> str:
    """Return what is known of a request without an answer."""
    sent = local_text(doubt.sent_us)
    why = printable(doubt.message or doubt.error_class or "no answer", 120)
    return f"  {printable(doubt.id, 60)}: sent {sent}, {why}; at risk {money.priced_text(doubt.at_risk)}"


def is_terminal() -> bool:
    """Tell whether questions reach a person: standard input and error are a terminal."""
    return bool(sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty())


def confirmed(question: str) -> bool:
    """Ask a yes-or-no question before a run begins; False where nobody can answer."""
    if not is_terminal():
        return False
    Stream().write(f"{question} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _typed(question: str) -> str:
    """Read a line without stopping the calls in flight. End of input is an empty answer."""
    Stream().write(question)
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        if not line.done():
            line.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin.fileno(), read)
    try:
        return await line
    finally:
        loop.remove_reader(sys.stdin.fileno())


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
    with _stops_come_to(taken.come, interrupting=False):
        yield taken


@contextlib.asynccontextmanager
async def signals(run: Run, view: Terminal, taken: Orders) -> AsyncIterator[None]:
    """Turn signals into drains: the first lets calls in flight end, the second cuts them off.

    Own handlers: asyncio's would cancel the main task at the first SIGINT, and with it every paid call in flight.
    """
    loop = asyncio.get_running_loop()
    first: dict[signal.Signals, float] = {}

    def stop(number: signal.Signals) -> None:
        now_s = loop.time()
        hard = Exit.INTERRUPTED if number is signal.SIGINT else Exit.TERMINATED
        if not first:
            first[number] = now_s
            run.drain(Stop(Exit.STOPPED, f"{number.name}: stopping", "run again to go on"))
        elif number is signal.SIGTERM or now_s - min(first.values()) >= _SECOND_AFTER_S:
            run.abort(Stop(hard, f"a second {number.name}: calls in flight are cut off", "run again to go on"))

    def show() -> None:
        view.emit("note", message=status_line(run.tally))

    loop.add_signal_handler(signal.SIGUSR1, show)
    taken.hand_to(lambda number: loop.call_soon_threadsafe(stop, number))
    try:
        yield
    finally:
        taken.hand_to(None)
        loop.remove_signal_handler(signal.SIGUSR1)


def _stop_signals() -> list[signal.Signals]:
    """Return the signals that are an order to stop."""
    # A lost ssh, a closed window: calls in flight are let end. Under nohup it is no order at all.
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


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
            with _stops_come_to(halt, interrupting=True), _ticking():
                prepared = stack.enter_context(ready())
        except BaseException:
            if not told:
                raise
        if prepared is None or told:
            if prepared is not None:  # the order was swallowed on its way, by code in C that called back
                prepared.db.close()
            raise Stopped(f"{told[0].name}: stopped before anything was sent", "run again; nothing is lost")
        yield prepared


@contextlib.contextmanager
def _stops_come_to(handler: Callable[[int, object], None], *, interrupting: bool) -> Iterator[None]:
    """Hand orders to stop to a handler.

    Args:
        interrupting: They end a system call that waits, too. It is the other way round before and afterwards.
    """
    before = {number: signal.signal(number, handler) for number in _stop_signals()}
    try:
        for number in before:
            signal.siginterrupt(number, interrupting)
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
            signal.siginterrupt(number, not interrupting)


@contextlib.contextmanager
def _ticking() -> Iterator[None]:
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
