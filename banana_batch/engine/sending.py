"""What all workers of a run share, and the credits that are set aside before each call."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from msgspec import Struct, field
from msgspec.structs import replace

from banana_batch.errors import Exit
from banana_batch.models import Caps, PaidImage, QueuedJob, Reserve, Totals
from banana_batch.money import priced_text
from banana_batch.ports import Clock, Endpoint, Events, Pacer, Store

from .budget import lefts, reserve_for
from .feed import Feed
from .stops import Refusals, Stop, Streak
from .waiting import Waiters


class Rules(Struct, frozen=True):
    """What the user set for this run.

    Attributes:
        retries: Further attempts of a job after refusals that may pass.
        ask_above_micro: Ask once before the batch's credits go above this; None: don't.
    """

    caps: Caps
    retries: int
    ask_above_micro: int | None = None


class Sending(Struct):
    """What all workers of a run share.

    Attributes:
        has_room: Tells whether the disk has room for one image more; where it has not, sending stops.
        keep: Takes each image that is paid for, and how long its call took, seconds.
        all_durable: Called when nothing is `undurable` any more.
        undurable: Reserves that are decided and not yet committed, in millionths; and what answers that are not yet
            committed cost above theirs.
        on_wire: Reserves of the calls under way, by attempt, in millionths.
        stops: Why no further call is sent; empty while it goes on.
    """

    store: Store
    endpoint: Endpoint
    pacer: Pacer
    clock: Clock
    events: Events
    feed: Feed
    rules: Rules
    rng: random.Random
    waiters: Waiters
    streak: Streak
    on_wire: dict[int, int]
    stops: list[Stop]
    confirm: Callable[[], Awaitable[bool]]
    has_room: Callable[[], bool]
    keep: Callable[[PaidImage, float | None], None]
    all_durable: Callable[[], None]
    undurable: int = 0
    asked: bool = False
    asking: bool = False
    refusals: Refusals = field(default_factory=Refusals)

    def durable(self, micro: int) -> None:
        """So much of what was `undurable` is committed, or came to nothing."""
        self.undurable -= micro
        if not self.undurable:
            self.all_durable()

    def stop(self, stop: Stop) -> None:
        """Send nothing more. What is under way goes on."""
        if all(known.exit is not stop.exit for known in self.stops):
            self.stops.append(stop)
            self.events.emit("stop", exit=int(stop.exit), message=stop.message, hint=stop.hint)
        self.feed.stop()
        self.pacer.drain()
        self.waiters.wake_all()


async def credits_free(shared: Sending, job: QueuedJob) -> bool:
    """Wait until credits can be set aside for one call, where calls under way hold the room; False: stop."""
    while not shared.stops:
        if _affordable(shared, job) is not None:
            return True
        store, caps = shared.store, _caps(shared)
        if caps is not shared.rules.caps and (store.price_micro(job.kind) is not None or not _under_way(shared)):
            await _ask(shared)
        elif not _under_way(shared):
            shared.stop(budget_reached(caps, store.totals, store.run_totals))
        else:
            # Calls under way hold more than they will cost: what they leave is known when they end.
            await shared.waiters.wait()
    return False


def reserve_now(shared: Sending, job: QueuedJob) -> Reserve | None:
    """Set credits aside for one call; None: there is no room for them now."""
    found = _affordable(shared, job)
    if found is not None:
        shared.undurable += found.micro
    return found


def _affordable(shared: Sending, job: QueuedJob) -> Reserve | None:
    store = shared.store
    price = store.price_micro(job.kind)
    return reserve_for(price, _caps(shared), store.totals, store.run_totals, shared.undurable)


def _under_way(shared: Sending) -> bool:
    return bool(shared.on_wire or shared.undurable)


def _caps(shared: Sending) -> Caps:
    """Return the caps; until the user was asked, the sum to ask at is one."""
    rules = shared.rules
    if rules.ask_above_micro is None or shared.asked:
        return rules.caps
    return replace(rules.caps, budget=rules.ask_above_micro)


def is_capped(shared: Sending) -> bool:
    """Tell whether any sum keeps calls from being sent, that to ask at among them."""
    return _caps(shared).limited


async def _ask(shared: Sending) -> None:
    if shared.asking:
        await shared.waiters.wait()
        return
    shared.asking = True
    question = asyncio.ensure_future(shared.confirm())
    stopped = asyncio.ensure_future(_stopped(shared))
    try:
        # An order to stop needs no answer any more.
        await asyncio.wait({question, stopped}, return_when=asyncio.FIRST_COMPLETED)
        agreed = question.done() and question.result()
    finally:
        shared.asking = False
        question.cancel()
        stopped.cancel()
    shared.asked = True
    if not agreed and not shared.stops:
        shared.stop(Stop(Exit.STOPPED, "stopped before spending more, as you said", "run again to go on"))
    shared.waiters.wake_all()


async def _stopped(shared: Sending) -> None:
    while not shared.stops:
        await shared.waiters.wait()


def budget_reached(caps: Caps, batch: Totals, run: Totals, undurable: int = 0) -> Stop:
    """Return the stop of a run that has used up one of its budgets, or more."""
    of_batch, of_run = lefts(caps, batch, run, undurable)
    if of_batch is None or (of_run is not None and of_run < of_batch):
        which, left, hint = "this run's budget", of_run or 0, "run again to go on, or raise --run-budget"
    else:
        which, left, hint = "the budget", of_batch, "raise --budget to go on"
        if caps.budget == 0:
            hint += "; dollars need quotes, or the shell takes them away: --budget '$5'"
    if not caps.bounded and 0 < left < caps.max_price:
        hint += f"; or lower --max-price, which is above what is left: {priced_text(left)}"
    if left < 0:
        return Stop(Exit.BUDGET, f"{which} is overspent: more than that is spent or at risk", hint)
    return Stop(Exit.BUDGET, f"{which} is reached", hint)
