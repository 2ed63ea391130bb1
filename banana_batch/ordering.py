"""From what the user typed to an order: sources, settings, output folder. Nothing is written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Protocol

from msgspec import Struct

from .errors import ManifestError, Problem, SettingsError, UsageError
from .manifest.loader import open_manifests, run_settings
from .models import PlannedJob
from .settings import BadSettings, Settings, environment_settings, resolve
from .store import paths
from .text import plural, printable

EXPANSION_LIMIT = 10_000


class JobSource(Protocol):
    """Where jobs come from: manifests, or a program."""

    index_width: int

    def jobs(self, problems: list[Problem], warnings: list[Problem]) -> Iterator[PlannedJob]:
        """Yield the planned jobs; what is bad is appended to `problems`."""

    def fingerprint(self) -> bytes | None:
        """Return a hash of all that planning depends on; None where that can't be told."""


class Order(Struct, frozen=True):
    """What a run is to do.

    Attributes:
        out: The output folder, absolute.
        manifests: Where the jobs come from.
    """

    settings: Settings
    out: Path
    manifests: JobSource


def settle_order(
    sources: Sequence[str],
    options: Mapping[str, object],
    environ: Mapping[str, str],
    cwd: Path,
    stdin: BinaryIO,
    confirm: Callable[[str], bool] = lambda _: False,
) -> Order:
    """Resolve the settings and find the output folder.

    Args:
        confirm: Asks a yes-or-no question; False where there is nobody to ask.

    Raises:
        UsageError, ManifestError, InputMissing, SettingsError: the user's part has to be mended.
    """
    resolved(options, {}, {})  # a slip on the command line is told first, whatever else is wrong
    format_ = options.get("format", environment_settings(environ).get("format"))
    job_file = run_settings(sources, cwd, None if format_ is None else str(format_))
    settings = resolved(options, environ, job_file.values, job_file.places)
    manifests = open_manifests(sources, settings, cwd, stdin)
    _ask_expansion(manifests.count_expansion(), settings, confirm)
    out = settings.out
    if out is None:
        out = manifests.default_out(settings.sandbox)
    if out is None:
        raise UsageError(
            "which output folder? With several manifests, or standard input, there is no default",
            "name one: -o DIR",
        )
    _keep_log_apart(settings.log_file, cwd, [*sources, str(paths.state_path(out))])
    return Order(settings, cwd / out, manifests)


def _keep_log_apart(log: Path | None, cwd: Path, files: Sequence[str]) -> None:
    """Lines appended to a manifest, or to the state file, would be its end."""
    if log is not None and (cwd / log).resolve() in {(cwd / file).resolve() for file in files}:
        raise UsageError(f"--log-file: {printable(str(log))} is in use → a file of its own, such as night.log")


def _ask_expansion(count: int, settings: Settings, confirm: Callable[[str], bool]) -> None:
    """A slip of the pen in a matrix makes a million images: counted before one is built."""
    if count <= EXPANSION_LIMIT or settings.yes:
        return
    told = f"the matrix and the copies come to {plural(count, 'image')}"
    if not confirm(f"{told[0].upper()}{told[1:]}. Go on?"):
        raise UsageError(
            f"{told}; nothing was sent",
            "if that is meant, say --yes",
        )


def resolved(
    options: Mapping[str, object],
    environ: Mapping[str, str],
    job_file: Mapping[str, object],
    places: Mapping[str, tuple[str, int]] = MappingProxyType({}),
) -> Settings:
    """Merge the sources of settings; what can't be used is told by where it came from, with file and line."""
    try:
        settings = resolve(options, environ, job_file)
    except BadSettings as failed:
        lines = "\n".join(str(bad) for bad in failed.bad if bad.name not in places)
        if any(bad.source == "option" for bad in failed.bad):
            raise UsageError(lines, "see banana-batch run --help") from None
        problems = [
            Problem(*places[bad.name], f"run.{bad.name}", bad.found, bad.allowed)
            for bad in failed.bad
            if bad.name in places
        ]
        if problems:
            raise ManifestError(lines or "the job file can't be used", "mend it; nothing was sent", problems) from None
        raise SettingsError(lines, "mend the environment variable") from None
    if settings.allow_host:
        from .images.guard import parse_allow_host  # with a parser of addresses: 4 % of a start, for few

        for host in settings.allow_host:
            parse_allow_host(host)
    return settings
