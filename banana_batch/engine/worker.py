"""One job at a time, from its reserve to its settled attempt.

Rule 1: reserve and attempt are durable before the first byte; the answer is durable before anything else happens to it.
Rule 2: a worker returns outcomes as values. It raises only when it is cancelled: an exception here would cancel
        its sisters, that is, other people's paid calls.
Rule 3: whatever ends a call, its attempt is settled by the evidence; what has none is in doubt.
"""

import asyncio
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from banana_batch.errors import Exit
from banana_batch.lifecycle import Event, Settlement
from banana_batch.models import Outcome, PaidImage, QueuedJob, Reply, Reserve, SendTrace, Settled, Signal

from .budget import is_implausible, room
from .sending import Sending, budget_reached, is_capped, reserve_now
from .stops import Stop

_SETTLEMENT = {
    Outcome.NOT_SENT: Settlement.NOT_SENT,
    Outcome.REFUSED_FOR_NOW: Settlement.REFUSED,
    Outcome.REFUSED: Settlement.REFUSED,
    Outcome.PAID: Settlement.PAID,
    Outcome.IN_DOUBT: Settlement.DOUBT,
}


class _Ended(Struct):
    """A call that came to an end, and its settlement on the way to the disk.

    Attributes:
        held: What the ledger held for it when it ended, in millionths.
        expected: What such a call was expected to cost at most when it ended.
        settling: Ends when the settlement is durable.
        paced: The pacer has its turn back.
    """

    job: QueuedJob
    attempt: int
    reply: Reply
    settled: Settled
    held: int
    expected: int
    settling: "asyncio.Future[PaidImage | None]"
    paced: bool = False


async def send(shared: Sending, job: QueuedJob, held: Reserve) -> None:
    """Buy one image with credits that are set aside, then others for as long as nothing has to be waited for."""
    attempt = await _begin(shared, job, held)
    while True:
        if shared.stops:
            # Stopped while its row was written: not a byte has left, and none may.
            await _withdraw(shared, job, attempt)
            return
        ended = await _call(shared, job, attempt, held)
        following = _following(shared, ended)
        if following is None:
            await _conclude(shared, ended)
            return
        job, held = following
        attempt = await _go_on(shared, ended, job, held)
        del ended, following  # the next call takes minutes, and thousands are under way


async def _begin(shared: Sending, job: QueuedJob, held: Reserve) -> int:
    try:
        return await shared.store.begin(job, held)
    finally:
        shared.durable(held.micro)


async def _withdraw(shared: Sending, job: QueuedJob, attempt: int) -> None:
    shared.feed.closed()
    shared.pacer.withdraw()
    await shared.store.settle(attempt, job, _cut_off(SendTrace()))


async def _call(shared: Sending, job: QueuedJob, attempt: int, held: Reserve) -> _Ended:
    """Make one call; its settlement is put, and not yet durable."""
    shared.on_wire[attempt] = held.micro
    shared.events.emit("sent", index=job.index, id=job.id, attempt=attempt, kind=str(job.kind), resend=job.resend)
    trace, reply = SendTrace(), None
    try:
        reply = await shared.endpoint.generate(job, trace)
        price = shared.store.price_micro(job.kind)
        in_ledger = shared.store.held_micro(job.kind, held)
        settled = _settled(shared, job, reply)
        settling = shared.store.settle(attempt, job, settled)
        settling.add_done_callback(partial(_tell_unrecorded, shared, job, reply))
        # A price that is being written just now would take the whole reserve away from it.
        _count_excess(shared, settled, 0 if held.ceiling and price is None else in_ledger, settling)
        return _Ended(job, attempt, reply, settled, in_ledger, held.micro if price is None else price, settling)
    except BaseException:
        try:
            if reply is None:
                shared.feed.closed()
                await shared.store.settle(attempt, job, _cut_off(trace))
        finally:
            _off_the_wire(shared, attempt)
            shared.pacer.ended(job.kind, Signal.NEUTRAL, None, None)
        raise


def _count_excess(
    shared: Sending, settled: Settled, held_micro: int, settling: "asyncio.Future[PaidImage | None]"
) -> None:
    """Count what an answer cost above its reserve from now on, and not only once the ledger's sums have it."""
    credits_micro = settled.answer.credits_micro if settled.answer else None
    excess = (credits_micro or 0) - held_micro
    if settled.settlement is Settlement.PAID and excess > 0:
        shared.undurable += excess
        settling.add_done_callback(lambda _: shared.durable(excess))


def _off_the_wire(shared: Sending, attempt: int) -> None:
    del shared.on_wire[attempt]
    shared.waiters.wake_all()


def _cut_off(trace: SendTrace) -> Settled:
    if trace.sent_at_s is None:
        return Settled(Event.NOT_SENT, Settlement.NOT_SENT, "stopped", "stopped before it was sent")
    return Settled(Event.UNANSWERED, Settlement.DOUBT, "stopped", "stopped while it was on the wire")


def _following(shared: Sending, ended: _Ended) -> tuple[QueuedJob, Reserve] | None:
    """Take a job, a turn and credits for the next call, all at once or not at all.

    Only after an image, at a known price where there is a cap: nothing that its settlement teaches could forbid this
    call.
    """
    credits_micro = ended.reply.answer.credits_micro if ended.reply.answer else None
    if shared.stops or credits_micro is None or credits_micro > ended.held:
        return None
    if shared.store.price_micro(ended.job.kind) is None and is_capped(shared):
        return None
    _give_turn_back(shared, ended)
    if not shared.pacer.admit_now():
        return None
    job = shared.feed.take_now()
    if job is None:
        shared.pacer.withdraw()
        return None
    held = reserve_now(shared, job) if shared.has_room() else None
    if held is None:
        shared.feed.put_back(job)
        shared.pacer.withdraw()
        return None
    return job, held


def _give_turn_back(shared: Sending, ended: _Ended) -> None:
    reply = ended.reply
    if not ended.paced:
        ended.paced = True
        shared.pacer.ended(ended.job.kind, reply.verdict.signal, reply.latency_s, reply.retry_after_s)


async def _go_on(shared: Sending, ended: _Ended, job: QueuedJob, held: Reserve) -> int:
    """Begin the next call in the commit that settles the one before; return its attempt."""
    begun = None
    try:
        begun = await _begin(shared, job, held)
        return begun
    finally:
        # Put before the begin, it is durable before it; however the begin ended, this call has to be concluded.
        try:
            await _conclude(shared, ended)
        except BaseException:
            if begun is not None:
                await _withdraw(shared, job, begun)
            raise


async def _conclude(shared: Sending, ended: _Ended) -> None:
    """Wait until a call is settled, then act on how it ended."""
    try:
        await _act_on(shared, ended)
    finally:
        _off_the_wire(shared, ended.attempt)
        _give_turn_back(shared, ended)


async def _act_on(shared: Sending, ended: _Ended) -> None:
    job, reply, settled = ended.job, ended.reply, ended.settled
    # Whoever is cancelled here leaves the settlement under way, and whoever hears of its failure with it.
    image = await (ended.settling if ended.settling.done() else asyncio.shield(ended.settling))
    _tell(shared, ended)
    if settled.settlement is Settlement.PAID:
        _hold_the_budget(shared, ended)
    if settled.event in (Event.NOT_SENT, Event.REFUSED_FOR_NOW):
        tried = replace(job, tries=job.tries + settled.counts, attempts=job.attempts + 1, resend=False)
        shared.feed.again(tried, _delay_s(shared, job, reply))
    else:
        shared.feed.closed()
    if image is not None:
        shared.keep(image, reply.latency_s)
    rule = shared.streak.see(reply.verdict)
    if rule is not None:
        shared.stop(Stop(rule.exit, f"the endpoint answered: {reply.message or reply.verdict.name}", rule.hint))


def _tell_unrecorded(
    shared: Sending, job: QueuedJob, reply: Reply, settling: "asyncio.Future[PaidImage | None]"
) -> None:
    """The last resort for a paid answer that no disk takes: the log and the screen."""
    if not settling.cancelled() and settling.exception() is not None:
        url = reply.answer.image_url if reply.answer else None
        shared.events.emit("unrecorded", index=job.index, id=job.id, verdict=reply.verdict.name, image_url=url)


def _hold_the_budget(shared: Sending, ended: _Ended) -> None:
    """Say that an answer was dearer than its reserve; where that went beyond a cap, send no more."""
    job, expected = ended.job, ended.expected
    credits_micro = ended.settled.answer.credits_micro if ended.settled.answer else None
    if credits_micro is None or credits_micro <= ended.held:
        return
    if credits_micro > expected:
        facts = {"credits_micro": credits_micro, "expected_micro": expected}
        shared.events.emit("dearer", index=job.index, id=job.id, kind=str(job.kind), **facts)
    sums = shared.rules.caps, shared.store.totals, shared.store.run_totals, shared.undurable
    left = room(*sums)
    if left is not None and left < 0:
        shared.stop(budget_reached(*sums))


def _settled(shared: Sending, job: QueuedJob, reply: Reply) -> Settled:
    verdict, answer = reply.verdict, reply.answer
    event, settlement, counts = verdict.outcome.event, _SETTLEMENT[verdict.outcome], False
    if verdict.outcome is Outcome.REFUSED_FOR_NOW and verdict.retries != -1:
        retries = shared.rules.retries
        allowed = retries if verdict.retries is None else min(verdict.retries, retries)
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


def _tell(shared: Sending, ended: _Ended) -> None:
    job, reply, settled = ended.job, ended.reply, ended.settled
    answer = reply.answer
    shared.events.emit(
        "answered",
        index=job.index,
        id=job.id,
        attempt=ended.attempt,
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
