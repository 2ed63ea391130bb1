"""How a command ends: one clear message on standard error, one exit code, JSON where it was asked for."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from banana_batch.errors import BananaError, DiskError, Exit, ManifestError, bug_text
from banana_batch.models import Totals
from banana_batch.money import credits_text
from banana_batch.report.account import run_summary
from banana_batch.report.stream import Stream
from banana_batch.store import checks, database, queries
from banana_batch.store.lock import holder
from banana_batch.text import printable

_MESSAGE_CHARS = 4000


def as_told(failed: Exception) -> BananaError | None:
    """Return what a person is told of a failure; None: it is a bug."""
    if isinstance(failed, BananaError):
        return failed
    # Its subclasses say that we misused SQLite, or that the disk failed; the class itself, that the file is damaged.
    if type(failed) is sqlite3.DatabaseError:
        return checks.damaged_somewhere(failed)
    return None


def a_bug(failed: BaseException) -> BananaError:
    """Return what a person is told of a bug."""
    return BananaError(bug_text(failed), "please report it; nothing paid is lost")


class Told(Struct):
    """What is known of a run's settings when it fails half way.

    Attributes:
        code: The exit code, once it is known.
    """

    json: bool
    out: Path | None = None
    budget: int | None = None
    code: int = Exit.DONE


@contextlib.contextmanager
def json_whatever_happens(told: Told) -> Iterator[None]:
    """Tell of a failure; a JSON object, where one is wanted, is printed all the same. A bug is raised again."""
    try:
        yield
    except Exception as broken:
        failed = as_told(broken)
        if failed is not None:
            complain(failed)
            told.code = failed.exit
        if told.json:
            with contextlib.suppress(DiskError):  # the code tells already of a failure, maybe of this one
                print_json(failed_summary(failed.exit if failed else Exit.BUG, told.out, told.budget))
        if failed is None:
            raise


def complain(error: BananaError) -> None:
    """Print what happened, then what to do next."""
    stream = Stream()
    if isinstance(error, ManifestError):
        for problem in error.problems:
            stream.write(f"{problem}\n")
    for line in str(error.args[0]).splitlines():
        stream.write(f"banana-batch: {printable(line, _MESSAGE_CHARS)}\n")
    if error.hint:
        stream.write(f"  → {printable(error.hint, _MESSAGE_CHARS)}\n")


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object as a line of standard output. Raises as `say`."""
    say(json.dumps(value, ensure_ascii=True, default=str))


def say(text: str) -> None:
    """Print text on standard output; a reader that went away is no failure.

    Raises:
        DiskError: It is a file on a full disk.
    """
    stream = Stream(1)
    stream.write(text if text.endswith("\n") else text + "\n")
    if stream.error is not None:
        raise DiskError(f"standard output: can't be written: {stream.error.strerror}")


def failed_summary(code: Exit, out: Path | None, budget_micro: int | None = None) -> dict[str, object]:
    """Return the JSON object of a run that could not begin: how the batch stands, where one can be read."""
    jobs: dict[str, int] = {}
    totals = Totals()
    if out is not None:
        with contextlib.suppress(BananaError, sqlite3.Error), contextlib.closing(database.open_reader(out)) as db:
            jobs = {state.value: count for state, count in queries.counts(db).items()}
            totals = queries.totals(db)
    return run_summary(
        exit=code,
        jobs=jobs,
        totals=totals,
        budget_micro=budget_micro,
        elapsed_s=0.0,
        out=out,
        running=out is not None and holder(out) is not None,
    )


def credits_json(totals: Totals) -> dict[str, str]:
    """Return the ledger's sums as decimal strings."""
    return {
        "spent": credits_text(totals.spent),
        "at_risk": credits_text(totals.at_risk),
        "wasted": credits_text(totals.wasted),
        "reserved": credits_text(totals.reserved),
    }
