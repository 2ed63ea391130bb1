"""Which batch is meant: found without what a run needs, so that `status` answers at once."""

from pathlib import Path

from .errors import InputMissing, UsageError
from .store import paths


def working_folder() -> Path:
    """Return the folder that relative names are meant in.

    Raises:
        InputMissing: it was deleted since the shell went there.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise InputMissing("the folder that you are in was deleted", "cd to one that is there") from None


def find_batch(name: str, cwd: Path) -> Path:
    """Return the output folder that `BATCH` means: the folder itself, or a manifest's default one. Never guessed.

    Raises:
        UsageError: both the plain and the sandbox folder of a manifest exist.
        InputMissing: there is no such batch.
    """
    given = cwd / name
    if given.is_dir():
        if not paths.exists(given):
            raise _no_batch(name)
        return given
    if not given.is_file():
        raise _no_batch(name)
    from .manifest.sources import find_sources  # with the formats and their models, for a manifest only

    stem = find_sources([name], cwd, None)[0].stem
    folders = [given.parent / "outputs" / (stem + ending) for ending in ("", "-sandbox")]
    found = [folder for folder in folders if paths.exists(folder)]
    if len(found) > 1:
        raise UsageError(f"{name} has two batches: {found[0]} and {found[1]}", "name the folder that you mean")
    if not found:
        raise _no_batch(name)
    return found[0]


def _no_batch(name: str) -> InputMissing:
    return InputMissing(f"{name}: there is no batch here", "name an output folder, or the manifest it was made from")
