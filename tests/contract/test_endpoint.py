"""What every endpoint promises of a call: the client on real sockets, and the one that tests script."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from msgspec import Struct

from banana_batch.endpoint import classify
from banana_batch.models import Outcome, Reply, SendTrace
from banana_batch.pacing.clock import SystemClock
from banana_batch.ports import Endpoint
from tests.contract.fakes import CREDIT, FakeEndpoint, sold
from tests.integration.answers_peer import Script, answer, client_of, failed, job, serving, success

NOWHERE = "http://127.0.0.1:1"  # nobody listens there
BOUND_S = 20.0


class Asked(Struct):
    """An endpoint, how many requests reached it, and what to wait for until one did."""

    endpoint: Endpoint
    requests: Callable[[], int]
    arrived: Callable[[], Awaitable[object]]


class Ending(Struct):
    """One way in which a call ends: what a server does, what the fake is told, what comes of it.

    Attributes:
        serves: The server's answer; None: there is no server.
    """

    serves: bytes | Script | None
    scripted: Reply
    outcome: Outcome


async def _hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


ENDINGS = {
    "sold": Ending(answer(200, success(), "Connection: close"), sold(2 * CREDIT), Outcome.PAID),
    "refused": Ending(
        answer(400, failed("no such model")), Reply(classify.BAD_REQUEST, latency_s=1.0), Outcome.REFUSED
    ),
    "refused for now": Ending(
        answer(429, failed("slow down")), Reply(classify.RATE_LIMITED, latency_s=1.0), Outcome.REFUSED_FOR_NOW
    ),
    "in doubt": Ending(_hang_up, Reply(classify.CUT_AFTER_SEND, latency_s=1.0), Outcome.IN_DOUBT),
    "not sent": Ending(None, Reply(classify.CONNECT), Outcome.NOT_SENT),
}


@asynccontextmanager
async def on_sockets(ending: Ending) -> AsyncIterator[Asked]:
    async with serving(ending.serves or b"") as peer, client_of(peer.url if ending.serves else NOWHERE) as client:
        yield Asked(client, lambda: len(peer.requests), peer.arrived.wait)


@asynccontextmanager
async def scripted(ending: Ending) -> AsyncIterator[Asked]:
    fake = FakeEndpoint(SystemClock(), dict.fromkeys(range(1, 10), ending.scripted))
    if ending.serves is _silence:
        fake.answering.clear()

    async def arrived() -> None:
        while not fake.calls:
            await asyncio.sleep(0)

    yield Asked(fake, lambda: fake.calls, arrived)


async def _silence(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(BOUND_S)


every_endpoint = pytest.mark.parametrize("opened", [on_sockets, scripted])
Opened = Callable[[Ending], AbstractAsyncContextManager[Asked]]


@every_endpoint
@pytest.mark.parametrize("how", ENDINGS)
async def test_every_ending_is_a_value_with_its_evidence(opened: Opened, how: str) -> None:
    """One call is one request; what was sent has its instant and its latency, what was sold its image and price."""
    ending, trace = ENDINGS[how], SendTrace()
    async with asyncio.timeout(BOUND_S), opened(ending) as asked:
        reply = await asked.endpoint.generate(job(), trace)
        assert reply.verdict.outcome is ending.outcome
        sent = ending.outcome is not Outcome.NOT_SENT
        assert asked.requests() == sent
        assert (trace.sent_at_s is not None) is sent
        assert (reply.latency_s is not None) is sent
        assert (reply.answer is not None) is (ending.outcome is Outcome.PAID)
        if reply.answer is not None:
            assert reply.answer.image_url.startswith("https://")
            assert reply.answer.credits_micro == 2 * CREDIT


@every_endpoint
async def test_each_call_is_another_request(opened: Opened) -> None:
    """Nothing is remembered of the one before: who asks twice buys twice."""
    async with asyncio.timeout(BOUND_S), opened(ENDINGS["sold"]) as asked:
        for call in (1, 2, 3):
            await asked.endpoint.generate(job(), SendTrace())
            assert asked.requests() == call


@every_endpoint
async def test_a_call_after_the_last_one_is_a_call(opened: Opened) -> None:
    """Told that no further one is expected, it lets go of what it kept, and of nothing that a call needs."""
    async with asyncio.timeout(BOUND_S), opened(ENDINGS["sold"]) as asked:
        asked.endpoint.rest()
        for call in (1, 2):
            reply = await asked.endpoint.generate(job(), SendTrace())
            assert reply.verdict.outcome is Outcome.PAID
            assert asked.requests() == call
            asked.endpoint.rest()


@every_endpoint
async def test_a_call_that_is_cut_off_leaves_its_evidence(opened: Opened) -> None:
    """It is raised to who cancelled, and the trace says that it was sent."""
    trace = SendTrace()
    async with asyncio.timeout(BOUND_S), opened(Ending(_silence, sold(), Outcome.PAID)) as asked:
        call = asyncio.ensure_future(asked.endpoint.generate(job(), trace))
        await asked.arrived()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert trace.sent_at_s is not None
        assert asked.requests() == 1
