"""The end of a simulated night, held to its promises."""

import contextlib
import hashlib
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from banana_batch.engine.stops import FEW
from banana_batch.sandbox.server import Sandbox
from tests.torture.virtual import EVENING
from tests.torture.weather import Night
from tests.torture.world import World

_LEDGER = """
SELECT job, run, outcome, reserved, credits, wasted, sent_us, class, status FROM attempts ORDER BY attempt
"""


@dataclass
class Story:
    """How a night went.

    Attributes:
        ledger: Hash of all attempts and states: the same seed gives the same.
        ended_s: When the last run ended, in seconds of the night.
    """

    seed: int
    broken: list[str] = field(default_factory=list)
    ledger: str = ""
    ended_s: float = 0.0
    runs: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def judge(world: World, story: Story, sandbox: Sandbox) -> None:
    """Hold the end of the night to its promises."""
    with contextlib.closing(sqlite3.connect(world.out / "state.sqlite3")) as db:
        db.row_factory = sqlite3.Row
        rows = [tuple(row) for row in db.execute(_LEDGER)]
        states = [tuple(row) for row in db.execute("SELECT id, state, attempts, tries FROM jobs ORDER BY job")]
        story.ledger = hashlib.sha256(repr((rows, states)).encode()).hexdigest()
        story.counts.update(state for _, state, _, _ in states)
        story.counts["attempts"] = len(rows)
        story.broken += _unpaid(db, world.night, story)
        story.broken += _late(db, world, story)
        story.broken += charges_agree(db, sandbox)
        story.broken += images_are_whole(db, world.out)


def _unpaid(db: sqlite3.Connection, night: Night, story: Story) -> list[str]:
    """Tell what was left undone without a reason."""
    counts, broken = story.counts, []
    for state in ("sending", "paid", "lost"):
        if counts[state]:
            broken.append(f"{counts[state]} jobs are left {state}")
    if counts["pending"] and not story.runs[-1].endswith("BUDGET"):
        broken.append(f"{counts['pending']} jobs are left pending: {story.runs}")
    elif counts["pending"]:
        broken += _room_left(db, counts["pending"])
    weathers = [(spell.starts_s, spell.starts_s + spell.lasts_s) for spell in night.spells]
    for job in [row[0] for row in db.execute("SELECT job FROM jobs WHERE state = 'failed'")]:
        sent = db.execute("SELECT sent_us FROM attempts WHERE job = ? AND outcome = 'refused'", (job,)).fetchall()
        own = [row[0] for row in sent if not _within(row[0], weathers)]
        # A few jobs that are left alone can't be told from such as are refused for their own sake.
        others = db.execute(
            "SELECT count(DISTINCT job) FROM attempts WHERE job <> ? AND sent_us BETWEEN ? AND ?",
            (job, sent[-3:][0][0], sent[-1][0]),
        ).fetchone()[0]
        if not own and others >= FEW:
            broken.append(f"job {job} failed by storms alone")
    return broken


def _late(db: sqlite3.Connection, world: World, story: Story) -> list[str]:
    """Tell whether the night took longer than its faults account for."""
    throttled = db.execute(
        "SELECT count(*) FROM attempts WHERE class IN ('rate_limited', 'queue_full', 'overloaded', 'server_failed')"
    ).fetchone()[0]
    night = world.night
    # Half as long again, an hour for the way back, two minutes a restart, and two for each refusal's cool-down.
    due_s = 1.5 * night.work_s + night.stormy_s * 16 / 15 + 3600 + 120 * (len(story.runs) + throttled)
    late_s = world.last_call_s - due_s
    return [f"the last call was sent {late_s:.0f} s later than the faults account for"] if late_s > 0 else []


def _within(sent_us: int, weathers: list[tuple[float, float]]) -> bool:
    at_s = sent_us / 1e6 - EVENING.timestamp()
    return any(starts_s - 1 <= at_s <= ends_s + 1 for starts_s, ends_s in weathers)


def _room_left(db: sqlite3.Connection, pending: int) -> list[str]:
    budget, committed = db.execute(
        "SELECT (SELECT budget FROM runs ORDER BY run DESC LIMIT 1), sum(spent + at_risk + reserved) FROM runs"
    ).fetchone()
    dearest = db.execute(
        "SELECT max(ifnull(highest, 1)) FROM kinds WHERE kind IN (SELECT kind FROM jobs WHERE state = 'pending')"
    ).fetchone()[0]
    if committed + dearest <= budget:
        return [f"{pending} jobs are left pending with {budget - committed} of the budget free"]
    return []


def charges_agree(db: sqlite3.Connection, sandbox: Sandbox) -> list[str]:
    """Hold the endpoint's own log against the ledger, prompt by prompt."""
    charged: Counter[str] = Counter()
    total = 0
    for charge in sandbox.charges():
        charged[charge.prompt] += 1
        total += charge.credits
    broken = []
    for prompt, paid, open_ in db.execute(
        "SELECT request ->> 'prompt', sum(outcome = 'paid'), sum(outcome IN ('doubt', 'unpriced'))"
        " FROM jobs LEFT JOIN attempts USING (job) GROUP BY jobs.job"
    ):
        if not (paid or 0) <= charged[prompt] <= (paid or 0) + (open_ or 0):
            broken.append(f"{prompt!r}: charged {charged[prompt]} times, the ledger has {paid} paid, {open_} in doubt")
    spent = db.execute("SELECT sum(spent) FROM runs").fetchone()[0] or 0
    if spent > total:
        broken.append(f"the ledger has {spent} spent, the endpoint charged {total}")
    return broken[:5]


def images_are_whole(db: sqlite3.Connection, out: Path) -> list[str]:
    """Re-hash every image, and look for files that nobody knows."""
    broken, known = [], set()
    for path, sha256 in db.execute("SELECT path, sha256 FROM images JOIN jobs USING (job) WHERE state = 'done'"):
        known.add(path)
        if hashlib.sha256((out / path).read_bytes()).digest() != sha256:
            broken.append(f"{path} is not what the state says")
    found = {str(path.relative_to(out)) for path in (out / "images").rglob("*") if not path.is_dir()}
    if found != known:
        broken.append(f"files that are no finished image: {sorted(found ^ known)[:5]}")
    return broken
