"""What a plan shows: counts, credits, time, and what to do next."""

from banana_batch import accounting, money
from banana_batch.errors import Exit
from banana_batch.lifecycle import JobState
from banana_batch.models import Kind
from banana_batch.pacing.latency import Latencies
from banana_batch.planning import Order, Prepared
from banana_batch.report import tables
from banana_batch.report.account import run_summary
from banana_batch.store import queries
from banana_batch.text import duration_text, plural

# Round numbers of what such calls take, for a batch that has no history (vendor facts, section 6), seconds.
_GUESS_S = {"1K": 17.0, "2K": 35.0, "4K": 60.0}


class _Figures:
    """The figures of a plan, from the staged manifest and the batch's own history."""

    def __init__(self, order: Order, prepared: Prepared) -> None:
        settings, db = order.settings, prepared.db
        self.states = queries.manifest_counts(db)
        self.todo: dict[Kind, int] = {}
        pending = queries.pending_kinds(db)
        for counted in prepared.difference.kinds:
            known_pending = min(pending.get(counted.kind, 0), counted.known)
            if counted.new + known_pending:
                self.todo[counted.kind] = counted.new + known_pending
        history = queries.history(db)
        self.prices = {
            past.kind: (past.mean_micro, past.highest_micro)
            for past in history
            if past.mean_micro is not None and past.highest_micro is not None
        }
        self.measured = all(kind in self.prices for kind in self.todo)
        self.least, self.expected, self.most = accounting.estimate(self.todo, self.prices, settings.caps.max_price)
        latencies = Latencies()
        for past in history:
            latencies.seed(past.kind, past.latencies_s)
        total_s = 0.0
        for kind, count in self.todo.items():
            seen = latencies.both(kind)
            total_s += count * (seen[0] if seen else _GUESS_S.get(kind.image_size, 17.0))
        self.duration_s = total_s / settings.concurrency
        self.timed = all(latencies.both(kind) for kind in self.todo)


def plan_json(order: Order, prepared: Prepared) -> dict[str, object]:
    """Return the plan as one JSON object: the batch's summary, and `plan` beside it."""
    figures, difference = _Figures(order, prepared), prepared.difference
    budget = order.settings.budget
    jobs = {state.value: count for state, count in queries.counts(prepared.db).items()}
    summary = run_summary(
        exit=Exit.DONE,
        jobs=jobs,
        totals=queries.totals(prepared.db),
        budget_micro=budget,
        elapsed_s=0.0,
        out=order.out,
    )
    summary["plan"] = {
        "rows": difference.rows,
        "new": difference.new + difference.changed,
        "changed": difference.changed,
        "removed": difference.removed,
        "duplicates": difference.duplicates,
        "to_send": sum(figures.todo.values()),
        "in_doubt": figures.states[JobState.IN_DOUBT],
        "credits": {
            "least": money.credits_text(figures.least),
            "expected": money.credits_text(figures.expected),
            "most": money.credits_text(figures.most),
            "measured": figures.measured,
        },
        "duration_s": round(figures.duration_s, 1),
        "kinds": [
            {"model": line.kind.model, "image_size": line.kind.image_size, "new": line.new, "known": line.known}
            for line in difference.kinds
        ],
    }
    return summary


def plan_text(order: Order, prepared: Prepared) -> str:
    """Return the plan for a person."""
    figures, difference = _Figures(order, prepared), prepared.difference
    lines = [f"{plural(difference.rows, 'job')} for {order.out}", ""]
    rows = [
        [
            line.kind.model,
            line.kind.image_size,
            f"{line.new:,}",
            f"{line.known:,}",
            f"{figures.todo.get(line.kind, 0):,}",
        ]
        for line in difference.kinds
    ]
    lines += tables.plain(["model", "size", "new", "known", "to send"], rows, "<<>>>", "  ")
    lines += ["", *_notes(difference.changed, difference.removed, difference.duplicates, figures)]
    for warning in prepared.warnings[:10]:
        lines.append(f"  warning: {warning}")
    if len(prepared.warnings) > 10:
        lines.append(f"  and {len(prepared.warnings) - 10:,} more warnings")
    lines += ["", *_costs(figures), "", "Nothing was sent, nothing was written."]
    return "\n".join(lines)


def _notes(changed: int, removed: int, duplicates: int, figures: _Figures) -> list[str]:
    states = figures.states
    counted = (
        (states[JobState.DONE], "done already"),
        (states[JobState.PAID], "paid, to be downloaded"),
        (states[JobState.IN_DOUBT], "in doubt (banana-batch resolve)"),
        (states[JobState.FAILED], "failed for good (banana-batch redo --failed)"),
        (changed, "changed since they were sent"),
        (removed, "no longer in the manifest: not sent"),
        (duplicates, "ask for what another row asks for too (--dedupe reuse pays once)"),
    )
    return [f"  {count:,} {what}" for count, what in counted if count]


def _costs(figures: _Figures) -> list[str]:
    todo = sum(figures.todo.values())
    if not todo:
        return ["Everything is done: nothing would be sent."]
    if figures.measured:
        cost = f"Credits: about {money.priced_text(figures.expected)}, at most {money.priced_text(figures.most)}"
        source = "by what such images cost in this batch"
    else:
        cost = f"Credits: at most {money.priced_text(figures.most)}"
        source = "by --max-price, as no price is known yet; run with --limit 5 first, then plan again"
    speed = "by latencies seen here" if figures.timed else "by usual latencies"
    return [f"{cost}", f"  {source}", f"Time: about {duration_text(figures.duration_s)}, {speed}"]
