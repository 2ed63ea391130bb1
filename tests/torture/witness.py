"""Watches every commit of a state file from inside its connection, and keeps a ledger of its own.

Rule 1: what changed comes from temporary triggers on the writer's own connection; the sums are made here, in
        Python, and compared with the kept ones at each commit.
Rule 2: nothing of the program's own tables of transitions is used: what is legal is written down here again.
"""

import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass

_TRIGGERS = """
CREATE TEMP TABLE seen (what TEXT, row INTEGER, was TEXT, becomes TEXT, job INTEGER, run INTEGER,
  reserved INTEGER, credits INTEGER, wasted INTEGER);
CREATE TEMP TRIGGER seen_move AFTER UPDATE OF state ON main.jobs
BEGIN INSERT INTO seen VALUES ('job', NEW.job, OLD.state, NEW.state, NEW.job, NULL, NULL, NULL, NULL); END;
CREATE TEMP TRIGGER seen_begin AFTER INSERT ON main.attempts
BEGIN INSERT INTO seen VALUES ('attempt', NEW.attempt, NULL, NEW.outcome, NEW.job, NEW.run, NEW.reserved,
  NEW.credits, NEW.wasted); END;
CREATE TEMP TRIGGER seen_change AFTER UPDATE OF outcome, reserved, credits, wasted ON main.attempts
BEGIN INSERT INTO seen VALUES ('attempt', NEW.attempt, OLD.outcome, NEW.outcome, NEW.job, NEW.run, NEW.reserved,
  NEW.credits, NEW.wasted); END;
"""

_JOB_MOVES = frozenset(
    {
        "pending>sending", "sending>pending", "sending>failed", "sending>paid", "sending>in_doubt", "paid>done",
        "paid>lost", "in_doubt>pending", "in_doubt>paid", "in_doubt>dropped", "failed>pending", "dropped>pending",
        "done>paid",
    }
)  # fmt: skip
_ATTEMPT_MOVES = frozenset(
    {
        "sending>not_sent", "sending>refused", "sending>paid", "sending>unpriced", "sending>doubt",
        "doubt>charged", "doubt>not_charged", "doubt>paid",
    }
)  # fmt: skip
_FREE = frozenset({"not_sent", "refused", "not_charged"})
_SPENT = frozenset({"paid", "charged"})
_AT_RISK = frozenset({"doubt", "unpriced"})


@dataclass(slots=True)
class Attempt:
    """One paid request, as its row stands; `reserved` is what it was begun with or brought down to."""

    job: int
    run: int
    outcome: str
    reserved: int
    credits: int | None
    wasted: bool

    def weight(self) -> tuple[int, int, int, int]:
        """Return what it adds to reserved, spent, at risk, wasted."""
        spent = (self.credits or 0) if self.outcome in _SPENT else 0
        return (
            self.reserved if self.outcome == "sending" else 0,
            spent,
            self.reserved if self.outcome in _AT_RISK else 0,
            spent if self.wasted else 0,
        )


def _attempt(outcome: str, job: int, run: int, reserved: int, credits_: int | None, wasted: int) -> Attempt:
    return Attempt(job, run, outcome, reserved, credits_, bool(wasted))


class Witness:
    """The ledger as it should be.

    Attributes:
        budget: The cap that holds now, in millionths; None: none.
        may_resend: Jobs in doubt may be sent again: the user said so for this run.
        broken: Promises that were not kept.
        commits: Commits seen.
        resends: By job, how often the user's word sent it again.
    """

    def __init__(self) -> None:
        self.budget: int | None = None
        self.may_resend = False
        self.broken: list[str] = []
        self.commits = 0
        self.resends: Counter[int] = Counter()
        self.attempts: dict[int, Attempt] = {}
        self.of_job: dict[int, list[int]] = defaultdict(list)
        self.states: dict[int, str] = {}
        self._sums = [0, 0, 0, 0]
        self._excess = 0
        self._overspent = 0
        self._floor = 0

    def attach(self, db: sqlite3.Connection) -> None:
        """Begin to watch a connection; what happened before is read from the file."""
        self.attempts = {
            row[0]: _attempt(*tuple(row)[1:])
            for row in db.execute("SELECT attempt, outcome, job, run, reserved, credits, wasted FROM attempts")
        }
        self.of_job = defaultdict(list)
        for number, attempt in self.attempts.items():
            self.of_job[attempt.job].append(number)
        self._sums = [sum(column) for column in zip(*(one.weight() for one in self.attempts.values()), strict=True)]
        self._sums = self._sums or [0, 0, 0, 0]
        self.states = dict(db.execute("SELECT job, state FROM jobs").fetchall())
        # A budget may be set below what is committed already: then nothing more is sent.
        self._floor = sum(self._sums[:3])
        self._excess = 0
        self._overspent = 2 if self.budget is not None and self._floor > self.budget else 0
        db.execute("PRAGMA temp_store = MEMORY")
        db.executescript(_TRIGGERS)

    def committed(self, db: sqlite3.Connection) -> None:
        """Judge what one commit changed."""
        self.commits += 1
        rows = db.execute("SELECT * FROM seen ORDER BY rowid").fetchall()
        if not rows:
            return
        db.execute("DELETE FROM seen")
        begun = 0
        for what, number, was, becomes, *rest in rows:
            if what == "job":
                self._moved(number, was, becomes)
            elif was is None:
                begun += 1
                self._began(number, _attempt(becomes, *rest))
            else:
                self._changed(number, was, _attempt(becomes, *rest))
        self._weigh(db, begun)

    def _moved(self, job: int, was: str, becomes: str) -> None:
        self._hold(f"{was}>{becomes}" in _JOB_MOVES, f"job {job} went {was} > {becomes}")
        known = self.states.get(job, "pending")  # a job that a redo made meanwhile was born so
        self._hold(known == was, f"job {job} was {known}, the file says {was}")
        if becomes == "pending" and was not in ("sending", "failed", "dropped"):
            self._hold(self.may_resend, f"job {job} went {was} > pending without the user's word")
        if becomes == "pending" and was in ("in_doubt", "dropped"):
            self.resends[job] += 1
        self.states[job] = becomes

    def _began(self, number: int, attempt: Attempt) -> None:
        earlier = [self.attempts[one] for one in self.of_job[attempt.job]]
        charged = sum(one.outcome not in _FREE for one in earlier)
        self._hold(
            charged <= self.resends[attempt.job],
            f"job {attempt.job} is sent again after {[one.outcome for one in earlier]}",
        )
        self._take(number, attempt)
        self.of_job[attempt.job].append(number)

    def _take(self, number: int, now: Attempt) -> None:
        known = self.attempts.get(number)
        for place, amount in enumerate(now.weight()):
            self._sums[place] += amount - (known.weight()[place] if known else 0)
        self.attempts[number] = now

    def _changed(self, number: int, was: str, now: Attempt) -> None:
        known = self.attempts[number]
        if was != now.outcome:
            self._hold(f"{was}>{now.outcome}" in _ATTEMPT_MOVES, f"attempt {number} went {was} > {now.outcome}")
            if now.outcome in _SPENT:
                self._excess += max(0, (now.credits or 0) - known.reserved)
        elif now.reserved != known.reserved:
            self._hold(now.reserved < known.reserved, f"attempt {number}: its reserve grew")
        self._take(number, now)

    def _weigh(self, db: sqlite3.Connection, begun: int) -> None:
        kept = db.execute("SELECT sum(reserved), sum(spent), sum(at_risk), sum(wasted) FROM runs").fetchone()
        made = tuple(self._sums)
        self._hold(tuple(value or 0 for value in kept) == made, f"sums kept {tuple(kept)}, made {made}")
        self._hold_budget(sum(made[:3]), begun)

    def _hold_budget(self, committed: int, begun: int) -> None:
        if self.budget is None:
            return
        self._hold(
            committed <= max(self.budget, self._floor) + self._excess,
            f"{committed} committed of a budget of {self.budget}, answers dearer than reserved by {self._excess}",
        )
        # A reserve may be decided just before a dear answer lands and be written just after it: one commit later.
        self._hold(self._overspent < 2 or not begun, "a call is begun although the budget is overspent")
        self._overspent = self._overspent + 1 if committed > self.budget else 0

    def _hold(self, promise: bool, broken: str) -> None:
        if not promise and len(self.broken) < 10:
            self.broken.append(f"commit {self.commits}: {broken}")
