"""What the one writer knows of the state without asking it: as of the last commit, and nothing of a failed one."""

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

from banana_batch.models import Kind, Reserve, Totals

from .queries import next_attempt

_SUMS = """
SELECT sum(reserved), sum(spent), sum(at_risk), sum(wasted),
  sum(iif(run = ?1, reserved, 0)), sum(iif(run = ?1, spent, 0)),
  sum(iif(run = ?1, at_risk, 0)), sum(iif(run = ?1, wasted, 0))
FROM runs
"""


class Seen(NamedTuple):
    """What a transaction reads before its commit; true once that has succeeded. `prices` None: as before."""

    totals: Totals
    run_totals: Totals
    prices: dict[Kind, int] | None


class Known:
    """Sums, prices and numbers, kept by the one writer.

    Attributes:
        run: The number of this run.
        totals: The ledger's sums over the life of the batch.
        run_totals: The same of this run.
        prices: The highest price seen of each kind that has one, in millionths.
        lowered: What reserves of a kind that were set without a price came down to when the first was seen.
    """

    def __init__(self, db: sqlite3.Connection, run: int) -> None:
        self.run = run
        self._kinds: dict[Kind, int] = {}
        self._next_attempt = next_attempt(db)
        self._numbered = 0
        self._prices_changed = True
        self.prices: dict[Kind, int] = {}
        self.lowered: dict[Kind, int] = {}
        self.adopt(self.read(db))

    # Inside a transaction.

    def kind(self, db: sqlite3.Connection, kind: Kind) -> int:
        """Return the number of a model × size, making it known."""
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = kind_number(db, kind)
        return found

    def number(self, attempts: int) -> range:
        """Return numbers for so many new attempts; they are used up if this transaction is committed."""
        first = self._next_attempt + self._numbered
        self._numbered += attempts
        return range(first, first + attempts)

    def written(self, kind: Kind, reserve: Reserve, stated: Mapping[Kind, int]) -> Reserve:
        """Return a reserve as it is written.

        One that was decided without a price, and comes behind the first, is brought down to the highest.

        Args:
            stated: The highest prices that answers of its own group state, by kind, in millionths.
        """
        price = self.prices.get(kind) if reserve.ceiling else None
        if price is None:
            return reserve
        return Reserve(min(reserve.micro, max(price, stated.get(kind, 0))), ceiling=False)

    def see_prices(self, db: sqlite3.Connection, highest: Mapping[Kind, int]) -> None:
        """Learn from the highest prices that answers state, by kind.

        Where these are the first of a kind, what is set aside or at risk for others of it comes down to the dearest
        of them: to what is set aside for the next one, in whatever order they came. An image that was free says
        nothing of what the others cost.
        """
        for kind, price in highest.items():
            known = self.prices.get(kind)
            if known is None:
                db.execute(
                    "UPDATE attempts SET reserved = min(reserved, ?), ceiling = 0"
                    " WHERE kind = ? AND ceiling = 1 AND outcome IN ('sending', 'doubt', 'unpriced')",
                    (price, self.kind(db, kind)),
                )
            if known is None or price > known:
                self._prices_changed = True

    def read(self, db: sqlite3.Connection) -> Seen:
        """Return what will be known after the commit."""
        sums = [value or 0 for value in db.execute(_SUMS, (self.run,)).fetchone()]
        prices = None
        if self._prices_changed:
            known = db.execute("SELECT model, image_size, highest FROM kinds WHERE highest > 0").fetchall()
            prices = {Kind(model, size): highest for model, size, highest in known}
        return Seen(Totals(*sums[:4]), Totals(*sums[4:]), prices)

    # After it.

    def adopt(self, seen: Seen) -> None:
        """The commit has succeeded: what it read holds."""
        for kind, price in (seen.prices or {}).items():
            self.lowered.setdefault(kind, price)
        self.totals, self.run_totals = seen.totals, seen.run_totals
        self._next_attempt += self._numbered
        self._numbered = 0
        if seen.prices is not None:
            self.prices = seen.prices
            self._prices_changed = False

    def forget(self) -> None:
        """It was rolled back: what it numbered is free again."""
        self._kinds.clear()
        self._numbered = 0
        self._prices_changed = True


def kind_number(db: sqlite3.Connection, kind: Kind) -> int:
    """Return the number of a model × size, making it known."""
    db.execute("INSERT OR IGNORE INTO kinds (model, image_size) VALUES (?, ?)", (kind.model, kind.image_size))
    row = db.execute("SELECT kind FROM kinds WHERE model = ? AND image_size = ?", (kind.model, kind.image_size))
    return int(row.fetchone()[0])
