"""From the state file to the account of a run: the figures that the summary, the JSON and the hook show."""

import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from .engine.budget import reserve_for
from .errors import Exit
from .lifecycle import JobState
from .models import Caps, Kind
from .report.account import Account, FailureLine, JobLine, KindLine, run_summary
from .report.tally import Outage
from .store import queries


class Span(Struct, frozen=True):
    """When a run was, and which attempts are its own."""

    started_us: int
    ended_us: int
    elapsed_s: float
    first_attempt: int
    run: int


def is_budget_used_up(db: sqlite3.Connection, caps: Caps, run: int) -> bool:
    """Tell whether jobs wait of which the caps forbid each, whatever else ended the run."""
    if not caps.limited:
        return False
    prices = {past.kind: past.highest_micro for past in queries.history(db, latencies=False)}
    sums = queries.totals(db), queries.run_totals(db, run)
    waiting = queries.pending_kinds(db)
    return bool(waiting) and all(reserve_for(prices.get(kind), caps, *sums, 0) is None for kind in waiting)


def account_of(
    db: sqlite3.Connection,
    span: Span,
    code: Exit,
    out: Path,
    *,
    budget: int | None,
    run_budget: int | None,
    run_command: Sequence[str],
    throttled_s: float,
    outages: Sequence[Outage],
) -> Account:
    """Return the account of a run that has just ended."""
    states = queries.counts(db)
    expected = expected_micro(db)
    return Account(
        exit=code,
        out=str(out),
        started_us=span.started_us,
        ended_us=span.ended_us,
        elapsed_s=span.elapsed_s,
        jobs={state.value: count for state, count in states.items()},
        totals=queries.totals(db),
        run_totals=queries.run_totals(db, span.run),
        budget_micro=budget,
        run_budget_micro=run_budget,
        expected_micro=expected,
        run_command=run_command,
        throttled_s=throttled_s,
        warnings=queries.warned(db, span.started_us),
        failures=[FailureLine(*row) for row in queries.failures(db)] if states[JobState.FAILED] else [],
        kinds=[
            KindLine(
                sums.kind,
                sums.images,
                sums.spent,
                sums.at_risk,
                sums.wasted,
                percentile(sums.latencies_s, 50),
                percentile(sums.latencies_s, 95),
            )
            for sums in queries.run_kinds(db, span.first_attempt)
        ],
        outages=outages,
        slowest=_notable(db, span.first_attempt, "latency_s"),
        dearest=_notable(db, span.first_attempt, "credits"),
    )


def expected_micro(db: sqlite3.Connection) -> int | None:
    """Return what the pending jobs are likely to cost; None where a price is not known."""
    means = {past.kind: past.mean_micro for past in queries.history(db, latencies=False)}
    total = 0
    for kind, count in queries.pending_kinds(db).items():
        mean = means.get(kind)
        if mean is None:
            return None
        total += mean * count
    return total


def usual_latency_s(db: sqlite3.Connection) -> float | None:
    """Return the median of what calls of this batch took of late, seconds; None: none was answered."""
    return percentile(sorted(took_s for past in queries.history(db) for took_s in past.latencies_s), 50)


def estimate(
    pending: Mapping[Kind, int], prices: Mapping[Kind, tuple[int, int]], max_price: int
) -> tuple[int, int, int]:
    """Return least, expected and most credits of what is left, in millionths.

    Args:
        prices: Mean and highest price of the kinds that were seen; the others count as nothing at least and as
            `max_price` otherwise.
    """
    least = expected = most = 0
    for kind, count in pending.items():
        mean, highest = prices.get(kind, (max_price, max_price))
        least += count * mean if kind in prices else 0
        expected += count * mean
        most += count * highest
    return least, expected, most


def percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Return the nearest-rank percentile of sorted values; None without any."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None


def _notable(db: sqlite3.Connection, first_attempt: int, by: queries.Notable) -> list[JobLine]:
    return [JobLine(*found) for found in queries.notable(db, first_attempt, by)]


def summary_of(account: Account) -> dict[str, object]:
    """Return the object of `run --json`."""
    return run_summary(
        exit=account.exit,
        jobs=account.jobs,
        totals=account.totals,
        budget_micro=account.budget_micro,
        elapsed_s=account.elapsed_s,
        out=account.out,
    )
