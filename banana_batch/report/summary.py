"""The account of the night, `status` and `ledger` on a terminal: short, aligned, 80 columns."""

import textwrap
from collections.abc import Mapping, Sequence

from msgspec import Struct

from banana_batch.models import Totals
from banana_batch.money import credits_text, dollars_text, priced_text
from banana_batch.text import duration_text, plural, printable

from . import sections, tables
from .account import Account, JobLine, LedgerLine
from .advice import Step, next_steps

COLUMNS = 80
FEW = 5
_INDENT = "  "


class BatchStatus(Struct, frozen=True):
    """What `status` shows.

    Attributes:
        out: The output folder.
        holder: The run that holds the batch (`pid 4711 on host`); None: not running.
        last: How the last run ended (`done`, `budget`, …); None: it did not end, or there was none.
        rate_per_min: Images finished per minute of late; None: not known.
        eta_s: Until the end at this rate, seconds.
    """

    out: str
    jobs: Mapping[str, int]
    totals: Totals
    budget_micro: int | None = None
    holder: str | None = None
    last: str | None = None
    rate_per_min: float | None = None
    eta_s: float | None = None


def terminal_text(account: Account) -> str:
    """Return the end-of-run account for a terminal; no line is wider than 80 columns but commands."""
    parts = [[sections.headline(account), *(_INDENT + line for line in _standing(account.jobs, len(_INDENT)))]]
    parts.append(_table(sections.money(account)))
    if account.kinds:
        parts.append(_table(sections.kinds(account.kinds[:FEW], wide=False)))
    parts += [_failures(account), _night(account)]
    if account.total > FEW:
        parts += [_jobs("Slowest", account.slowest), _jobs("Dearest", account.dearest)]
    parts.append(_next(next_steps(account)))
    out = printable(account.out)
    parts.append([f"Images   {out}/images/", f"Results  {out}/results.jsonl", f"Account  {out}/summary.md"])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def status_text(status: BatchStatus) -> str:
    """Return what `status` prints."""
    running = f"running ({printable(status.holder)})" if status.holder else "not running"
    last = f"; the last run ended: {status.last.replace('_', ' ')}" if status.last and not status.holder else ""
    rows = [
        ["batch", printable(status.out)],
        ["state", running + last],
        ["jobs", f"{sum(status.jobs.values()):,}"],
        *(["", line] for line in _standing(status.jobs, len("reserved  "))),
        ["spent", priced_text(status.totals.spent) + _of_it_wasted(status.totals.wasted)],
        ["at risk", priced_text(status.totals.at_risk)],
    ]
    if status.totals.reserved:
        rows.append(["reserved", priced_text(status.totals.reserved)])
    if status.budget_micro is not None:
        left = status.budget_micro - status.totals.committed
        rest = f"{credits_text(left)} left" if left >= 0 else f"overspent by {credits_text(-left)}"
        rows.append(["budget", f"{priced_text(status.budget_micro)}, {rest}"])
    if status.rate_per_min is not None:
        eta = f", {duration_text(status.eta_s)} left" if status.eta_s is not None else ""
        rows.append(["rate", f"{status.rate_per_min:.3g} images a minute{eta}"])
    return "\n".join(tables.plain(["", ""], rows, "<<")) + "\n"


def ledger_text(totals: Totals, lines: Sequence[LedgerLine], by: str) -> str:
    """Return what `ledger` prints: a row a group, then the sums in credits and dollars."""
    table = sections.ledger(lines, by)
    sums = [totals.spent, totals.at_risk, totals.wasted]
    attempts = f"{sum(line.attempts for line in lines):,}"
    rows = [*table.rows, ["all", attempts, *map(credits_text, sums)], ["", "", *map(dollars_text, sums)]]
    return "\n".join(tables.plain(table.head, rows, table.align)) + "\n"


def _standing(jobs: Mapping[str, int], indent: int) -> list[str]:
    return textwrap.wrap(", ".join(sections.standing(jobs)), COLUMNS - indent)


def _of_it_wasted(micro: int) -> str:
    return f", {credits_text(micro)} of it wasted" if micro else ""


def _table(table: sections.Table) -> list[str]:
    return [tables.fitted(line, COLUMNS) for line in tables.plain(table.head, table.rows, table.align, _INDENT)]


def _failures(account: Account) -> list[str]:
    if not account.failures:
        return []
    table = sections.failures(account.failures[:FEW])
    lines = tables.plain(["", "", ""], table.rows, table.align, _INDENT)
    lines = [tables.fitted(line, COLUMNS) for line in lines]
    more = len(account.failures) - FEW
    return ["Failed", *lines, *([f"{_INDENT}… and {plural(more, 'further kind')}"] if more > 0 else [])]


def _night(account: Account) -> list[str]:
    lines = [f"Outage {sentence}" for sentence in sections.outages(account.outages[:FEW])]
    more = len(account.outages) - FEW
    if more > 0:
        lines.append(f"… and {plural(more, 'further outage')}")
    lines += sections.oddities(account)
    return [tables.fitted(line, COLUMNS) for line in lines]


def _jobs(title: str, lines: Sequence[JobLine]) -> list[str]:
    return [title, *_table(sections.stand_outs(lines[:3]))] if lines else []


def _next(steps: Sequence[Step]) -> list[str]:
    if not steps:
        return []
    lines = ["Next"]
    for step in steps:
        if not step.command:
            lines.append(f"{_INDENT}{step.why}")
        else:
            # Commands are never cut: they are there to be pasted.
            lines += [f"{_INDENT}{step.command}", f"{_INDENT}  # {step.why}"]
    return lines
