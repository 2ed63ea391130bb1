"""Where the other modules of this stage leave what is wrong with a manifest.

Rule 1: what a user wrote is shown through `printable`, cut short, and never corrected.
Rule 2: a bad row is told and skipped, so that all bad rows come at once; only a file that can't be read
        any further is raised (`Unreadable`).
Rule 3: warnings are told once per file and cause: a million rows with one habit make one line.
"""

import json
from collections.abc import Iterable
from typing import Any

from banana_batch.errors import Problem
from banana_batch.text import printable

MAX_FOUND_CHARS = 120


class Unreadable(Exception):
    """A file can't be read from this line on.

    Attributes:
        line: 1-based; 0 where the file has no lines.
        found: What stands there.
        allowed: What may stand there.
    """

    def __init__(self, line: int, found: str, allowed: str) -> None:
        super().__init__(found)
        self.line = line
        self.found = found
        self.allowed = allowed


def shown(value: Any) -> str:
    """Return a value as a user may read it in a message: one line, at most 120 characters."""
    if value is None or value == "":
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(text, MAX_FOUND_CHARS) if text.strip() else "only spaces"


def one_of(names: Iterable[str], last: str = "or") -> str:
    """Return `a, b or c`."""
    *most, end = names
    return f"{', '.join(most)} {last} {end}" if most else end


class Report:
    """Collects what is wrong with one file.

    Attributes:
        file: The file as the user named it, printable.
        line: 1-based line of the row that is being read.
        count: Problems so far, repeated ones too.
    """

    def __init__(self, file: str, problems: list[Problem], warnings: list[Problem]) -> None:
        self.file = printable(file)
        self.line = 0
        self._problems = problems
        self._warnings = warnings
        self._warned: set[tuple[str, str]] = set()
        self.count = 0
        self._told: set[Problem] = set()
        self._told_line = 0

    def problem(self, field: str, found: str, allowed: str) -> None:
        """Tell one bad value of the row at `line`.

        The rows of a matrix share a line: what is wrong with a thousand of them is told once.
        """
        self.count += 1
        if self.line != self._told_line:
            self._told.clear()
            self._told_line = self.line
        problem = Problem(self.file, self.line, field, found, allowed)
        if problem not in self._told:
            self._told.add(problem)
            self._problems.append(problem)

    def warning(self, field: str, found: str, allowed: str) -> None:
        """Tell what is odd but will be done; each oddity once per file."""
        if (field, found) not in self._warned and len(self._warned) < 1_000:
            self._warned.add((field, found))
            self._warnings.append(Problem(self.file, self.line, field, found, allowed))
