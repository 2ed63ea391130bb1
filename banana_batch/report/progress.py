"""What a run shows while it works.

Rule 1: on a terminal a bar, redrawn at most ten times a second, with lines above it; elsewhere one plain line a minute
        and one per event that matters: no carriage return, no colour.
Rule 2: events only count and note down; a thread draws. A stopped terminal or a full pipe holds up no paid call.
Rule 3: quiet means silent on success: trouble is kept back until the run turns out to end badly.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from banana_batch.money import credits_text
from banana_batch.ports import Listener
from banana_batch.text import duration_text, plural

from .background import Background
from .moments import seconds_text
from .phrases import PHRASES
from .stream import Stream
from .tally import Tally

if TYPE_CHECKING:
    from tqdm import tqdm

REDRAW_S = 0.1
MINUTE_S = 60.0
CLOSE_PATIENCE_S = 1.0

# A minute of small changes is one line; a pause of this length is worth one of its own.
LONG_PAUSE_S = 10.0

# Of each class of failure so many are told one by one, the rest is only counted.
TOLD_PER_CLASS = 3

_MAX_LINES = 1000
_URGENT = frozenset({"stop", "gave_up", "unrecorded"})
_COUNTED = frozenset({"sent", "stored"})
_CHATTER = frozenset({"run_started", "estimate", "throttled"})
_BAR_FORMAT = "{n_fmt}/{total_fmt} {percentage:3.0f}% {bar} {desc}"
LEAST_BAR = 10
_LINES = 20


class Progress:
    """Shows a run; implements `ports.Events`. The tally has to be told each event before.

    Args:
        stream: Where to; standard error if nothing else is said.
        quiet: Say nothing but trouble, and that only when the run ends with work left or failed.
        verbose: Tell every failure, not only the first of a class.
        bar: Draw a bar where `stream` is a terminal.
        minute_s: Seconds between two plain lines.
    """

    def __init__(
        self,
        tally: Tally,
        *,
        stream: Stream | None = None,
        quiet: bool = False,
        verbose: bool = False,
        bar: bool = True,
        minute_s: float = MINUTE_S,
    ) -> None:
        self._tally = tally
        self._stream = stream or Stream()
        self._quiet = quiet
        self._verbose = verbose
        self._on_terminal = self._stream.isatty()
        self._draws = bar and self._on_terminal and not quiet
        self._minute_s = minute_s
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._held: deque[str] = deque(maxlen=_MAX_LINES)
        self._told: Counter[str] = Counter()
        self._throttle_told_s = self._pause_told_s = float("-inf")
        self._started = self._ended = self._dirty = False
        self._line_due_s = float("inf")
        self._drawn_s = 0.0
        self._counted = (0, 0, 0)
        self._bar: tqdm[Any] | None = None
        self._drawing = threading.Lock()
        self._background = Background("banana-progress", self._turn, REDRAW_S if self._draws else min(1.0, minute_s))

    def emit(self, event: str, /, **facts: object) -> None:
        """Note down what is worth a line."""
        self._hear(event, facts)

    def listener(self, event: str) -> Listener | None:
        """See ports.Events. What is only counted is seen in the tally."""
        return None if event in _COUNTED else partial(self._hear, event)

    def _hear(self, event: str, facts: Mapping[str, Any]) -> None:
        self._dirty = True
        phrase = PHRASES.get(event)
        if phrase is not None and self._worth_telling(event, facts):
            self._note(event, phrase(facts))
        if event == "run_started":
            self._line_due_s = time.monotonic() + self._minute_s
            self._started = True
        elif event == "run_ended":
            self._ended = True
            if facts["exit"]:
                self._release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the terminal free, for a question; what happens meanwhile is shown afterwards."""
        locked = self._drawing.acquire(timeout=CLOSE_PATIENCE_S)
        try:
            if locked:
                self._show_lines()
                if self._bar is not None:
                    self._bar.clear()
            yield
        finally:
            if locked:
                self._drawing.release()

    def close(self) -> None:
        """Show what is left and leave the terminal to others; gives up on one that hangs."""
        self._ended = True
        self._background.close(CLOSE_PATIENCE_S)

    def _worth_telling(self, event: str, facts: Mapping[str, Any]) -> bool:
        if event == "answered":
            return facts["outcome"] in ("refused", "in_doubt") and self._first_of_class(facts["verdict"])
        if event == "fetch_failed":
            return self._verbose or (facts["lost"] and self._first_of_class(facts["error"]))
        if event == "throttled" and not self._verbose:
            now_s, pause_s = time.monotonic(), facts["cooldown_s"]
            if now_s < (self._pause_told_s if pause_s >= LONG_PAUSE_S else self._throttle_told_s):
                return False
            self._throttle_told_s = now_s + self._minute_s
            if pause_s >= LONG_PAUSE_S:
                self._pause_told_s = now_s + pause_s
        return not (self._quiet and event in _CHATTER)

    def _first_of_class(self, name: str) -> bool:
        self._told[name] += 1
        if self._told[name] == TOLD_PER_CLASS + 1 and not self._verbose:
            self._note("more", f"Further jobs that end with {name} are only counted here; run.log names them")
        return self._verbose or self._told[name] <= TOLD_PER_CLASS

    def _note(self, event: str, sentence: str) -> None:
        line = sentence if self._on_terminal else f"{_now_text()} {sentence}"
        at_once = not self._quiet or event in _URGENT or (event == "drain" and self._on_terminal)
        if event in _URGENT:
            self._release()
        (self._lines if at_once else self._held).append(line)
        if at_once:
            self._background.wake()

    def _release(self) -> None:
        self._lines.extend(self._held)
        self._held.clear()

    def _turn(self) -> None:
        with self._drawing:
            self._show_lines()
            if self._draws:
                self._draw()
            elif not self._quiet and not self._ended and time.monotonic() >= self._line_due_s:
                self._line_due_s += self._minute_s
                prefix = "" if self._on_terminal else f"{_now_text()} "
                self._stream.write(f"{prefix}{status_line(self._tally)}\n")

    def _show_lines(self) -> None:
        while self._lines:
            line = self._lines.popleft()
            if self._bar is None:
                self._stream.write(line + "\n")
            else:
                self._bar.write(line, file=self._stream)

    def _draw(self) -> None:
        now_s = time.monotonic()
        counted = (self._tally.settled, self._tally.in_flight, self._tally.spent_micro)
        if not self._started or not (
            self._dirty or counted != self._counted or self._ended or now_s - self._drawn_s >= 1.0
        ):
            return
        self._counted = counted
        if self._bar is None:
            self._bar = _new_bar(self._stream, self._tally)
        self._dirty = False
        self._drawn_s = now_s
        self._bar.n = self._tally.done_before + self._tally.settled
        self._bar.total = max(self._tally.done_before + self._tally.todo, self._bar.n)
        columns = self._stream.columns()
        self._bar.ncols = columns - 1
        self._bar.set_description_str(fitting(self._tally, columns), refresh=True)
        if self._ended:
            self._bar.close()
            self._draws = False


def figures(tally: Tally, *, short: bool = False) -> list[str]:
    """Return where a run stands, figure by figure; those that are zero and need no attention are left out."""
    jobs = tally.jobs
    eta_s = tally.eta_s()
    shown = [
        f"{tally.in_flight} {'sent' if short else 'in flight'}",
        f"{credits_text(tally.spent_micro)} {'cr' if short else 'credits'}",
        f"{jobs['failed']} failed" if jobs["failed"] else "",
        f"{jobs['in_doubt']} in doubt" if jobs["in_doubt"] else "",
        f"{jobs['lost']} lost" if jobs["lost"] else "",
        f"{duration_text(eta_s)}{'' if short else ' left'}" if eta_s is not None else "",
    ]
    return [figure for figure in shown if figure]


def status_line(tally: Tally) -> str:
    """Return where a run stands, in one line."""
    shown = [f"{tally.jobs['done']}/{tally.done_before + tally.todo} done", *figures(tally)]
    if tally.jobs["paid"]:
        shown.append(f"{plural(tally.jobs['paid'], 'image')} to fetch")
    if tally.latencies.count:
        median, slow = tally.latencies.quantile(0.5), tally.latencies.quantile(0.95)
        shown.append(f"calls take {seconds_text(median)} (p95 {seconds_text(slow)})")
    if tally.outage_s is not None:
        shown.append(f"the endpoint can't be used for {duration_text(tally.outage_s)} now")
    elif tally.pause_left_s >= 1:
        shown.append(f"pausing for another {duration_text(tally.pause_left_s)}: the endpoint wants fewer calls")
    return ", ".join(shown)


def fitting(tally: Tally, columns: int) -> str:
    """Return the figures beside the bar, in fewer words where the terminal is narrow."""
    total = tally.done_before + tally.todo
    room = columns - 2 * len(str(total)) - len("/ 100%   ") - LEAST_BAR
    words = ", ".join(figures(tally))
    return words if len(words) <= room else ", ".join(figures(tally, short=True))


def _now_text() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _new_bar(stream: Stream, tally: Tally) -> "tqdm[Any]":
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
        # No second thread: this one draws often enough.
        monitor_interval = 0

    # tqdm's own lock is shared between processes, and costs a semaphore and an import that nothing here needs.
    Bar.set_lock(threading.RLock())
    return Bar(
        file=stream,
        desc=fitting(tally, stream.columns()),
        initial=tally.done_before,
        total=max(1, tally.done_before + tally.todo),
        bar_format=_BAR_FORMAT,
        ncols=stream.columns() - 1,
        # Said, not asked for: on a terminal that does not know its height (a serial console, a container) tqdm finds
        # 0 lines and draws nothing. tests/acceptance/test_terminal.py
        nrows=_LINES,
        mininterval=0,
    )
