"""The terminal of a run: progress on standard error, questions where somebody can answer, orders to stop."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence

from banana_batch import money
from banana_batch.batch import Run
from banana_batch.engine.stops import Stop
from banana_batch.errors import Exit
from banana_batch.ports import Listener
from banana_batch.report.progress import Progress, status_line
from banana_batch.report.stream import Stream
from banana_batch.report.tally import Tally
from banana_batch.run_settings import RunSettings
from banana_batch.store.queries import Doubt
from banana_batch.text import plural

from .orders import Orders
from .questions import doubt_line, is_terminal

# One keystroke may arrive twice, and one hang-up from the system and the shell: the second counts after this long.
_SECOND_AFTER_S = 1.0


class Terminal:
    """Implements `batch.View`."""

    def __init__(self, tally: Tally, settings: RunSettings) -> None:
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
