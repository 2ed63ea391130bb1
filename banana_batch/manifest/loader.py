"""The front door: manifests in, planned jobs out.

    manifests = open_manifests(["prompts.csv"], settings, Path.cwd(), sys.stdin.buffer)
    for job in manifests.jobs(problems, warnings): ...

Rule 1: jobs stream in the order of the files and of their rows, at the same memory for ten and for a million.
Rule 2: the row decides; then command line and environment (both are in Settings); then `[defaults]` of the row's own
        job file; then the spec.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

from banana_batch.capabilities import MODELS, resolve_model
from banana_batch.errors import ManifestError, Problem, UsageError
from banana_batch.job import Job
from banana_batch.models import PlannedJob
from banana_batch.settings import Settings
from banana_batch.text import printable

from .formats import Row
from .jobfile import JobFile, read_job_file
from .layout import Layout
from .matrix import Matrix
from .naming import Namer
from .planner import Defaults, Planner
from .reporting import Report, Unreadable, shown
from .requests import CANONICAL_VERSION
from .rows import CHOICES, Choices, allowed
from .sources import JOB_FILE, TABLES, Source, find_sources, refuse_gainsaid
from .templates import FilenameTemplate, TemplateError, TextTemplate

# Raise it when the same manifest comes to other file names, ids or meta than before.
_PLAN_VERSION = 1
_PLANNING = (*CHOICES, "prompt", "filename", "format", "allow_unknown_model")


class _Part(Struct, frozen=True):
    """Rows that share defaults and names.

    Attributes:
        rows: Reads them.
        table: They have a header, and empty cells.
        folder: What reference images are relative to.
    """

    name: str
    rows: Callable[[Report], Iterator[Row]]
    table: bool
    folder: Path
    defaults: Defaults
    filename: FilenameTemplate
    id: TextTemplate | None = None


class Manifests:
    """The manifests of a run.

    Attributes:
        index_width: Digits of the index in file names, filled with zeros; 0: as many as it takes.
    """

    def __init__(self, sources: Sequence[Source], settings: Settings, cwd: Path, stdin: BinaryIO) -> None:
        self._sources = sources
        self._settings = settings
        self._cwd = cwd
        self._stdin = stdin
        self._filename = _filename_template(settings.filename)
        self._given = _given_defaults(settings)
        self._files: list[Source] = []
        self._job_files: list[JobFile] = []
        self._saw_local_references = False
        self._parts = [part for source in sources for part in self._parts_of(source)]
        self.index_width = self._filename.index_width

    def count_expansion(self) -> int:
        """Return how many jobs matrices and `[[jobs]]` copies come to, without making one."""
        return sum(job_file.expansion() for job_file in self._job_files)

    def jobs(self, problems: list[Problem], warnings: list[Problem]) -> Iterator[PlannedJob]:
        """Yield the planned jobs; bad rows, unreadable files and empty manifests are appended to `problems`.

        Raises:
            InputMissing: a file can't be opened or read.
        """
        for part in self._parts:
            report = Report(part.name, problems, warnings)
            namer = Namer(part.filename, part.id, report)
            planner = Planner(report, part.folder, part.defaults, namer, self._settings.allow_unknown_model)
            before, job = report.count, None
            try:
                for job in planner.plan(part.rows(report), part.table):
                    yield job
            except Unreadable as bad:
                report.line = bad.line
                report.problem("", bad.found, bad.allowed)
            self._saw_local_references |= planner.saw_local_references
            if job is None and report.count == before:
                problems.append(Problem(report.file, 0, "", "no rows", "at least one row with a prompt"))

    def fingerprint(self) -> bytes | None:
        """Return a hash of all that planning depends on; None where that can't be told.

        The same hash means: `jobs` would yield the same again. Ask after `jobs` for what to remember (it is then of
        the bytes that were planned, and None if they named files of this machine), before it for what to compare.
        """
        if self._saw_local_references or any(source.path is None for source in self._sources):
            return None
        hashes = [file.hashed() for file in self._files]
        if None in hashes:
            return None
        settings = {name: getattr(self._settings, name) for name in _PLANNING}
        parts: list[Any] = [CANONICAL_VERSION, _PLAN_VERSION, settings]
        parts += [
            (file.format, file.packed, (found or b"").hex()) for file, found in zip(self._files, hashes, strict=True)
        ]
        parts += [job_file.sha256.hex() for job_file in self._job_files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()

    def default_out(self, sandbox: bool) -> Path | None:
        """Return `outputs/<manifest stem>` beside the manifest; None with several manifests or standard input."""
        if len(self._sources) != 1 or self._sources[0].path is None:
            return None
        source = self._sources[0]
        return _folder(source, self._cwd) / "outputs" / (source.stem + ("-sandbox" if sandbox else ""))

    def _parts_of(self, source: Source) -> Iterator[_Part]:
        if source.format != JOB_FILE:
            yield self._file_part(source, _folder(source, self._cwd), self._defaults(None))
            return
        assert source.path is not None, "a job file never comes from standard input"
        job_file = read_job_file(source.path, source.name)
        self._job_files.append(job_file)
        folder, defaults = source.path.parent, self._defaults(job_file)
        for file in self._manifest_of(job_file, folder):
            yield self._file_part(file, _folder(file, folder), defaults)
        if job_file.jobs:
            yield _Part(job_file.name, partial(_job_rows, job_file), False, folder, defaults, self._filename)
        if job_file.matrix is not None:
            yield self._matrix_part(job_file, job_file.matrix, folder, defaults)

    def _manifest_of(self, job_file: JobFile, folder: Path) -> list[Source]:
        if not job_file.manifest:
            return []
        shown_folder = Path(job_file.name).parent
        files = find_sources(job_file.manifest, folder, self._settings.format)
        for file in files:
            if file.path is None or file.format == JOB_FILE:
                problem = Problem(printable(job_file.name), 0, "manifest", shown(file.name), "a file with rows")
                raise ManifestError("the job file can't be used", problems=[problem])
            file.name = str(shown_folder / file.name)
        return files

    def _file_part(self, source: Source, folder: Path, defaults: Defaults) -> _Part:
        self._files.append(source)
        rows = partial(source.rows, self._stdin)
        return _Part(source.name, rows, source.format in TABLES, folder, defaults, self._filename)

    def _matrix_part(self, job_file: JobFile, matrix: Matrix, folder: Path, defaults: Defaults) -> _Part:
        try:
            prompt = TextTemplate(matrix.prompt) if matrix.prompt else defaults.prompt
            name_of = TextTemplate(matrix.id) if matrix.id else None
            filename = FilenameTemplate(matrix.filename) if matrix.filename else self._filename
            filename.check_width(self._filename)
        except TemplateError as bad:
            problem = Problem(printable(job_file.name), matrix.line, "matrix", "a bad template", str(bad))
            raise ManifestError("the job file can't be used", problems=[problem]) from None
        merged = Defaults(defaults.choices, prompt, defaults.references, defaults.folder, defaults.extra)
        return _Part(job_file.name, lambda _: matrix.rows(), False, folder, merged, filename, name_of)

    def _defaults(self, job_file: JobFile | None) -> Defaults:
        given = self._given
        if job_file is None:
            return given
        table = job_file.defaults
        model = table.choices.model
        if model and not self._settings.allow_unknown_model and resolve_model(model) not in MODELS:
            problem = Problem(printable(job_file.name), table.line, "model", shown(model), allowed("model", model))
            raise ManifestError("the job file can't be used", problems=[problem])
        said = {name: value for name, value in given.choices if value is not None}
        choices = table.choices.model_copy(update=said)
        return Defaults(choices, given.prompt or table.prompt, table.references, job_file.path.parent, table.extra)


def open_manifests(sources: Sequence[str], settings: Settings, cwd: Path, stdin: BinaryIO) -> Manifests:
    """Find the manifests and read the job files among them.

    Raises:
        UsageError: no manifest, an unknown format, one that a name gainsays, `-` without a format, a bad template in
            the settings.
        InputMissing: a file does not exist.
        ManifestError: a job file can't be used.
    """
    files = find_sources(sources, cwd, settings.format)
    refuse_gainsaid(files, settings.format)
    return Manifests(files, settings, cwd, stdin)


class RunTable(Struct, frozen=True):
    """`[run]` of all job files together.

    Attributes:
        places: File and line of each value, by name.
    """

    values: dict[str, object]
    places: dict[str, tuple[str, int]]


def run_settings(sources: Sequence[str], cwd: Path, format: str | None = None) -> RunTable:
    """Return `[run]` of the job files among the manifests, before there are settings.

    Raises:
        As `open_manifests`.
    """
    files = [source for source in find_sources(sources, cwd, format) if source.format == JOB_FILE]
    return _merged_run([read_job_file(source.path, source.name) for source in files if source.path])


def plan_jobs(
    jobs: Iterable[Job], settings: Settings, folder: Path | None = None, warnings: list[Problem] | None = None
) -> Iterator[PlannedJob]:
    """Plan jobs that were made in code, streaming; `line` is a job's place, from 1.

    Args:
        folder: What local reference images are relative to; None: the working folder.
        warnings: Where oddities are appended.

    Raises:
        ManifestError: after the last job, with all that is wrong.
    """
    problems: list[Problem] = []
    report = Report("jobs", problems, [] if warnings is None else warnings)
    namer = Namer(_filename_template(settings.filename), None, report)
    planner = Planner(report, folder or Path.cwd(), _given_defaults(settings), namer, settings.allow_unknown_model)
    layouts: dict[tuple[int, tuple[str, ...]], Layout] = {}
    place = 0
    for place, job in enumerate(jobs, 1):
        said = {name: value for name in _JOB_FIELDS if (value := getattr(job, name)) is not None}
        meta = job.meta or {}
        names = (*said, *meta)
        layout = layouts.get((len(said), names))
        if layout is None:
            # The user's own keys stay the user's own, even one that is called like a field.
            layout = layouts[len(said), names] = Layout(names, [*said, *(None for _ in meta)])
        yield from planner.plan_laid_out(layout, (*said.values(), *meta.values()), place)
    if not place:
        problems.append(Problem("jobs", 0, "", "no jobs", "at least one job"))
    if problems:
        raise ManifestError("some jobs can't be used", "nothing was sent", problems)


def index_width(settings: Settings) -> int:
    """Return how many digits the index has in file names, filled with zeros; 0: as many as it takes."""
    return _filename_template(settings.filename).index_width


_JOB_FIELDS = tuple(name for name in Job.model_fields if name != "meta")


def _job_rows(job_file: JobFile, _report: Report) -> Iterator[Row]:
    for line, row in job_file.jobs:
        yield line, tuple(row), tuple(row.values())


def _folder(source: Source, cwd: Path) -> Path:
    return cwd.absolute() if source.path is None else source.path.parent


def _filename_template(template: str) -> FilenameTemplate:
    try:
        return FilenameTemplate(template)
    except TemplateError as bad:
        raise UsageError(f"--filename {shown(template)}: {bad}") from None


def _given_defaults(settings: Settings) -> Defaults:
    choices = Choices(**{name: getattr(settings, name) for name in CHOICES})
    if choices.model and not settings.allow_unknown_model and resolve_model(choices.model) not in MODELS:
        raise UsageError(f"--model {shown(choices.model)}: {allowed('model', choices.model)}")
    try:
        return Defaults(choices, TextTemplate(settings.prompt) if settings.prompt else None)
    except TemplateError as bad:
        raise UsageError(f"--prompt {shown(settings.prompt)}: {bad}") from None


def _merged_run(job_files: Iterable[JobFile]) -> RunTable:
    merged = RunTable({}, {})
    for job_file in job_files:
        for name, value in job_file.run.items():
            if merged.values.setdefault(name, value) != value:
                raise UsageError(f"the job files differ in [run] {shown(name)}", f"say --{name.replace('_', '-')}")
            merged.places.setdefault(name, (job_file.name, job_file.run_lines[name]))
    return merged
