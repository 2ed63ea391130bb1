"""What a plan shows: counts, credits, time, disk, and what to do next."""

import os
from collections.abc import Sequence
from pathlib import Path

from banana_batch import accounting, money
from banana_batch.errors import Exit
from banana_batch.lifecycle import JobState
from banana_batch.models import Kind
from banana_batch.ordering import Order
from banana_batch.pacing.latency import Latencies
from banana_batch.prepared import Prepared
from banana_batch.report import tables
from banana_batch.report.account import run_summary
from banana_batch.store import queries
from banana_batch.store.lock import holder
from banana_batch.text import bytes_text, duration_text, plural, printable, shell_line, with_option

# Round figures for a batch without history: what such calls take, and what such images weigh (vendor facts).
_GUESS_S = {"1K": 17.0, "2K": 35.0, "4K": 60.0}
_GUESS_BYTES = {"1K": 2_000_000, "2K": 8_000_000, "4K": 24_000_000}
_CANARY = 5
_MAX_WARNINGS = 10


class Figures:
    """The figures of a plan, from the staged manifest and the batch's own history.

    Attributes:
        todo: Jobs that would be sent, by kind; `--dedupe reuse` counted.
        measured, timed, weighed: The figures come from this batch, for every kind.
    """

    def __init__(self, order: Order, prepared: Prepared) -> None:
        difference, settings = prepared.difference, order.settings
        counted = {line.kind: line.new + line.states.get(JobState.PENDING, 0) for line in difference.kinds}
        self.todo = {kind: count for kind, count in counted.items() if count}
        self.shared = difference.duplicates if settings.dedupe == "reuse" and prepared.fresh else 0
        history = {past.kind: past for past in queries.history(prepared.db)}
        prices = {
            kind: (past.mean_micro, past.highest_micro)
            for kind, past in history.items()
            if past.mean_micro is not None and past.highest_micro is not None
        }
        self.measured = self.todo.keys() <= prices.keys()
        self.least, self.expected, self.most = accounting.estimate(self.todo, prices, settings.of_run.caps.max_price)
        self.duration_s, self.timed = _duration(self.todo, history, settings.concurrency)
        weights = {kind: past.mean_bytes for kind, past in history.items() if past.mean_bytes}
        self.weighed = self.todo.keys() <= weights.keys()
        self.disk_bytes = sum(
            count * weights.get(kind, _GUESS_BYTES.get(kind.image_size, 2_000_000)) for kind, count in self.todo.items()
        )

    @property
    def to_send(self) -> int:
        """Paid calls that a run would make."""
        return sum(self.todo.values()) - self.shared


def _duration(todo: dict[Kind, int], history: dict[Kind, queries.KindHistory], concurrency: int) -> tuple[float, bool]:
    latencies = Latencies()
    for kind, past in history.items():
        latencies.seed(kind, past.latencies_s)
    total_s, timed = 0.0, True
    for kind, count in todo.items():
        seen = latencies.both(kind)
        timed = timed and seen is not None
        total_s += count * (seen[0] if seen else _GUESS_S.get(kind.image_size, 17.0))
    return total_s / concurrency, timed


def plan_json(order: Order, prepared: Prepared) -> dict[str, object]:
    """Return the plan as one JSON object: the batch's summary, and `plan` beside it."""
    figures, difference = Figures(order, prepared), prepared.difference
    states = queries.counts(prepared.db)
    summary = run_summary(
        exit=Exit.DONE,
        jobs={state.value: count for state, count in states.items()},
        totals=queries.totals(prepared.db),
        budget_micro=order.settings.budget,
        elapsed_s=0.0,
        out=order.out,
        running=holder(order.out) is not None,
    )
    summary["plan"] = {
        "rows": difference.rows,
        "new": difference.new + difference.changed,
        "changed": difference.changed,
        "removed": difference.removed,
        "duplicates": difference.duplicates,
        "to_send": figures.to_send,
        "in_doubt": states[JobState.IN_DOUBT],
        "credits": {
            "least": money.credits_text(figures.least),
            "expected": money.credits_text(figures.expected),
            "most": money.credits_text(figures.most),
            "measured": figures.measured,
        },
        "duration_s": round(figures.duration_s, 1),
        "disk_bytes": figures.disk_bytes,
        "kinds": [
            {
                "model": line.kind.model,
                "image_size": line.kind.image_size,
                "new": line.new,
                "removed": line.removed,
                **line.states,
            }
            for line in difference.kinds
        ],
        "warnings": [str(warning) for warning in prepared.warnings],
    }
    return summary


def plan_text(order: Order, prepared: Prepared, run_command: Sequence[str]) -> str:
    """Return the plan for a person; `run_command`: the words of the command that makes it so."""
    figures, difference = Figures(order, prepared), prepared.difference
    lines = [f"{plural(difference.rows, 'job')} for {printable(str(order.out))}", "", *_table(prepared), ""]
    lines += _notes(order, prepared)
    for warning in prepared.warnings[:_MAX_WARNINGS]:
        lines.append(f"  warning: {warning}")
    if len(prepared.warnings) > _MAX_WARNINGS:
        lines.append(f"  and {plural(len(prepared.warnings) - _MAX_WARNINGS, 'more warning')}")
    if figures.to_send:
        lines += ["", *_costs(figures), *_resources(order, figures), *_next(figures, run_command)]
    else:
        lines += ["", "Nothing would be sent: no job waits."]
    return "\n".join([*lines, "", "Nothing was sent, nothing was written. File names: no two collide."])


def _table(prepared: Prepared) -> list[str]:
    shown = [
        (state, state.value.replace("_", " "))
        for state in JobState
        if state is JobState.DONE or any(line.states.get(state) for line in prepared.difference.kinds)
    ]
    removed = any(line.removed for line in prepared.difference.kinds)
    head = ["model", "size", "new", *(name for _, name in shown), *(["removed"] if removed else [])]
    rows = [
        [
            printable(line.kind.model, 40),
            line.kind.image_size,
            f"{line.new:,}",
            *(f"{line.states.get(state, 0):,}" for state, _ in shown),
            *([f"{line.removed:,}"] if removed else []),
        ]
        for line in prepared.difference.kinds
    ]
    return tables.plain(head, rows, "<<" + ">" * (len(head) - 2), "  ")


def _notes(order: Order, prepared: Prepared) -> list[str]:
    difference = prepared.difference
    in_doubt = sum(line.states.get(JobState.IN_DOUBT, 0) for line in difference.kinds)
    pays = {"allow": "each is paid for; --dedupe reuse pays once", "reuse": "paid once, the image linked for each"}
    counted = (
        (difference.changed, "changed since they were sent: bought anew, the old image stays"),
        (difference.removed, "no longer in the manifest: not sent"),
        (in_doubt, f"in doubt, not sent without your word: banana-batch resolve {shell_line([str(order.out)])}"),
        (difference.duplicates, f"ask for what another row asks for ({pays.get(order.settings.dedupe, '')})"),
    )
    notes = [f"{count:,} {what}" for count, what in counted if count]
    return [f"  {note}" for note in (*notes, difference.columns_text) if note]


def _costs(figures: Figures) -> list[str]:
    if not figures.measured:
        return [
            f"Credits  at most {money.priced_text(figures.most)}: by --max-price, as not every price is known yet",
        ]
    least, most = money.credits_text(figures.least), money.priced_text(figures.most)
    about = money.priced_text(figures.expected)
    return [f"Credits  about {about}; least {least}, most {most}; by what such images cost in this batch"]


def _resources(order: Order, figures: Figures) -> list[str]:
    how = "as measured in this batch" if figures.timed else "by usual latencies"
    lines = [f"Time     about {duration_text(figures.duration_s)} at -c {order.settings.concurrency}, {how}"]
    free = _free_bytes(order.out)
    weight = "as measured in this batch" if figures.weighed else "by usual sizes"
    lines.append(f"Disk     about {bytes_text(figures.disk_bytes)}, {weight}; free: {bytes_text(free)}")
    if free < figures.disk_bytes:
        lines.append("  warning: the disk is too small for all of them")
    return lines


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _next(figures: Figures, run_command: Sequence[str]) -> list[str]:
    if figures.measured or figures.to_send <= _CANARY:
        return []
    command = shell_line(with_option(run_command, "--limit", str(_CANARY)))
    return ["", f"First buy {_CANARY}, then plan again with measured figures:", f"  {command}"]
