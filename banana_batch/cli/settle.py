"""`resolve` and `redo`: where the user's word is taken."""

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from banana_batch import money
from banana_batch.errors import Exit, UsageError
from banana_batch.finding import find_batch, working_folder
from banana_batch.lifecycle import JobState
from banana_batch.store import database, queries, resolve, runs
from banana_batch.store.evidence import refuse_the_past
from banana_batch.store.lock import batch_lock
from banana_batch.text import plural, printable

from . import outcome
from .questions import doubt_line, is_terminal

Batch = Annotated[str, typer.Argument(metavar="BATCH", help="Output folder, or the manifest it was made from")]
Jobs = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids, or indexes")]

_MENU = "  [r]esend  [n]ot charged, send again  [c]harged  [d]rop  [u]rl of the image  [s]kip  [q]uit: "


def resolve_doubts(
    batch: Batch,
    jobs: Jobs = None,
    every: Annotated[bool, typer.Option("--all", help="All jobs in doubt")] = False,
    resend: Annotated[bool, typer.Option("--resend", help="Send again; the credits stay at risk")] = False,
    not_charged: Annotated[bool, typer.Option("--not-charged", help="Credits back, send again")] = False,
    charged: Annotated[
        str | None, typer.Option(metavar="CREDITS", help="The account was charged; with --resend send again, else drop")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Give it up; the credits stay at risk")] = False,
    image_url: Annotated[str | None, typer.Option(metavar="URL", help="Paid after all: the image is here")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output")] = False,
) -> int:
    """Settle requests that got no answer. Without a choice, on a terminal: one by one, with what is known of each.

    Example: banana-batch resolve outputs/prompts --all --not-charged
    """
    word = _word(resend=resend, not_charged=not_charged, charged=charged, drop=drop, image_url=image_url)
    with _opened(batch) as db:
        if jobs and every:
            raise UsageError("name jobs, or say --all; not both")
        if word is None:
            _one_by_one(db, jobs)
        else:
            if not jobs and not every:
                raise UsageError("which jobs? Name them, or say --all", "banana-batch status BATCH --state in_doubt")
            found = resolve.find_jobs(db, jobs) if jobs else resolve.jobs_in(db, JobState.IN_DOUBT)
            if image_url and len(found) != 1:
                raise UsageError("--image-url is of one job: name it")
            with runs.transaction(db):
                for job in found:
                    resolve.settle(db, job, word)
        _tell(db, json=json)
    return Exit.DONE


def _word(
    *, resend: bool, not_charged: bool, charged: str | None, drop: bool, image_url: str | None
) -> resolve.Word | None:
    if image_url is not None:
        image_url = _url(image_url)
    said = [
        name
        for name, is_said in (
            ("--not-charged", not_charged),
            ("--charged", charged is not None and not image_url),
            ("--drop", drop),
            ("--image-url", image_url is not None),
        )
        if is_said
    ]
    if len(said) > 1 or (resend and said and said != ["--charged"]):
        raise UsageError(f"{' and '.join([*(['--resend'] if resend else []), *said])} don't go together")
    if not said and not resend:
        return None
    return resolve.Word(
        resend=resend,
        not_charged=not_charged,
        charged_micro=None if charged is None else _amount(charged),
        image_url=image_url,
    )


def _url(text: str) -> str:
    if not text.strip():
        raise UsageError("--image-url: empty → the url of the image; a variable that is not set?")
    return text


def _amount(text: str) -> int:
    try:
        return money.parse_credits(text)
    except ValueError as bad:
        raise UsageError(f"--charged: {text!r} → {bad}") from None


def _one_by_one(db: sqlite3.Connection, jobs: list[str] | None) -> None:
    """Ask for each doubt; each answer is durable before the next question."""
    if not is_terminal():
        raise UsageError(
            "what is to become of the doubts?", "--resend, --not-charged, --charged CREDITS, --drop or --image-url URL"
        )
    named = {job.index for job in resolve.find_jobs(db, jobs)} if jobs else None
    for doubt in list(queries.doubts(db)):
        if named is not None and doubt.index not in named:
            continue
        outcome.say(doubt_line(doubt))
        word = _asked()
        if word == "quit":
            return
        if isinstance(word, resolve.Word):
            with runs.transaction(db):
                resolve.settle(db, resolve.Found(doubt.index, doubt.id, JobState.IN_DOUBT), word)


_ANSWERS: dict[str, Callable[[], resolve.Word]] = {
    "r": lambda: resolve.Word(resend=True),
    "n": lambda: resolve.Word(not_charged=True),
    "c": lambda: resolve.Word(charged_micro=_amount(_typed("  credits: "))),
    "d": resolve.Word,
    "u": lambda: resolve.Word(image_url=_url(_typed("  url: "))),
}


def _asked() -> resolve.Word | str:
    while True:
        choice = _typed(_MENU).lower()
        if choice in ("", "q", "s"):
            return "skip" if choice == "s" else "quit"
        try:
            if choice in _ANSWERS:
                return _ANSWERS[choice]()
        except UsageError as bad:
            outcome.complain(bad)


def _typed(question: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def redo(
    batch: Batch,
    jobs: Jobs = None,
    failed: Annotated[bool, typer.Option("--failed", help="All failed jobs")] = False,
    lost: Annotated[bool, typer.Option("--lost", help="All lost jobs: each gets a new copy")] = False,
) -> int:
    """Let jobs be bought again by the next run: failed and dropped ones, or a new copy of a done or lost one.

    Example: banana-batch redo outputs/prompts --failed
    """
    with _opened(batch) as db:
        if not (jobs or failed or lost):
            raise UsageError("which jobs? Name them, or say --failed or --lost")
        found = resolve.find_jobs(db, jobs or [])
        found += resolve.jobs_in(db, JobState.FAILED) if failed else []
        found += resolve.lost_jobs(db) if lost else []
        with runs.transaction(db):
            ids = [resolve.redo(db, job) for job in dict.fromkeys(found)]
        for name in ids[:10]:
            outcome.say(f"{printable(name, 80)} {_when_bought(db, name)}")
        if len(ids) > 10:
            outcome.say(f"and {plural(len(ids) - 10, 'more job', 'more jobs')}")
        if not ids:
            outcome.say("there is nothing to redo")
    return Exit.DONE


def _when_bought(db: sqlite3.Connection, name: str) -> str:
    if db.execute("SELECT position FROM jobs WHERE id = ?", (name,)).fetchone()[0] is None:
        return "is not in the manifest: it will be bought once its row is there again"
    return "will be bought by the next run"


@contextlib.contextmanager
def _opened(batch: str) -> Iterator[sqlite3.Connection]:
    out = find_batch(batch, working_folder())
    with batch_lock(out), contextlib.closing(database.open_writer(out)) as db:
        refuse_the_past(db, out)
        # A run that was killed left its calls as `sending`: they are what the user came for.
        with runs.transaction(db):
            runs.doubt_interrupted(db, runs.DIED)
            runs.tell_listed(db, None)
        yield db


def _tell(db: sqlite3.Connection, *, json: bool) -> None:
    left = queries.counts(db)[JobState.IN_DOUBT]
    totals = queries.totals(db)
    if json:
        jobs = {state.value: count for state, count in queries.counts(db).items()}
        outcome.print_json({"jobs": jobs, "credits": outcome.credits_json(totals)})
        return
    outcome.say(f"{plural(left, 'job')} in doubt left; {money.priced_text(totals.at_risk)} at risk")
