"""The account of a run, as values: what the summary, summary.md and the JSON objects are made from.

Rule 1: plain values, amounts in millionths of a credit, times in microseconds since the epoch.
Rule 2: three figures of money, never one: spent, at risk, wasted. `spent` includes `wasted`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from banana_batch.errors import REASONS, Exit
from banana_batch.lifecycle import JobState
from banana_batch.models import Kind, Totals
from banana_batch.money import credits_text

from .tally import Outage


class KindLine(Struct, frozen=True):
    """What one model at one size came to.

    Attributes:
        images: Paid answers.
        p50_s, p95_s: Latency of those, seconds; None: there was none.
    """

    kind: Kind
    images: int
    spent_micro: int
    at_risk_micro: int = 0
    wasted_micro: int = 0
    p50_s: float | None = None
    p95_s: float | None = None


class FailureLine(Struct, frozen=True):
    """One class of failures: how many jobs ended with it, and what the endpoint said about one of them."""

    name: str
    count: int
    example: str | None = None


class JobLine(Struct, frozen=True):
    """A job that stands out."""

    index: int
    id: str
    kind: Kind
    latency_s: float | None
    credits_micro: int | None


class Account(Struct, frozen=True):
    """What a run came to.

    Attributes:
        out: The output folder as the user would type it.
        run_budget_micro: The cap of this run alone.
        run_command: The words of the command that goes on with this batch; none: not known.
        jobs: Jobs of the whole batch by state.
        totals: Of the whole batch.
        run_totals: Of this run.
        expected_micro: What the jobs still pending are likely to cost; None: no price is known.
        failures: Jobs in state `failed`, by class, the most frequent first.
        kinds: Of this run, by model and size.
        slowest, dearest: A few jobs each, the worst first.
        warnings: Images that were kept with a warning.
    """

    exit: Exit
    out: str
    started_us: int
    ended_us: int
    elapsed_s: float
    jobs: Mapping[str, int]
    totals: Totals
    run_totals: Totals
    budget_micro: int | None = None
    run_budget_micro: int | None = None
    expected_micro: int | None = None
    run_command: Sequence[str] = ()
    throttled_s: float = 0.0
    warnings: int = 0
    failures: Sequence[FailureLine] = ()
    kinds: Sequence[KindLine] = ()
    outages: Sequence[Outage] = ()
    slowest: Sequence[JobLine] = ()
    dearest: Sequence[JobLine] = ()

    def count(self, state: JobState) -> int:
        """Return how many jobs of the batch are in a state."""
        return self.jobs.get(state.value, 0)

    @property
    def total(self) -> int:
        """Jobs of the batch."""
        return sum(self.jobs.values())


def run_summary(
    *,
    exit: Exit | int | None,
    jobs: Mapping[str, int],
    totals: Totals,
    budget_micro: int | None,
    elapsed_s: float | None,
    out: Path | str | None,
    running: bool = False,
    reason: str | None = None,
) -> dict[str, object]:
    """Return the object of `run --json` and `status --json`.

    Args:
        exit: None: no run ended here yet.
        jobs: By state; states that are missing count as 0.
        reason: None: the usual word for `exit`.
    """
    if reason is None and exit is not None:
        reason = REASONS[Exit(exit)]
    return {
        "exit": None if exit is None else int(exit),
        "reason": reason,
        "jobs": {state.value: jobs.get(state.value, 0) for state in JobState},
        "credits": {
            "spent": credits_text(totals.spent),
            "at_risk": credits_text(totals.at_risk),
            "wasted": credits_text(totals.wasted),
            "reserved": credits_text(totals.reserved),
            "budget": None if budget_micro is None else credits_text(budget_micro),
        },
        "elapsed_s": None if elapsed_s is None else round(elapsed_s, 3),
        "out": None if out is None else str(out),
        "running": running,
    }


class LedgerLine(Struct, frozen=True):
    """One group of paid requests: a run, a day, a model or a size."""

    key: str
    attempts: int
    spent_micro: int
    at_risk_micro: int
    wasted_micro: int


def ledger_summary(totals: Totals, lines: Sequence[LedgerLine]) -> dict[str, object]:
    """Return the object of `ledger --json`."""
    return {
        "spent": credits_text(totals.spent),
        "at_risk": credits_text(totals.at_risk),
        "wasted": credits_text(totals.wasted),
        "rows": [
            {
                "key": line.key,
                "attempts": line.attempts,
                "spent": credits_text(line.spent_micro),
                "at_risk": credits_text(line.at_risk_micro),
                "wasted": credits_text(line.wasted_micro),
            }
            for line in lines
        ],
    }
