"""What can end a run, each with its exit code and what the user can do.

BananaError
├── Stopped            7  before anything was sent
├── UsageError        64  the command line
├── ManifestError     65  bad rows, or a damaged state file
├── InputMissing      66
├── EndpointDown      69
├── OutputError       73  the output folder can't be made or used
├── DiskError         74  full, or broken
├── BatchLocked       75  another run holds the batch
├── UnknownProtocol   76  the endpoint answers in a way we don't know
├── KeyRefused        77
└── SettingsError     78  settings, TLS, wrong gateway for this batch
"""

from collections.abc import Iterable
from enum import IntEnum

from msgspec import Struct


class Exit(IntEnum):
    """Exit codes of the command, and of `run_batch`'s summary."""

    DONE = 0
    FAILED = 3
    IN_DOUBT = 4
    BUDGET = 5
    NOT_FETCHED = 6
    STOPPED = 7
    OUT_OF_CREDITS = 8
    USAGE = 64
    BAD_INPUT = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    BUG = 70
    NO_OUTPUT = 73
    DISK = 74
    LOCKED = 75
    PROTOCOL = 76
    KEY = 77
    SETTINGS = 78
    INTERRUPTED = 130
    TERMINATED = 143


REASONS: dict[Exit, str] = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.IN_DOUBT: "in_doubt",
    Exit.BUDGET: "budget",
    Exit.NOT_FETCHED: "not_fetched",
    Exit.STOPPED: "stopped",
    Exit.OUT_OF_CREDITS: "out_of_credits",
    Exit.USAGE: "usage",
    Exit.BAD_INPUT: "bad_input",
    Exit.NO_INPUT: "no_input",
    Exit.UNAVAILABLE: "unavailable",
    Exit.BUG: "bug",
    Exit.NO_OUTPUT: "no_output",
    Exit.DISK: "disk",
    Exit.LOCKED: "locked",
    Exit.PROTOCOL: "protocol",
    Exit.KEY: "key",
    Exit.SETTINGS: "settings",
    Exit.INTERRUPTED: "interrupted",
    Exit.TERMINATED: "terminated",
}

# When several hold, the first in this order is the exit code. LOCKED is decided before all else.
PRECEDENCE: tuple[Exit, ...] = tuple(
    Exit(code) for code in (75, 64, 66, 73, 70, 74, 65, 78, 77, 76, 8, 69, 143, 130, 5, 7, 6, 4, 3, 0)
)


def worst(codes: Iterable[Exit]) -> Exit:
    """Return the code that decides when several hold; DONE where there is none."""
    return min(codes, key=PRECEDENCE.index, default=Exit.DONE)


class BananaError(Exception):
    """The run can't go on. `str()` says what happened; `hint` what to do next, as a sentence or a command."""

    exit: Exit = Exit.BUG

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def bug_text(failed: BaseException) -> str:
    """Say what broke and where, never its words or its locals: they may hold the key."""
    import traceback

    where = traceback.extract_tb(failed.__traceback__)[-3:]
    places = ", ".join(f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno}" for frame in where)
    return f"a bug here: {type(failed).__name__} at {places}"


class Stopped(BananaError):
    """The user stopped a run that was still reading its manifest."""

    exit = Exit.STOPPED


class UsageError(BananaError):
    """The command line can't be understood."""

    exit = Exit.USAGE


class Problem(Struct, frozen=True):
    """One bad value in a manifest.

    Attributes:
        file: The manifest's name as the user gave it; `-` is standard input.
        line: 1-based line of the row's start; 0 where the file has no lines to speak of.
        field: The column or key; empty where the row as a whole is bad.
        found: What stands there, already printable.
        allowed: What may stand there, with the likely meaning of a near miss.
    """

    file: str
    line: int
    field: str
    found: str
    allowed: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        field = f" {self.field}:" if self.field else ""
        return f"{where}:{field} {self.found} → {self.allowed}"


class ManifestError(BananaError):
    """Rows that can't be used (all of them at once in `problems`), or a state file that is damaged."""

    exit = Exit.BAD_INPUT

    def __init__(self, message: str, hint: str | None = None, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message, hint)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        """Return what happened, with every problem: a program that shows the error alone shows what to mend."""
        return "\n".join([super().__str__(), *map(str, self.problems)])


class InputMissing(BananaError):
    """A named manifest or batch does not exist."""

    exit = Exit.NO_INPUT


class EndpointDown(BananaError):
    """The endpoint can't be reached, or only refuses or leaves doubts."""

    exit = Exit.UNAVAILABLE


class OutputError(BananaError):
    """The output folder can't be created or used."""

    exit = Exit.NO_OUTPUT


class DiskError(BananaError):
    """The disk is full or broken; what was paid for is kept."""

    exit = Exit.DISK


class BatchLocked(BananaError):
    """Another run holds the batch."""

    exit = Exit.LOCKED


class UnknownProtocol(BananaError):
    """The endpoint answers in a way this program does not know."""

    exit = Exit.PROTOCOL


class KeyRefused(BananaError):
    """No key, an unreadable one, or one that the endpoint does not take."""

    exit = Exit.KEY


class SettingsError(BananaError):
    """Settings that don't fit together, TLS that can't be trusted, the wrong gateway for this batch."""

    exit = Exit.SETTINGS
