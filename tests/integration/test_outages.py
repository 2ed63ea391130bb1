"""Incidents and stops from end to end: what an outage costs, and how a run comes out of it."""

import asyncio
import random
import socket
import time
from collections import Counter
from pathlib import Path

from banana_batch.batch import Machinery
from banana_batch.errors import Exit
from banana_batch.pacing.clock import SystemClock
from tests.integration.answers_peer import answer, failed
from tests.integration.whole_runs import Arrived, Eager, Gateway, Watcher, attempts, gateway, good, run_batch


def jobs(count: int) -> list[str]:
    """Return so many prompts."""
    return [f"job {number}" for number in range(1, count + 1)]


class Fast(SystemClock):
    """A clock that runs fifty times as fast as the wall."""

    def monotonic_s(self) -> float:
        """Return its seconds."""
        return time.monotonic() * 50


async def test_a_cut_of_all_connections_is_one_incident(out: Path) -> None:
    """64 calls on the wire are cut: 64 doubts, one incident, and the run finishes the other 36 by itself: 4."""

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.nth <= 64:
            if arrived.nth == 64:
                asyncio.get_running_loop().call_soon(peer.cut_all)
            await peer.hold.wait()
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(100), concurrency=64)
    assert (ended.exit, dict(ended.jobs)) == (Exit.IN_DOUBT, {"done": 36, "in_doubt": 64})
    assert ended.credits == (72.0, 128.0, 0.0)
    assert len(ended.told("incident_started")) == len(ended.told("incident_ended")) == 1
    assert ended.told("incident_ended")[0]["doubts"] == 64
    assert max(Counter(peer.posts).values()) == 1
    assert ended.outcomes == {"doubt": 64, "paid": 36}


async def test_dropped_connections_cost_one_wave_and_the_probes(out: Path) -> None:
    """While every connection is dropped only one call at a time is risked; the first good answer opens up again."""
    probing: list[int] = []

    async def said(peer: Gateway, arrived: Arrived) -> bytes | None:
        if arrived.nth <= 8:
            while len(peer.posts) < 8:
                await asyncio.sleep(0.001)
            return None
        if arrived.nth <= 13:
            probing.append(peer._now)
            return None
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(60), concurrency=8)
    assert (ended.exit, ended.jobs["in_doubt"], ended.jobs["done"]) == (Exit.IN_DOUBT, 13, 47)
    assert probing == [1] * 5
    assert [facts["doubts"] for facts in ended.told("incident_ended")] == [13]
    assert max(Counter(peer.posts).values()) == 1


async def test_pauses_grow_while_nothing_but_doubts_comes(out: Path) -> None:
    """With real dice an endless outage costs few doubts before --give-up-after: 69, and most jobs still pending."""
    async with gateway(lambda _peer, _arrived: None) as peer:
        ended = await run_batch(
            out, peer.url, jobs(200), concurrency=8, give_up_after=1.5, machinery=Machinery(rng=random.Random(7))
        )
    assert ended.exit is Exit.UNAVAILABLE
    assert 8 <= len(peer.posts) <= 8 + 8
    assert ended.jobs == {"in_doubt": len(peer.posts), "pending": 200 - len(peer.posts)}
    assert ended.told("gave_up")[0]["cause"] == "doubt"
    assert max(Counter(peer.posts).values()) == 1


async def test_refused_connections_use_nothing_up(out: Path) -> None:
    """Nobody listens, then somebody does: all jobs are bought, no try was used and nothing was at risk."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        watcher, peer = Watcher(), Gateway()
        peer.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        servers: list[asyncio.Task[asyncio.Server]] = []

        async def listen() -> asyncio.Server:
            return await asyncio.start_server(lambda r, w: peer.serve(good, r, w), sock=listener)

        def look(event: str, _facts: object) -> None:
            if not servers and sum(name == "answered" for name, _ in watcher.events) == 20:
                servers.append(asyncio.ensure_future(listen()))

        watcher.on = look
        ended = await run_batch(out, peer.url, jobs(12), concurrency=4, watcher=watcher)
        server = await servers[0]
        server.close()
    assert (ended.exit, dict(ended.jobs), ended.credits) == (Exit.DONE, {"done": 12}, (24.0, 0.0, 0.0))
    assert ended.tries == [0] * 12
    assert ended.outcomes["not_sent"] >= 20
    assert sorted(peer.posts) == sorted(jobs(12))
    assert len(ended.told("incident_started")) == 1


async def test_an_overload_of_all_is_an_outage_and_not_the_jobs_fault(out: Path) -> None:
    """Fifty 500s in a row fail no more than a few jobs: they are the endpoint's, and the night goes on after them."""

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        return answer(500, failed("Server code exception")) if arrived.nth <= 50 else peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(40), concurrency=8)
    assert ended.jobs["failed"] <= 2
    assert ended.jobs["done"] >= 38
    assert ended.credits[1:] == (0.0, 0.0)
    assert len(ended.told("incident_started")) == 1


async def test_equally_long_doubts_name_the_proxy(out: Path) -> None:
    """Calls that are cut after the same time, one after another, look like a proxy's timeout: it is said."""

    async def said(peer: Gateway, arrived: Arrived) -> bytes | None:
        if arrived.nth <= 6:
            await asyncio.sleep(0.2)
            return None
        return peer.sold()

    machinery = Machinery(rng=Eager(), clock=Fast())
    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(8), machinery=machinery, give_up_after=3000.0)
    assert ended.jobs == {"in_doubt": 6, "done": 2}
    assert "seems to cut calls after about 1" in ended.said
    assert "a proxy?" in ended.said


async def test_a_refused_key_leaves_what_is_out_alone(out: Path) -> None:
    """A 401 stops the sending; the 7 calls that are out are still bought, the rest is pending and unspent: 77."""

    async def said(peer: Gateway, arrived: Arrived) -> bytes:
        while len(peer.posts) < 8:
            await asyncio.sleep(0.001)
        if arrived.nth == 1:
            return answer(401, failed("Wrong TT-API-KEY or email is not activated."))
        await asyncio.sleep(0.05)
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(50), concurrency=8)
    assert (ended.exit, len(peer.posts)) == (Exit.KEY, 8)
    assert dict(ended.jobs) == {"done": 7, "pending": 43}
    assert (ended.tries, ended.credits) == ([0] * 50, (14.0, 0.0, 0.0))
    assert len(attempts(out)) == 8


async def test_a_slept_machine_is_noticed(out: Path) -> None:
    """The wall clock ran an hour ahead of the other: it is said, and nothing else changes."""

    class Slept(SystemClock):
        ahead_us = 0

        def wall_us(self) -> int:
            return super().wall_us() + self.ahead_us

    clock = Slept()

    def said(peer: Gateway, arrived: Arrived) -> bytes:
        if arrived.nth == 3:
            clock.ahead_us = 3600 * 1_000_000
        return peer.sold()

    async with gateway(said) as peer:
        ended = await run_batch(out, peer.url, jobs(6), machinery=Machinery(rng=Eager(), clock=clock))
    assert (ended.exit, dict(ended.jobs)) == (Exit.DONE, {"done": 6})
    assert ended.said.count("This machine slept for 1 h") == 1
