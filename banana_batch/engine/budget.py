"""What may be sent: plain functions of sums. The caps hold at every send, under any concurrency.

spent + at risk + reserved + decided but not yet durable + this reserve  <=  budget
"""

from banana_batch.models import Caps, Reserve, Totals

# A price this many times what was expected is no price but an accident: kept at risk, and the run stops.
IMPLAUSIBLE_TIMES = 10


def reserve_for(price: int | None, caps: Caps, batch: Totals, run: Totals, undurable: int) -> Reserve | None:
    """Return what to set aside for one call; None if a cap forbids it now.

    Args:
        price: The highest price seen of its model × size, in millionths; None: none seen.
        batch, run: The ledger's sums as of the last commit.
        undurable: Reserves that were decided and are not in those sums yet.
    """
    left = room(caps, batch, run, undurable)
    if price is not None:
        return Reserve(price, ceiling=False) if left is None or price <= left else None
    if left is None or caps.max_price <= left:
        return Reserve(caps.max_price, ceiling=True)
    return Reserve(left, ceiling=True) if caps.bounded and left > 0 else None


def room(caps: Caps, batch: Totals, run: Totals, undurable: int = 0) -> int | None:
    """Return how much may still be set aside under both caps, in millionths; None: no cap."""
    return min((left for left in lefts(caps, batch, run, undurable) if left is not None), default=None)


def lefts(caps: Caps, batch: Totals, run: Totals, undurable: int = 0) -> tuple[int | None, int | None]:
    """Return the same for each cap: the batch's, and this run's."""
    return (
        None if caps.budget is None else caps.budget - batch.committed - undurable,
        None if caps.run_budget is None else caps.run_budget - run.committed - undurable,
    )


def is_implausible(credits_micro: int, price: int | None, caps: Caps) -> bool:
    """Tell whether a stated price is far above what its model × size was expected to cost at most.

    What the user said that an image may cost is never implausible.
    """
    said = 0 if caps.bounded else caps.max_price
    return credits_micro > max(IMPLAUSIBLE_TIMES * (caps.max_price if price is None else price), said, 1)
