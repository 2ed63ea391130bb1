"""One job at a time, from its reserve to its settled attempt.

Rule 1: reserve and attempt are durable before the first byte; the answer is durable before anything else happens to it.
Rule 2: a worker returns outcomes as values. It raises only when it is cancelled: an exception here would cancel
        its sisters, that is, other people's paid calls.
Rule 3: whatever ends a call, its attempt is settled by the evidence; what has none is in doubt.
"""

import random
from collections.abc import Awaitable, Callable

from msgspec import Struct, field
from msgspec.structs import replace

from banana_batch.errors import BananaError, Exit
from banana_batch.lifecycle import Event, Settlement
from banana_batch.models import Caps, Outcome, PaidImage, QueuedJob, Reply, Reserve, SendTrace, Settled, Signal
from banana_batch.ports import Clock, Disk, Endpoint, Events, Pacer, Store

from .budget import is_implausible, reserve_for, room
from .feed import Feed
from .stops import Refusals, Stop, Streak
from .waiting import Waiters

_SETTLEMENT = {
    Outcome.NOT_SENT: Settlement.NOT_SENT,
    Outcome.REFUSED_FOR_NOW: Settlement.REFUSED,
    Outcome.REFUSED: Settlement.REFUSED,
    Outcome.PAID: Settlement.PAID,
    Outcome.IN_DOUBT: Settlement.DOUBT,
}


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
        undurable: Reserves that are decided and not yet committed, in millionths.
        on_wire: Reserves of the calls under way, by attempt, in millionths.
        stops: Why no further call is sent; empty while it goes on.
    """

    store: Store
    endpoint: Endpoint
    pacer: Pacer
    disk: Disk
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
    undurable: int = 0
    asked: bool = False
    asking: bool = False
    refusals: Refusals = field(default_factory=Refusals)

    def stop(self, stop: Stop) -> None:
        """Send nothing more. What is under way goes on."""
        if all(known.exit is not stop.exit for known in self.stops):
            self.stops.append(stop)
            self.events.emit("stop", exit=int(stop.exit), message=stop.message, hint=stop.hint)
        self.feed.stop()
        self.pacer.drain()
        self.waiters.wake_all()


async def reserve(shared: Sending, job: QueuedJob) -> Reserve | None:
    """Set credits aside for one call, waiting for calls under way where they hold the room; None: stop."""
    while not shared.stops:
        store, caps = shared.store, _caps(shared)
        price = store.price_micro(job.kind)
        found = reserve_for(price, caps, store.totals, store.run_totals, shared.undurable)
        if found is not None:
            shared.undurable += found.micro
            return found
        if caps is not shared.rules.caps and (price is not None or not _under_way(shared)):
            await _ask(shared)
        elif not _under_way(shared):
            shared.stop(_budget_reached(room(caps, store.totals, store.run_totals) or 0))
        else:
            # Calls under way hold more than they will cost: what they leave is known when they end.
            await shared.waiters.wait()
    return None


def _under_way(shared: Sending) -> bool:
    return bool(shared.on_wire or shared.undurable)


def _caps(shared: Sending) -> Caps:
    """Return the caps; until the user was asked, the sum to ask at is one."""
    rules = shared.rules
    if rules.ask_above_micro is None or shared.asked:
        return rules.caps
    return replace(rules.caps, budget=rules.ask_above_micro)


async def _ask(shared: Sending) -> None:
    if shared.asking:
        await shared.waiters.wait()
        return
    shared.asking = True
    try:
        agreed = await shared.confirm()
    finally:
        shared.asking = False
    shared.asked = True
    if not agreed:
        shared.stop(Stop(Exit.STOPPED, "stopped before spending more, as you said", "run again to go on"))
    shared.waiters.wake_all()


def _budget_reached(left: int) -> Stop:
    return (
        Stop(Exit.BUDGET, "the budget is reached", "raise --budget to go on")
        if left >= 0
        else Stop(
            Exit.BUDGET,
            "the budget is overspent: an answer cost more than was reserved for it",
            "raise --budget to go on",
        )
    )


async def send(shared: Sending, job: QueuedJob, held: Reserve) -> PaidImage | None:
    """Buy one image with credits that are set aside; return it if it has to be fetched."""
    try:
        attempt = await shared.store.begin(job, held)
    finally:
        shared.undurable -= held.micro
    if shared.stops:
        # Stopped while its row was written: not a byte has left, and none may.
        shared.feed.closed()
        shared.pacer.withdraw()
        await shared.store.settle(attempt, job, _cut_off(SendTrace()))
        return None
    shared.on_wire[attempt] = held.micro
    shared.events.emit("sent", index=job.index, id=job.id, attempt=attempt, kind=str(job.kind), resend=job.resend)
    trace = SendTrace()
    signal, latency_s, retry_after_s = Signal.NEUTRAL, None, None
    try:
        try:
            reply = await shared.endpoint.generate(job, trace)
        except BaseException:
            await shared.store.settle(attempt, job, _cut_off(trace))
            shared.feed.closed()
            raise
        signal, latency_s, retry_after_s = reply.verdict.signal, reply.latency_s, reply.retry_after_s
        return await _settle(shared, job, attempt, reply)
    finally:
        del shared.on_wire[attempt]
        shared.pacer.ended(job.kind, signal, latency_s, retry_after_s)
        shared.waiters.wake_all()


def _cut_off(trace: SendTrace) -> Settled:
    if trace.sent_at_s is None:
        return Settled(Event.NOT_SENT, Settlement.NOT_SENT, "stopped", "stopped before it was sent")
    return Settled(Event.UNANSWERED, Settlement.DOUBT, "stopped", "stopped while it was on the wire")


async def _settle(shared: Sending, job: QueuedJob, attempt: int, reply: Reply) -> PaidImage | None:
    settled = _settled(shared, job, reply)
    known = shared.store.price_micro(job.kind)
    expected = shared.on_wire[attempt] if known is None else known
    try:
        image = await shared.store.settle(attempt, job, settled)
    except BananaError:
        # The last resort for a paid answer that no disk takes: the log and the screen.
        url = reply.answer.image_url if reply.answer else None
        shared.events.emit("unrecorded", index=job.index, id=job.id, verdict=reply.verdict.name, image_url=url)
        raise
    _tell(shared, job, attempt, reply, settled)
    if settled.settlement is Settlement.PAID:
        _hold_the_budget(shared, job, settled, expected)
    if settled.event in (Event.NOT_SENT, Event.REFUSED_FOR_NOW):
        tried = replace(job, tries=job.tries + settled.counts, attempts=job.attempts + 1, resend=False)
        shared.feed.again(tried, _delay_s(shared, job, reply))
    else:
        shared.feed.closed()
    rule = shared.streak.see(reply.verdict)
    if rule is not None:
        shared.stop(Stop(rule.exit, f"the endpoint answered: {reply.message or reply.verdict.name}", rule.hint))
    return image


def _hold_the_budget(shared: Sending, job: QueuedJob, settled: Settled, expected: int) -> None:
    """Say that an answer was dearer than its reserve; where that went beyond a cap, send no more."""
    credits_micro = settled.answer.credits_micro if settled.answer else None
    if credits_micro is None or credits_micro <= expected:
        return
    shared.events.emit(
        "dearer", index=job.index, id=job.id, kind=str(job.kind), credits_micro=credits_micro, expected_micro=expected
    )
    left = room(shared.rules.caps, shared.store.totals, shared.store.run_totals, shared.undurable)
    if left is not None and left < 0:
        shared.stop(_budget_reached(left))


def _settled(shared: Sending, job: QueuedJob, reply: Reply) -> Settled:
    verdict, answer = reply.verdict, reply.answer
    event, settlement, counts = verdict.outcome.event, _SETTLEMENT[verdict.outcome], False
    if verdict.outcome is Outcome.REFUSED_FOR_NOW and verdict.retries != -1:
        allowed = shared.rules.retries if verdict.retries is None else verdict.retries
        used = shared.refusals.refused(
            job.index, shared.clock.monotonic_s(), counts=not shared.pacer.in_incident, last=shared.feed.dry
        )
        counts = used > 0
        if used > allowed:
            event = Event.REFUSED
    elif verdict.outcome in (Outcome.PAID, Outcome.REFUSED) and reply.latency_s is not None:
        shared.refusals.served(job.index, shared.clock.monotonic_s() - reply.latency_s)
    if answer is not None:
        price = shared.store.price_micro(job.kind)
        if answer.credits_micro is None:
            settlement = Settlement.UNPRICED
        elif is_implausible(answer.credits_micro, price, shared.rules.caps):
            settlement = Settlement.UNPRICED
            shared.stop(
                Stop(
                    Exit.PROTOCOL,
                    f"the endpoint says that an image cost {answer.credits_micro / 1e6:g} credits",
                    "look at your account; if that is the price, run again with --max-price",
                )
            )
    return Settled(
        event, settlement, verdict.name, reply.message, reply.status, reply.latency_s, reply.raw, answer, counts
    )  # fmt: skip


def _tell(shared: Sending, job: QueuedJob, attempt: int, reply: Reply, settled: Settled) -> None:
    answer = reply.answer
    shared.events.emit(
        "answered",
        index=job.index,
        id=job.id,
        attempt=attempt,
        kind=str(job.kind),
        verdict=reply.verdict.name,
        # As applied: a refusal that may pass is one for good once the retries are used up.
        outcome=Outcome.REFUSED if settled.event is Event.REFUSED else reply.verdict.outcome,
        status=reply.status,
        latency_s=reply.latency_s,
        credits_micro=answer.credits_micro if answer and settled.settlement is Settlement.PAID else None,
        message=reply.message,
    )


def _delay_s(shared: Sending, job: QueuedJob, reply: Reply) -> float:
    backoff = reply.verdict.backoff
    if reply.retry_after_s is not None:
        return reply.retry_after_s
    if backoff is None:
        return 0.0
    return shared.rng.uniform(0, min(backoff.cap_s, backoff.base_s * 2.0 ** min(job.tries, 16)))
