"""run.log: one event a line, as JSON.

Rule 1: `emit` only notes the event down (under a microsecond); a thread writes, every 0.2 s, sooner where there
        are many, at once for events that matter.
Rule 2: one record is one line of ASCII: other people's text is bounded and freed of controls, then escaped
        (safety.md, S10).
Rule 3: a log that can't be written never ends a run: it is told once, and tried again with the next events.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pydantic_core import to_json

from banana_batch.errors import OutputError
from banana_batch.ports import Listener
from banana_batch.text import MAX_MESSAGE_CHARS, plain_json, printable

from .background import Background
from .moments import rfc3339
from .phrases import MAX_URL_CHARS

FLUSH_S = 0.2
CLOSE_PATIENCE_S = 2.0

# Events of single jobs: they come in thousands a second.
ROUTINE = frozenset({"sent", "answered", "stored", "fetch_failed"})

# At 200 bytes a line some 20 MB. A disk that hangs this long loses log lines, never memory.
MAX_WAITING = 100_000

# So many are written sooner: thousands of calls a second would have a megabyte more or less in memory at each look.
MANY = 256

# Encoding holds the interpreter: small groups let the event loop in between.
_GROUP = 64
_MAX_DEPTH = 4
# A fifth of to_json's time; it leaves foreign characters as they are.
_NOTHING = b"{}"
_ESCAPED = re.compile(r'["\\]')


def _unchanged(text: str) -> str:
    return text


class RunLog:
    """Appends events to a file, mode 0600; implements `ports.Events`.

    Args:
        path: The file; made where it is missing. A symbolic link is refused.
        wall_us: The wall clock, microseconds since the epoch.
        trouble: Called once, on the log's own thread, with a sentence, when the file can't be written.
        redact: Removes secrets from a line.
        dir_fd: The folder that a relative `path` is meant in.

    Raises:
        OutputError: the file can't be opened, or is no regular file.
    """

    def __init__(
        self,
        path: Path,
        *,
        wall_us: Callable[[], int],
        trouble: Callable[[str], None],
        redact: Callable[[str], str] = _unchanged,
        dir_fd: int | None = None,
    ) -> None:
        self._path = path
        self._wall_us = wall_us
        self._trouble = trouble
        self._redact = redact
        self._waiting: deque[tuple[int, str, Mapping[str, object]]] = deque()
        self._unwritten = 0
        self._troubled = False
        self._closed = False
        self._fd = _open(path, dir_fd)
        self._torn = _ends_torn(self._fd)
        self._background = Background("banana-log", self._flush, FLUSH_S)

    def emit(self, event: str, /, **facts: object) -> None:
        """Note an event down for the log."""
        self._note(event, facts)

    def listener(self, event: str) -> Listener:
        """See ports.Events."""
        return partial(self._note, event)

    def _note(self, event: str, facts: Mapping[str, object]) -> None:
        if self._closed:
            return
        waiting = len(self._waiting)
        if waiting >= MAX_WAITING:
            self._unwritten += 1
            return
        self._waiting.append((self._wall_us(), event, facts))
        if waiting == MANY or event not in ROUTINE:
            self._background.wake()

    def close(self) -> None:
        """Write what is left and close the file; gives up on a disk that hangs."""
        if self._closed:
            return
        self._closed = True
        # With the writer still at it, the descriptor stays open: its number must not become another file's.
        if self._background.close(CLOSE_PATIENCE_S):
            os.close(self._fd)

    def _flush(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _GROUP))]
            self._write("".join([self._line(*record) for record in group]), len(group))

    def _line(self, us: int, event: str, facts: Mapping[str, object]) -> str:
        return (_plain_line(us, event, facts) if event in ROUTINE else None) or self._bounded_line(us, event, facts)

    def _bounded_line(self, us: int, event: str, facts: Mapping[str, object]) -> str:
        record: dict[str, object] = {"time": rfc3339(us), "event": event}
        for name, value in facts.items():
            # The only trace of an answer that the state could not take is not cut.
            whole = event == "unrecorded" and name == "image_url"
            record[name] = printable(self._redact(str(value)), MAX_URL_CHARS) if whole else self._bounded(value, 0)
        # to_json takes a third of the time of json.dumps; it refuses what no UTF-8 can hold, which is cleaned above.
        return to_json(record, ensure_ascii=True, inf_nan_mode="null").decode() + "\n"

    def _bounded(self, value: object, depth: int) -> object:
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float):
            return round(value, 6)
        if isinstance(value, dict) and depth < _MAX_DEPTH:
            return {printable(str(name)): self._bounded(part, depth + 1) for name, part in value.items()}
        if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
            return [self._bounded(part, depth + 1) for part in value]
        text = str(value)
        if len(text) <= MAX_MESSAGE_CHARS and text.isascii() and text.isprintable() and not _ESCAPED.search(text):
            return text
        # A secret must go before a cut or an escape splits what the whole line is searched for.
        return printable(self._redact(text))

    def _write(self, lines: str, count: int) -> None:
        if self._unwritten:
            lost, self._unwritten = self._unwritten, 0
            lines = self._line(self._wall_us(), "log_gap", {"events": lost}) + lines
            count += lost
        data = memoryview((("\n" if self._torn else "") + self._redact(lines)).encode())
        try:
            while data:
                data = data[os.write(self._fd, data) :]
                self._torn = True
            self._torn = False
        except OSError as error:
            self._unwritten += count
            if not self._troubled:
                self._troubled = True
                self._trouble(f"{self._path.name} can't be written ({error.strerror}); the run goes on without it")


def _plain_line(us: int, event: str, facts: Mapping[str, object]) -> str | None:
    """Return the line of an event of a single job, of which there are three a job; None where it must be bounded.

    Where nothing had to be escaped, nothing is there to be cleaned either.
    """
    latency_s = facts.get("latency_s")
    if isinstance(latency_s, float):
        facts = {**facts, "latency_s": round(latency_s, 6)}
    told = plain_json(facts)
    if told is None or not len(_NOTHING) < len(told) <= MAX_MESSAGE_CHARS or b"\\" in told:
        return None
    return f'{{"time":"{rfc3339(us)}","event":"{event}",{told[1:].decode("ascii")}\n'


def _open(path: Path, dir_fd: int | None) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # O_NONBLOCK: a pipe that was put in the log's place must not hold up the start.
        fd = os.open(path, flags | os.O_NONBLOCK, 0o600, dir_fd=dir_fd)
    except OSError as error:
        raise OutputError(f"{printable(str(path))} can't be written: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OutputError(f"{printable(str(path))} can't be written: it is no regular file")
    return fd


def _ends_torn(fd: int) -> bool:
    """Tell whether a killed run left half a line: the next record must not be appended to it."""
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
