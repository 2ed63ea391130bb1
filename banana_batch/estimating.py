"""What the whole batch will cost, told once the first prices are known."""

import asyncio
import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

from . import accounting
from .ports import Events, Listener
from .store import queries
from .store.state import StateStore

# Events after which results show something else.
_CHANGES = frozenset({"sent", "stored", "fetch_failed", "shared"})


class Estimate(NamedTuple):
    """Credits of the whole batch, in millionths; `left`: jobs wait; `whole`: every price is known."""

    least: int
    expected: int
    most: int
    left: bool
    whole: bool


class Estimates:
    """Tells an estimate when the first price is known, and when every price is; implements ports.Events.

    Attributes:
        changed: The run has changed anything that results show.
    """

    def __init__(self, max_price: int) -> None:
        self.changed = False
        self._max_price = max_price
        self._priced: set[object] = set()
        self._told = 0
        self._store: StateStore | None = None
        self._events: Events | None = None

    def serve(self, store: StateStore, events: Events) -> None:
        """Say where the figures are, and whom to tell."""
        self._store, self._events = store, events

    def emit(self, event: str, /, **facts: object) -> None:
        """See ports.Events."""
        listener = self.listener(event)
        if listener is not None:
            listener(facts)

    def listener(self, event: str) -> Listener | None:
        """See ports.Events."""
        if event == "answered":
            return self._answered
        return self._changed if event in _CHANGES else None

    def _changed(self, _facts: Mapping[str, object]) -> None:
        self.changed = True

    def _answered(self, facts: Mapping[str, object]) -> None:
        kind = facts["kind"]
        if kind not in self._priced and facts["credits_micro"]:
            self._priced.add(kind)
            if self._store is not None:
                self._store.do(self.estimate).add_done_callback(self._tell)

    def estimate(self, db: sqlite3.Connection) -> Estimate:
        """Return what all of it costs, by the prices seen."""
        prices = {
            past.kind: (past.mean_micro, past.highest_micro)
            for past in queries.history(db, latencies=False)
            if past.mean_micro is not None and past.highest_micro is not None
        }
        left = queries.pending_kinds(db, on_wire=True)
        totals = queries.totals(db)
        least, expected, most = (
            totals.spent + totals.at_risk + more for more in accounting.estimate(left, prices, self._max_price)
        )
        return Estimate(least, expected, most, bool(left), left.keys() <= prices.keys())

    def _tell(self, done: "asyncio.Future[Estimate]") -> None:
        if done.cancelled() or done.exception() is not None or self._events is None:
            return
        found = done.result()
        # Twice at most: when the first price is known, and when every price is.
        if found.left and (self._told == 0 or (found.whole and self._told == 1)):
            self._told = 2 if found.whole else 1
            self._events.emit("estimate", least_micro=found.least, expected_micro=found.expected, most_micro=found.most)
