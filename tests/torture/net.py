"""T-net: a TCP proxy with faults between a run and its gateway, at byte offsets of request and answer, through TLS too.

Each case is a whole run of three jobs whose first connection meets one fault at one byte. What must hold: no job is
received twice; whoever was charged is done or in doubt; the other jobs are bought; and a line that is only slow costs
nothing at all.
"""

import asyncio
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from banana_batch.batch import Machinery
from banana_batch.endpoint import transport
from banana_batch.errors import Exit
from tests.integration.whole_runs import Arrived, Eager, Ended, Gateway, gateway, run_batch, scratch
from tests.tls import CA, server_tls

from .suite import Figures, Suite

JOBS = ("one", "two", "three")
OFFSETS = 12
SLOW = ("latency", "bandwidth", "slicer", "slow_close")
CUT = ("down", "reset", "limit", "timeout")
WAYS = ("request", "answer")
TIMEOUT_S = 0.5
CASE_S = 30.0
AT_ONCE = 4
SEEDS = {"a": 1, "b": 10}


@dataclass(frozen=True)
class Fault:
    """What happens to the first connection once `offset` bytes went one way."""

    kind: str
    way: str
    offset: int


class Proxy:
    """Forwards bytes; counts those of the first connection each way."""

    def __init__(self, port: int, fault: Fault | None) -> None:
        self._port = port
        self._fault = fault
        self._connections = 0
        self.port = 0
        self.passed = {"request": 0, "answer": 0}
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Proxy"]:
        """Listen on loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._ended.set()
            server.close()
            await asyncio.sleep(0)
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        first = self._connections == 1
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            ends = (writer, back)
            try:
                await asyncio.gather(
                    self._pump(reader, back, "request", ends, first), self._pump(there, writer, "answer", ends, first)
                )
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.close()
                back.close()
                self._tasks.discard(task)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        first: bool,
    ) -> None:
        fault = self._fault if first and self._fault and self._fault.way == way else None
        met = False
        while True:
            if fault and not met and self.passed[way] >= fault.offset:
                met = True
                if await self._meet(fault.kind, writer, ends):
                    return
            data = await reader.read(65536)
            if not data:
                break
            await self._forward(data, writer, way, fault, first)
            if fault and not met and self.passed[way] == fault.offset and fault.kind in CUT:
                met = True
                if await self._meet(fault.kind, writer, ends):
                    return
                await self._forward(data[len(data) :], writer, way, None, first)
        if fault and fault.kind == "slow_close":
            await asyncio.sleep(0.05)
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    async def _forward(
        self, data: bytes, writer: asyncio.StreamWriter, way: str, fault: Fault | None, first: bool
    ) -> None:
        """Pass bytes on: up to the fault's offset if it cuts there, in pieces if it slices."""
        if fault and fault.kind in CUT:
            data = data[: fault.offset - self.passed[way]]
        size = {"slicer": 7, "bandwidth": 64}.get(fault.kind, 65536) if fault else 65536
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            writer.write(piece)
            await writer.drain()
            if first:
                self.passed[way] += len(piece)
            if size < 65536 and fault is not None and self.passed[way] >= fault.offset:
                await asyncio.sleep(0.001 if fault.kind == "bandwidth" else 0)

    async def _meet(
        self, kind: str, writer: asyncio.StreamWriter, ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    ) -> bool:
        """Let the fault happen; True: nothing more goes this way."""
        if kind == "latency":
            await asyncio.sleep(0.05)
        elif kind == "limit":
            with suppress(OSError, RuntimeError):
                writer.write_eof()
            return True
        elif kind == "timeout":
            await self._ended.wait()
            return True
        elif kind in ("down", "reset"):
            for end in ends:
                if kind == "reset":
                    made = end.get_extra_info("socket")
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.transport.abort()
                else:
                    end.close()
            return True
        return False


async def one(out: Path, fault: Fault | None, *, tls: bool) -> tuple[Ended, Gateway, Proxy]:
    """Run three jobs through a proxy with a fault."""
    port = 0

    def said(peer: Gateway, _arrived: Arrived) -> bytes:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/i/{len(peer.posts)}.png"
        return peer.sold(image_url=url).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)

    async with gateway(said, tls=server_tls("good") if tls else None) as peer:
        async with Proxy(int(peer.url.rsplit(":", 1)[1]), fault).open() as proxy:
            port = proxy.port
            ended = await run_batch(
                out,
                peer.url.rsplit(":", 1)[0] + f":{port}",
                JOBS,
                timeout=TIMEOUT_S if fault and fault.kind == "timeout" else 20.0,
                ca_file=str(CA),
                machinery=Machinery(rng=Eager()),
                give_up_after=20.0,
            )
        return ended, peer, proxy


def judge(fault: Fault, ended: Ended, peer: Gateway, passed: dict[str, int], whole: dict[str, int]) -> list[str]:
    """Return what does not hold."""
    found = []
    received = Counter(peer.posts)
    twice = [prompt for prompt, times in received.items() if times > 1]
    if twice:
        found.append(f"received twice: {twice}")
    doubts, done = ended.jobs["in_doubt"], ended.jobs["done"]
    if doubts + done != len(JOBS) or doubts > 1:
        found.append(f"jobs {dict(ended.jobs)}")
    if ended.exit is not (Exit.IN_DOUBT if doubts else Exit.DONE):
        found.append(f"exit {int(ended.exit)} with {doubts} in doubt")
    if done > len(received):
        found.append(f"{done} done of {len(received)} received")
    if ended.credits != (2.0 * done, 2.0 * doubts, 0.0):
        found.append(f"ledger {ended.credits} with {done} done and {doubts} in doubt")
    if fault.kind in SLOW and doubts:
        found.append("a slow line is no doubt")
    if doubts and passed["answer"] >= whole["answer"]:
        found.append("an answer that came whole was lost")
    if not doubts and len(received) < len(JOBS):
        found.append(f"only {len(received)} received")
    return found


async def whole_sizes(folder: Path, *, tls: bool) -> dict[str, int]:
    """Return how many bytes the first connection takes each way when nothing is wrong."""
    ended, _, proxy = await one(folder / f"whole-{tls}", None, tls=tls)
    assert ended.exit is Exit.DONE, ended.said
    return dict(proxy.passed)


def cases(seed: int) -> list[tuple[str, str, int, bool]]:
    """Return kind, way, number of the offset and TLS of each case; every other one goes through TLS."""
    return [
        (kind, way, place, (at + place + seed) % 2 == 1)
        for at, kind in enumerate(SLOW + CUT)
        for way in WAYS
        for place in range(OFFSETS)
    ]


def offset(place: int, size: int, chance: random.Random) -> int:
    """Return the place's offset: both ends and their neighbours exactly, the others by chance, each in its share."""
    exact = {0: 0, 1: 1, OFFSETS - 2: size - 1, OFFSETS - 1: size}
    share = size // (OFFSETS - 3)
    return exact.get(place, max(2, (place - 2) * share + chance.randrange(max(1, share))))


async def run_seed(seed: int, wanted: set[int] | None = None) -> Figures:
    """Run all cases of a seed, some at once."""
    figures, ends, gate = Figures(), Counter[str](), asyncio.Semaphore(AT_ONCE)
    with scratch() as folder:
        sizes = {tls: await whole_sizes(folder, tls=tls) for tls in (False, True)}

        async def run(number: int, kind: str, way: str, place: int, tls: bool) -> None:
            fault = Fault(kind, way, offset(place, sizes[tls][way], random.Random(seed * 1000 + number)))
            async with gate:
                try:
                    async with asyncio.timeout(CASE_S):
                        ended, peer, proxy = await one(folder / str(number), fault, tls=tls)
                    found = judge(fault, ended, peer, proxy.passed, sizes[tls])
                    ends["in doubt" if ended.jobs["in_doubt"] else "untouched"] += 1
                except Exception as broke:  # noqa: BLE001  # told with its replay, and the other cases go on
                    found = [f"{type(broke).__name__}: {broke}"]
            replay = f"python -m tests.torture.net {seed} {number}"
            label = f"{kind} at byte {fault.offset} of the {way}{' through TLS' if tls else ''}"
            figures.violations.extend(f"{label}: {what} ({replay})" for what in found)

        listed = [(number, *case) for number, case in enumerate(cases(seed)) if wanted is None or number in wanted]
        await asyncio.gather(*(run(*case) for case in listed))
        figures.counts = {"cases": len(listed), "through TLS": sum(case[-1] for case in listed), **ends}
    return figures


def run_tier(tier: str, wanted: set[int] | None = None) -> Figures:
    """Run every seed of a tier."""
    total = Figures()
    # A handshake that hangs is given up after 15 s; the proof is the same after half a second.
    usual, transport.CONNECT_TIMEOUT_S = transport.CONNECT_TIMEOUT_S, TIMEOUT_S
    try:
        for seed in range(SEEDS[tier]):
            figures = asyncio.run(run_seed(seed, wanted))
            total.violations += figures.violations
            for name, count in figures.counts.items():
                assert isinstance(count, int)
                total.counts[name] = int(total.counts.get(name, 0)) + count
    finally:
        transport.CONNECT_TIMEOUT_S = usual
    return total


SUITE = Suite("T-net", run_tier)

if __name__ == "__main__":
    print(asyncio.run(run_seed(int(sys.argv[1]), set(map(int, sys.argv[2:])) or None)))
