"""The parts of the account as cells and sentences, for the terminal and for Markdown alike.

Rule 1: other people's text is printable here already; what a place needs on top (escapes, cuts) is its own.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from banana_batch.errors import REASONS, Exit
from banana_batch.lifecycle import JobState
from banana_batch.money import credits_text, dollars_text
from banana_batch.text import duration_text, plural, printable

from .account import Account, FailureLine, JobLine, KindLine, LedgerLine
from .moments import local_text, seconds_text, span_text
from .tally import Outage

STATE_WORDS: dict[JobState, str] = {
    JobState.DONE: "done",
    JobState.FAILED: "failed",
    JobState.IN_DOUBT: "in doubt",
    JobState.PAID: "to be fetched",
    JobState.LOST: "lost",
    JobState.PENDING: "not sent yet",
    JobState.SENDING: "on the wire",
    JobState.DROPPED: "dropped",
}

_EXIT_WORDS: dict[Exit, str] = {
    Exit.DONE: "Done",
    Exit.FAILED: "Finished, with failures",
    Exit.IN_DOUBT: "Finished, with doubts",
    Exit.BUDGET: "The budget is reached",
    Exit.NOT_FETCHED: "All is paid, not all is fetched",
    Exit.STOPPED: "Stopped as asked, with work left",
    Exit.OUT_OF_CREDITS: "The account's credits ran out",
    Exit.UNAVAILABLE: "The endpoint is not available",
    Exit.DISK: "The disk is full or broken",
    Exit.PROTOCOL: "The endpoint answers in a way that is not known",
    Exit.KEY: "The key was not taken",
    Exit.BUG: "A bug in this program",
    Exit.INTERRUPTED: "Stopped at once",
    Exit.TERMINATED: "Stopped at once",
}


class Table(Struct, frozen=True):
    """Cells under a head; `align` has `<` or `>` for each column."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str


def headline(account: Account) -> str:
    """Return what became of the run: `Done: 1,632 images; this run took 41 min`."""
    word = _EXIT_WORDS.get(account.exit, f"Ended ({REASONS[account.exit]})")
    done = account.count(JobState.DONE)
    images = plural(done, "image") if done == account.total else f"{done:,} of {plural(account.total, 'image')}"
    return f"{word}: {images}; this run took {duration_text(account.elapsed_s)}"


def standing(jobs: Mapping[str, int]) -> list[str]:
    """Return `1,600 done`, `30 failed` … for the states that have jobs."""
    return [f"{jobs[state]:,} {word}" for state, word in STATE_WORDS.items() if jobs.get(state)]


def money(account: Account) -> Table:
    """Return spent, at risk and wasted, of this run and of the whole batch."""
    run, batch = account.run_totals, account.totals
    figures = [
        ("spent", run.spent, batch.spent),
        ("at risk", run.at_risk, batch.at_risk),
        ("wasted", run.wasted, batch.wasted),
    ]
    rows = [[name, *_both(mine), *_both(all_runs)] for name, mine, all_runs in figures]
    if account.budget_micro is not None:
        left = account.budget_micro - batch.committed
        rows.append(["budget left" if left >= 0 else "over budget", "", "", *_both(abs(left))])
    return Table(["credits", "this run", "", "whole batch", ""], rows, "<>>>>")


def kinds(lines: Iterable[KindLine], *, wide: bool) -> Table:
    """Return images, credits and latencies by model and size; `wide` with what is at risk and wasted."""
    extra = ["at risk", "wasted"] if wide else []
    rows = []
    for line in lines:
        unsure = [credits_text(line.at_risk_micro), credits_text(line.wasted_micro)] if wide else []
        latency = [seconds_text(line.p50_s), seconds_text(line.p95_s)]
        cells = [printable(line.kind.model, 30), printable(line.kind.image_size, 4), f"{line.images:,}"]
        rows.append([*cells, credits_text(line.spent_micro), *unsure, *latency])
    head = ["model", "size", "images", "credits", *extra, "p50", "p95"]
    return Table(head, rows, "<<" + ">" * (len(head) - 2))


def outages(found: Iterable[Outage]) -> list[str]:
    """Return a sentence for each outage."""
    return [_outage(outage) for outage in found]


def oddities(account: Account) -> list[str]:
    """Return a sentence for the time spent throttled, and for images that were kept with a warning."""
    found = []
    if account.throttled_s >= 1:
        found.append(f"Throttled by the endpoint for {duration_text(account.throttled_s)}")
    if account.warnings:
        found.append(f"{plural(account.warnings, 'image')} kept with a warning: see results.jsonl")
    return found


def failures(lines: Iterable[FailureLine]) -> Table:
    """Return failed jobs by class, with the endpoint's words about one of them."""
    rows = [[f"{line.count:,}", printable(line.name, 40), printable(line.example or "")] for line in lines]
    return Table(["jobs", "class", "for example"], rows, "><<")


def stand_outs(lines: Iterable[JobLine]) -> Table:
    """Return jobs that were slow or dear."""
    rows = [
        [
            str(line.index),
            printable(line.id, 14),
            printable(str(line.kind), 34),
            seconds_text(line.latency_s),
            "-" if line.credits_micro is None else credits_text(line.credits_micro),
        ]
        for line in lines
    ]
    return Table(["job", "id", "model", "took", "credits"], rows, "><<>>")


def ledger(lines: Iterable[LedgerLine], by: str) -> Table:
    """Return spent, at risk and wasted, a row a group."""
    rows = [
        [
            printable(line.key, 34),
            f"{line.attempts:,}",
            credits_text(line.spent_micro),
            credits_text(line.at_risk_micro),
            credits_text(line.wasted_micro),
        ]
        for line in lines
    ]
    return Table([by, "requests", "spent", "at risk", "wasted"], rows, "<>>>>")


def _both(micro: int) -> list[str]:
    return [credits_text(micro), dollars_text(micro)]


def _outage(outage: Outage) -> str:
    cause = printable(outage.cause, 120)
    doubts = f", {plural(outage.doubts, 'doubt')}" if outage.doubts else ""
    if outage.duration_s is None:
        return f"{local_text(outage.started_us)} until the end{doubts}: {cause}"
    span = span_text(outage.started_us, outage.started_us + round(outage.duration_s * 1e6))
    return f"{span} ({duration_text(outage.duration_s)}){doubts}: {cause}"
