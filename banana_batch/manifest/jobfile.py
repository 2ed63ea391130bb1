"""Job files: one TOML file that describes a night.

`[run]` has options, `[defaults]` request fields, `manifest` other files, `[[jobs]]` rows, `[matrix]` a cross product;
the jobs come in this order: manifest, jobs, matrix.

Rule 1: a key that means nothing is an error: a misspelt one must not go unnoticed. What `[run]` says is judged with
        all other settings. Names may be written with dashes, as on the command line.
Rule 2: paths are relative to the job file; dates and times are taken as their text.
"""

import re
from collections.abc import Mapping
from datetime import date, time
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from msgspec import Struct

from banana_batch.errors import InputMissing, ManifestError, Problem
from banana_batch.settings import Settings, option_name
from banana_batch.text import printable

from .encoding import Hashed, whole_text
from .matrix import Matrix, read_matrix
from .reporting import Report, Unreadable, one_of, shown
from .rows import CHOICES, Choices, RequestFields, read_choices, read_copies, read_extra, read_references
from .templates import TemplateError, TextTemplate

TABLES = ("run", "defaults", "manifest", "jobs", "matrix")
DEFAULTS_FIELDS = tuple(RequestFields.model_fields)
RUN_KEYS = tuple(map(option_name, Settings.model_fields))

_ERROR_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")
_HEADER = re.compile(r"\s*\[{1,2}\s*([A-Za-z0-9_-]+)\s*\]{1,2}\s*(?:#.*)?")
_KEY = re.compile(r"""\s*["']?([^"'=\s]+)["']?\s*=""")


class DefaultsTable(Struct, frozen=True):
    """`[defaults]`, validated.

    Attributes:
        prompt: A template over a row's columns.
        references: As named, relative to the job file.
        line: Where the table starts; 0: there is none.
    """

    choices: Choices
    prompt: TextTemplate | None
    references: tuple[str, ...]
    extra: Mapping[str, Any]
    line: int


class JobFile(Struct, frozen=True):
    """A job file, read and checked but for its rows and options.

    Attributes:
        path: Absolute.
        name: As the user gave it.
        run: `[run]` as it stands; `run_lines`: where each of its keys does.
        manifest: Paths and patterns, relative to the job file's folder.
        jobs: Rows of `[[jobs]]` with their lines.
        sha256: Of the file's bytes.
    """

    path: Path
    name: str
    run: Mapping[str, Any]
    run_lines: Mapping[str, int]
    defaults: DefaultsTable
    manifest: tuple[str, ...]
    jobs: tuple[tuple[int, Mapping[str, Any]], ...]
    matrix: Matrix | None
    sha256: bytes

    def expansion(self) -> int:
        """Return how many jobs come of the matrix and of copies, without making one."""
        silent = Report(self.name, [], [])
        count = sum(read_copies(row["copies"], silent) for _, row in self.jobs if row.get("copies") is not None)
        if self.matrix is not None:
            count += self.matrix.count() * read_copies(self.matrix.constants.get("copies", 1), silent)
        return count


def read_job_file(path: Path, name: str | None = None) -> JobFile:
    """Read a job file.

    Args:
        name: What to call it in messages; None: its path.

    Raises:
        InputMissing: it does not exist or can't be opened.
        ManifestError: with all that is wrong.
    """
    name = str(path) if name is None else name
    problems: list[Problem] = []
    report = Report(name, problems, [])
    try:
        with path.open("rb") as file:
            stream = Hashed(file)
            text = whole_text(stream)
    except OSError as failed:
        raise InputMissing(f"{printable(name)}: {failed.strerror}") from None
    except Unreadable as bad:
        raise _refused([Problem(report.file, bad.line, "", bad.found, bad.allowed)]) from None
    data = _parsed(text, report)
    if not problems:
        job_file = _Reading(data, _Lines(text), report).job_file(path, name, stream.digest or b"")
        if not problems:
            return job_file
    raise _refused(problems)


def _refused(problems: list[Problem]) -> ManifestError:
    return ManifestError("the job file can't be used", "mend it and run again; nothing was sent", problems)


def _parsed(text: str, report: Report) -> dict[str, Any]:
    import tomllib  # most runs have no job file

    try:
        return {name: _plain(value) for name, value in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as failed:
        where = _ERROR_LINE.search(str(failed))
        report.line = int(where[1]) if where and where[1] else text.count("\n") + 1
        report.problem("", f"not TOML: {printable(_ERROR_LINE.sub('', str(failed)), 120)}", 'key = "value"')
    except (ValueError, RecursionError) as failed:
        report.problem("", f"not TOML: {printable(str(failed), 120)}", 'key = "value"')
    return {}


def _plain(value: Any) -> Any:
    """Return a value with dates and times as their text, which is what meta and requests can hold."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _folded(name: str) -> str:
    return name.replace("-", "_")


class _Lines:
    """Where tables and keys stand. For messages only: TOML's own parser does not tell."""

    def __init__(self, text: str) -> None:
        self.rows: list[int] = []
        self._at: dict[tuple[str, str], int] = {}
        table, within_text = "", False
        for line, written in enumerate(text.split("\n"), 1):
            if not within_text:
                if header := _HEADER.fullmatch(written.rstrip()):
                    table = header[1]
                    self._at.setdefault((table, ""), line)
                    if table == "jobs":
                        self.rows.append(line)
                elif key := _KEY.match(written):
                    self._at.setdefault((table, _folded(key[1])), line)
            within_text ^= bool((written.count('"""') + written.count("'''")) % 2)

    def of(self, table: str, key: str = "") -> int:
        """Return the line of a key, else of its table, else 0."""
        key = _folded(key)
        places = [(table, key), (table, ""), ("", table)] if table else [("", key), (key, "")]
        return next((self._at[place] for place in places if place in self._at), 0)


class _Reading:
    """Checks the tables of one job file."""

    def __init__(self, data: Mapping[str, Any], lines: _Lines, report: Report) -> None:
        self._data = data
        self._lines = lines
        self._report = report

    def job_file(self, path: Path, name: str, sha256: bytes) -> JobFile:
        """Return the job file; what is wrong is told to the report."""
        self._known("", self._data, TABLES)
        run = self._named("run", RUN_KEYS)
        job_file = JobFile(
            path=path.absolute(),
            name=name,
            run=run,
            run_lines={key: self._lines.of("run", key) for key in run},
            defaults=self._defaults(),
            manifest=self._manifest(),
            jobs=self._jobs(),
            matrix=self._matrix(),
            sha256=sha256,
        )
        if not (job_file.manifest or job_file.jobs or job_file.matrix):
            self._tell("", "", "no jobs", "at least one of manifest, [[jobs]] and [matrix]")
        return job_file

    def _tell(self, table: str, key: str, found: str, allowed: str) -> None:
        self._report.line = self._lines.of(table, key)
        self._report.problem(".".join(part for part in (table, key) if part), found, allowed)

    def _known(self, table: str, values: Mapping[str, Any], names: tuple[str, ...]) -> None:
        for key in values:
            if key not in names:
                near = get_close_matches(key, names, 1, 0.6)
                hint = f" (did you mean {near[0]}?)" if near else ""
                self._tell(table, key, f"no such key: {shown(key)}", one_of(names) + hint)

    def _table(self, name: str) -> Mapping[str, Any]:
        table = self._data.get(name, {})
        if isinstance(table, dict):
            return table
        self._tell(name, "", shown(table), f"a table: [{name}]")
        return {}

    def _named(self, name: str, names: tuple[str, ...]) -> Mapping[str, Any]:
        """Return a table of these keys and no others."""
        written = self._table(name)
        self._known(name, {_folded(key): value for key, value in written.items()}, names)
        found: dict[str, Any] = {}
        for key, value in written.items():
            if _folded(key) in found:
                self._tell(name, key, "given twice", "one of the two")
            found[_folded(key)] = value
        return found

    def _defaults(self) -> DefaultsTable:
        table, report = self._named("defaults", DEFAULTS_FIELDS), self._report
        report.line = self._lines.of("defaults")
        choices = read_choices({name: table[name] for name in CHOICES if name in table}, report)
        references = read_references(table["refer_images"], report) if table.get("refer_images") else ()
        extra = read_extra(table["extra"], report) if "extra" in table else {}
        return DefaultsTable(choices or Choices(), self._prompt(table), references, extra, self._lines.of("defaults"))

    def _prompt(self, table: Mapping[str, Any]) -> TextTemplate | None:
        prompt = table.get("prompt")
        if prompt is None:
            return None
        try:
            if isinstance(prompt, str) and prompt.strip():
                return TextTemplate(prompt)
            self._tell("defaults", "prompt", shown(prompt), "a text such as 'a {product} in {color}'")
        except TemplateError as bad:
            self._tell("defaults", "prompt", shown(prompt), str(bad))
        return None

    def _manifest(self) -> tuple[str, ...]:
        given = self._data.get("manifest", [])
        names = [given] if isinstance(given, str) else given
        if isinstance(names, list) and all(isinstance(name, str) and name for name in names):
            return tuple(names)
        self._tell("manifest", "", shown(given), 'a list of paths: ["prompts.csv"]')
        return ()

    def _jobs(self) -> tuple[tuple[int, Mapping[str, Any]], ...]:
        rows = self._data.get("jobs", [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self._tell("jobs", "", shown(rows), "rows, each one under [[jobs]]")
            return ()
        lines = self._lines.rows if len(self._lines.rows) == len(rows) else [self._lines.of("jobs")] * len(rows)
        return tuple(zip(lines, rows, strict=True))

    def _matrix(self) -> Matrix | None:
        if "matrix" not in self._data:
            return None
        try:
            return read_matrix(self._table("matrix"), self._lines.of("matrix"))
        except ValueError as bad:
            column, value, allowed = bad.args
            self._tell("matrix", column, shown(value), allowed)
            return None
