"""What a run shows: through real pipes and pseudo-terminals."""

import fcntl
import os
import pty
import struct
import sys
import termios
import threading
import time
from typing import Any

import pytest

from banana_batch.ports import Events
from banana_batch.report import progress as progress_module
from banana_batch.report.fanout import Fanout
from banana_batch.report.progress import Progress, fitting, status_line
from banana_batch.report.stream import Stream
from banana_batch.report.tables import width
from banana_batch.report.tally import Tally
from tests.contract.fakes import ManualClock


class Screen:
    """The other end of a pipe or a pseudo-terminal: reads all that is written."""

    def __init__(self, master: int, slave: int) -> None:
        self.master, self.slave = master, slave
        self.raw = b""
        self._came = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            if not data:
                return
            with self._came:
                self.raw += data
                self._came.notify_all()

    def wait_for(self, text: str) -> None:
        with self._came:
            assert self._came.wait_for(lambda: text.encode() in self.raw, timeout=5), self.raw

    def text(self) -> str:
        os.close(self.slave)
        self._thread.join(5)
        os.close(self.master)
        return self.raw.decode()


@pytest.fixture
def pipe() -> Screen:
    reader, writer = os.pipe()
    return Screen(reader, writer)


def terminal(columns: int) -> Screen:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return Screen(master, slave)


def shown(screen: Screen, **options: Any) -> tuple[Progress, Events, Tally]:
    tally = Tally(ManualClock())
    progress = Progress(tally, stream=Stream(screen.slave), **options)
    return progress, Fanout([tally, progress]), tally


def start(events: Events, todo: int = 1000) -> None:
    events.emit("run_started", run=1, out="outputs/cats", jobs={"pending": todo}, todo=todo, budget_micro=None)


def finish(events: Events, index: int, outcome: str = "paid", verdict: str = "ok", message: str | None = None) -> None:
    events.emit("sent", index=index, id=f"id{index}", attempt=1, kind="m 1K")
    events.emit(
        "answered", index=index, id=f"id{index}", attempt=1, verdict=verdict, outcome=outcome, status=200,
        latency_s=12.0, credits_micro=2_000_000, message=message,
    )  # fmt: skip
    if outcome == "paid":
        events.emit("stored", index=index, id=f"id{index}", path="p", bytes=1)


def test_without_a_terminal_there_are_plain_lines_only(pipe: Screen) -> None:
    """A line a minute and one per event that matters; no carriage return, no escape."""
    progress, events, _ = shown(pipe, minute_s=0.05)
    start(events)
    finish(events, 1)
    events.emit("incident_started", cause="refused \x1b[31mconnections")
    events.emit("slept", gap_s=7500.0)
    pipe.wait_for("calls take 12 s (p95 12 s)")
    events.emit("run_ended", exit=0, reason="done")
    progress.close()
    text = pipe.text()
    assert "\r" not in text
    assert "\x1b" not in text
    assert "1/1000 done, 0 in flight, 2 credits, " in text
    assert "This machine slept for 2 h 5 min" in text
    assert all(line[:4].isdigit() and line[19] == " " for line in text.splitlines())


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_fits_the_terminal_and_lines_stand_above_it(columns: int) -> None:
    """Also with every figure shown; the last state stays."""
    screen = terminal(columns)
    progress, events, _ = shown(screen)
    start(events, todo=12_000)
    screen.wait_for("0/12000")
    for index in range(11_000):
        finish(events, index, *(("refused", "refused_400") if index % 10 == 0 else ("paid", "ok")))
    events.emit("incident_started", cause="refused connections")
    screen.wait_for("The endpoint can't be used")
    events.emit("run_ended", exit=3, reason="failed")
    progress.close()
    text = screen.text()
    frames = [frame for line in text.split("\n") for frame in line.split("\r") if frame.strip()]
    bars = [frame for frame in frames if "/12000" in frame]
    assert max(map(width, bars)) <= columns
    assert "11000/12000  92%" in bars[-1]
    assert "1100 failed" in bars[-1]
    assert [frame for frame in frames if frame.startswith("The endpoint can't be used")]
    assert text.endswith("\r\n")


def test_the_bar_is_redrawn_at_most_ten_times_a_second() -> None:
    """However many events come."""
    screen = terminal(80)
    progress, events, _ = shown(screen)
    start(events, todo=20_000)
    began_s = time.monotonic()
    for index in range(20_000):
        finish(events, index)
    events.emit("run_ended", exit=0, reason="done")
    progress.close()
    took_s = time.monotonic() - began_s
    assert screen.text().count("/20000") <= took_s * 10 + 6


def test_quiet_is_silent_on_success(pipe: Screen) -> None:
    """Though the endpoint was away for a while: cron mails only on trouble."""
    progress, events, _ = shown(pipe, quiet=True, minute_s=0.01)
    start(events)
    events.emit("incident_started", cause="c")
    events.emit("throttled", limit=4, cooldown_s=1.0)
    events.emit("incident_ended", cause="c", doubts=0, duration_s=60.0)
    events.emit("run_ended", exit=0, reason="done")
    progress.close()
    assert pipe.text() == ""


@pytest.mark.parametrize("event", ["stop", "run_ended"])
def test_quiet_tells_the_whole_story_once_it_ends_badly(pipe: Screen, event: str) -> None:
    """What was kept back comes first."""
    progress, events, _ = shown(pipe, quiet=True)
    start(events)
    events.emit("incident_started", cause="c")
    if event == "stop":
        events.emit("stop", exit=77, message="The key was refused", hint="Check TT_API_KEY")
    events.emit("run_ended", exit=77, reason="key")
    progress.close()
    lines = pipe.text().splitlines()
    assert "can't be used (c)" in lines[0]
    assert lines[1:] == [] if event == "run_ended" else "The key was refused. Check TT_API_KEY" in lines[1]


@pytest.mark.parametrize(("verbose", "told"), [(False, 3), (True, 8)])
def test_the_first_failures_of_a_class_are_told(pipe: Screen, verbose: bool, told: int) -> None:
    """The rest is counted, and it is said so, unless verbose."""
    progress, events, _ = shown(pipe, verbose=verbose)
    start(events)
    for index in range(8):
        finish(events, index, "refused", "refused_400", "Banned\nwords\x1b[2J")
    finish(events, 9, "refused_for_now", "busy")
    events.emit("fetch_failed", index=1, id="a", error="not_found", message="404", lost=False)
    progress.close()
    text = pipe.text()
    assert text.count("failed: refused_400: Banned words [2J") == told
    assert text.count("only counted") == (not verbose)
    assert text.count("could not be fetched yet") == verbose
    assert "busy" not in text


def test_throttling_is_told_once_a_minute(pipe: Screen) -> None:
    """A night of it does not fill the mail."""
    progress, events, _ = shown(pipe)
    start(events)
    for limit in (8, 4, 2):
        events.emit("throttled", limit=limit, cooldown_s=0.0)
    progress.close()
    assert pipe.text().count("fewer calls: ") == 1


def test_a_long_pause_is_told_within_the_minute_and_in_each_line(pipe: Screen) -> None:
    """Nobody has to wonder for a minute why nothing moves; the pause is told once, however often it is taught."""
    progress, events, tally = shown(pipe)
    start(events)
    for cooldown_s in (2.0, 55.0, 54.0):
        events.emit("throttled", limit=4, cooldown_s=cooldown_s)
    progress.close()
    told = pipe.text()
    assert told.count("pausing 55 s") == 1
    assert "pausing 54 s" not in told
    assert status_line(tally).endswith("pausing for another 54 s: the endpoint wants fewer calls")


def test_an_outage_is_in_each_line() -> None:
    """For how long it lasts already; no longer once it is over."""
    clock = ManualClock()
    tally = Tally(clock)
    start(tally)
    tally.emit("incident_started", cause="c")
    clock.now_s = 120.0
    assert status_line(tally).endswith("the endpoint can't be used for 2 min now")
    tally.emit("incident_ended", duration_s=120.0, doubts=0)
    assert "can't be used" not in status_line(tally)


def test_a_reader_that_went_away_is_no_error() -> None:
    """EPIPE on a closed pipe, EBADF on a closed standard error: the run goes on in silence."""
    reader, writer = os.pipe()
    os.close(reader)
    progress, events, _ = shown(Screen(os.open(os.devnull, os.O_RDONLY), writer), minute_s=0.01)
    start(events)
    events.emit("note", message="nobody hears this")
    progress.close()
    os.close(writer)
    gone = Stream(writer)
    gone.write("x")
    gone.flush()
    assert not gone.isatty()


def test_a_closed_standard_error_is_never_written_to(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Started without one, descriptor 2 may be the state file."""
    monkeypatch.setattr(sys, "stderr", None)
    stream = Stream()
    assert not stream.isatty()
    assert stream.write("lost") == 4
    assert capfd.readouterr().err == ""


def test_a_full_terminal_that_does_not_wait_misses_a_part_only() -> None:
    """Once it is read again, what comes later is shown."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stream = Stream(writer)
    stream.write("x" * 1_000_000)
    assert len(os.read(reader, 1_000_000)) < 1_000_000
    stream.write("later")
    assert os.read(reader, 1_000_000).endswith(b"later")
    assert stream.columns() == 80
    for fd in (reader, writer):
        os.close(fd)


def test_a_full_pipe_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are noted down while the write hangs, and the end does not wait for the reader."""
    monkeypatch.setattr(progress_module, "CLOSE_PATIENCE_S", 0.05)
    reader, writer = os.pipe()
    tally = Tally(ManualClock())
    progress = Progress(tally, stream=Stream(writer))
    began_s = time.monotonic()
    for index in range(2000):
        progress.emit("note", message=f"{index} " + "x" * 500)
    with progress.paused():
        pass
    progress.close()
    assert time.monotonic() - began_s < 2
    os.close(reader)
    assert progress._background.close(5)
    os.close(writer)


def test_a_question_has_the_terminal_for_itself() -> None:
    """While paused nothing is drawn; afterwards all of it comes."""
    screen = terminal(80)
    progress, events, _ = shown(screen)
    start(events)
    screen.wait_for("0/1000")
    with progress.paused():
        before = len(screen.raw)
        events.emit("note", message="later")
        os.write(screen.slave, b"Go on? [y/N] ")
        screen.wait_for("Go on? ")
        assert b"later" not in screen.raw[before:]
    screen.wait_for("later")
    progress.close()
    screen.text()


DRAIN = {"reason": "SIGINT", "on_wire": 8, "at_stake_micro": 16_000_000, "typical_s": 12.0}


@pytest.mark.parametrize(
    ("event", "facts", "said"),
    [
        ("drain", DRAIN, "8 calls on the wire, usually 12 s each, 16 credits ($0.16) at stake"),
        ("drain", DRAIN | {"typical_s": None}, "8 calls on the wire, 16 credits"),
        ("drain", DRAIN | {"on_wire": 0}, "Stopping (SIGINT): no call is on the wire"),
        ("gave_up", {"after_s": 900.0, "cause": "DNS"}, "Giving up after 15 min: DNS"),
        ("incident_ended", {"doubts": 8, "duration_s": 60.0}, "answers again after 1 min; 8 requests in doubt"),
        ("estimate", {"least_micro": 10**6, "expected_micro": 2 * 10**6, "most_micro": 3 * 10**6}, "1 to 3"),
        ("stop", {"exit": 70, "message": "Odd", "hint": None}, "Stopping: Odd"),
        ("throttled", {"limit": 4, "cooldown_s": 20.0}, "4 at a time now, pausing 20 s"),
        ("fetch_failed", {"index": 1, "id": "a", "error": "gone", "message": "", "lost": True}, "lost: paid"),
        ("run_started", {"out": "o", "jobs": {"done": 1, "pending": 1}, "todo": 1, "budget_micro": 10**6},
         "Making 1 of 2 images in o; budget 1 credit ($0.01)"),
        ("run_started", {"out": "o", "jobs": {"done": 1, "paid": 1}, "todo": 1, "budget_micro": None, "buys": False},
         "Fetching 1 of 2 images in o"),
    ],
)  # fmt: skip
def test_what_matters_is_said_in_a_sentence(pipe: Screen, event: str, facts: dict[str, Any], said: str) -> None:
    """What happened, what is at stake, what to do."""
    tally = Tally(ManualClock())
    progress = Progress(tally, stream=Stream(pipe.slave))
    progress.emit(event, **facts)
    progress.close()
    assert said in pipe.text()


def test_on_a_narrow_terminal_words_are_shortened() -> None:
    """No figure is left out for it."""
    tally = Tally(ManualClock())
    start(tally)
    for index in range(4):
        finish(tally, index, "in_doubt", "cut")
        tally.emit("sent", resend=False)
    finish(tally, 9)
    tally.emit("fetch_failed", lost=True)
    assert fitting(tally, 200).startswith("4 in flight, 2 credits, 4 in doubt, 1 lost")
    assert fitting(tally, 60).startswith("4 sent, 2 cr, 4 in doubt, 1 lost")


def test_a_line_tells_what_waits_to_be_fetched() -> None:
    """Paid images that are not on disk yet."""
    tally = Tally(ManualClock())
    tally.emit("run_started", jobs={"paid": 2}, todo=2)
    assert status_line(tally) == "0/2 done, 0 in flight, 0 credits, 2 images to fetch"
