"""`status`, `ledger` and `export`: looking at a batch, also while a run is live."""

import contextlib
import errno
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer

from banana_batch.errors import DiskError, Exit, OutputError
from banana_batch.finding import find_batch, working_folder
from banana_batch.lifecycle import JobState
from banana_batch.models import Totals
from banana_batch.report.account import LedgerLine, ledger_summary, run_summary
from banana_batch.report.summary import BatchStatus, ledger_text, status_text
from banana_batch.store import database, queries
from banana_batch.store.lock import holder
from banana_batch.text import printable

from . import outcome

Batch = Annotated[str, typer.Argument(metavar="BATCH", help="Output folder, or the manifest it was made from")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there")]

_WATCH_S = 2.0
_PROMPT_COLUMNS = 60


def status(
    batch: Batch,
    json: Json = False,
    jobs: Annotated[bool, typer.Option("--jobs", help="A line a job")] = False,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state", case_sensitive=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 seconds, until Ctrl-C")] = False,
) -> int:
    """Show how a batch stands. Works while a run is live, and never waits for it.

    Example: banana-batch status outputs/prompts
    """
    out = find_batch(batch, working_folder())
    while True:
        with contextlib.closing(database.open_reader(out)) as db:
            if json:
                outcome.print_json(_status_json(db, out))
            elif jobs or state:
                for line in _job_lines(db, state):
                    outcome.say(line)
            else:
                outcome.say(status_text(_status(db, out)))
        if not watch:
            return Exit.DONE
        time.sleep(_WATCH_S)


def _status_json(db: sqlite3.Connection, out: Path) -> dict[str, object]:
    last = queries.last_run(db)
    states = queries.counts(db)
    elapsed_s = None
    if last is not None:
        elapsed_s = ((last.ended_us or time.time_ns() // 1000) - last.started_us) / 1e6
    return run_summary(
        exit=last.exit if last else None,
        reason=last.reason if last else None,
        jobs={name.value: count for name, count in states.items()},
        totals=queries.totals(db),
        budget_micro=last.budget if last else None,
        elapsed_s=elapsed_s,
        out=out,
        running=holder(out) is not None,
    )


def _status(db: sqlite3.Connection, out: Path) -> BatchStatus:
    last, live = queries.last_run(db), holder(out)
    states = queries.counts(db)
    rate_per_min = eta_s = None
    if live and last and last.ended_us is None:
        now_us = time.time_ns() // 1000
        since_us = max(last.started_us, now_us - 600_000_000)
        done = queries.done_since(db, since_us)
        minutes = (now_us - since_us) / 60e6
        if done and minutes > 0:
            rate_per_min = done / minutes
            eta_s = 60 * (states[JobState.PENDING] + states[JobState.PAID]) / rate_per_min
    return BatchStatus(
        out=str(out),
        jobs={name.value: count for name, count in states.items()},
        totals=queries.totals(db),
        budget_micro=last.budget if last else None,
        holder=live,
        last=last.reason if last else None,
        rate_per_min=rate_per_min,
        eta_s=eta_s,
    )


def _job_lines(db: sqlite3.Connection, state: JobState | None) -> Iterator[str]:
    from banana_batch.report.results import result_dict

    for row in queries.results(db, state):
        result = result_dict(row)
        error = result["error"]
        what = result["image"] or (f"{error['class']}: {error['message']}" if error else "")
        yield (
            f"{result['index']:>6}  {result['state']:<8}  {printable(result['id'], 40):<20}"
            f"  {printable(result['prompt'], _PROMPT_COLUMNS)}  {printable(what, 100)}".rstrip()
        )


def ledger(
    batches: Annotated[list[str], typer.Argument(metavar="BATCH...", help="Output folders, or their manifests")],
    by: Annotated[Literal["run", "day", "model", "size"], typer.Option(help="A line for each")] = "run",
    json: Json = False,
) -> int:
    """Add up the credits: spent, at risk, wasted.

    Example: banana-batch ledger outputs/prompts --by model
    """
    sums: dict[str, LedgerLine] = {}
    totals = Totals()
    folders = list(dict.fromkeys(find_batch(name, working_folder()).resolve() for name in batches))
    told_apart = len({out.name for out in folders}) == len(folders)
    for out in folders:
        with contextlib.closing(database.open_reader(out)) as db:
            found = queries.totals(db)
            totals = Totals(
                totals.reserved + found.reserved,
                totals.spent + found.spent,
                totals.at_risk + found.at_risk,
                totals.wasted + found.wasted,
            )
            for row in queries.ledger(db, by):
                key = row.key
                if by == "run" and len(folders) > 1:
                    key = f"{out.name if told_apart else out} {row.key}"
                known = sums.get(key, LedgerLine(key, 0, 0, 0, 0))
                sums[key] = LedgerLine(
                    key,
                    known.attempts + row.attempts,
                    known.spent_micro + row.spent,
                    known.at_risk_micro + row.at_risk,
                    known.wasted_micro + row.wasted,
                )
    # A call on the wire is at risk until it is answered.
    totals = Totals(0, totals.spent, totals.at_risk + totals.reserved, totals.wasted)
    lines = list(sums.values())
    if json:
        outcome.print_json(ledger_summary(totals, lines))
    else:
        outcome.say(ledger_text(totals, lines, by))
    return Exit.DONE


def export(
    batch: Batch,
    format: Annotated[Literal["jsonl", "csv"], typer.Option("--format", help="jsonl or csv")] = "jsonl",
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="Write here [default: standard output]")
    ] = None,
) -> int:
    """Write the results in the manifest's order, and replace results.jsonl in the output folder.

    Example: banana-batch export outputs/prompts --format csv --to results.csv
    """
    from banana_batch.report.results import json_line, result_dict, write_csv, write_results

    out = find_batch(batch, working_folder())
    with contextlib.closing(database.open_reader(out)) as db:
        write_results(out, map(result_dict, queries.results(db)))
        with _target(to) as stream:
            if format == "csv":
                write_csv(stream, _Results(db))
            else:
                for row in queries.results(db):
                    stream.write(json_line(result_dict(row)).decode())
    return Exit.DONE


class _Results:
    """The results, to be gone through more than once."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __iter__(self) -> Iterator[dict[str, object]]:
        from banana_batch.report.results import result_dict

        return map(result_dict, queries.results(self._db))


@contextlib.contextmanager
def _target(path: str | None) -> Iterator[TextIO]:
    try:
        # Standard output by its number: no lock of `sys.stdout` is left behind by a reader that went away.
        with open(1 if path is None else path, "w", encoding="utf-8", newline="", closefd=path is not None) as file:
            yield file
    except BrokenPipeError:
        return  # the reader (head, less) has what it wanted
    except OSError as failed:
        kind = DiskError if failed.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else OutputError
        raise kind(f"{path or 'standard output'}: can't be written: {failed.strerror}") from failed
