"""A night in milliseconds: the real pacer on a loop with virtual time, before servers that throttle and fail."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import async_solipsism

from banana_batch.models import Kind, Signal
from banana_batch.pacing.deadlines import Deadline
from banana_batch.pacing.pacer import Pacer
from banana_batch.ports import Clock
from tests.contract.fakes import Told, VirtualClock

KIND = Kind("gemini-3-pro-image-preview", "1K")
REFUSAL_S = 0.05
T = TypeVar("T")


class Server:
    """Answers each call after `latency()`; a subclass says what it lets in.

    Attributes:
        sent, refused: Arrival times, seconds.
        serving: Calls being served now.
    """

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.sent: list[float] = []
        self.refused: list[float] = []
        self.good: list[float] = []
        self.serving = 0

    def lets_in(self, now_s: float) -> bool:
        return True

    def latency(self) -> float:
        return self.rng.lognormvariate(2.4, 0.35)  # median 11 s, p95 20 s

    def retry_after(self, now_s: float) -> float | None:
        return None

    async def call(self) -> tuple[Signal, float | None, float | None]:
        await asyncio.sleep(self.rng.uniform(0.001, 0.02))
        now_s = asyncio.get_running_loop().time()
        self.sent.append(now_s)
        if not self.lets_in(now_s):
            self.refused.append(now_s)
            await asyncio.sleep(REFUSAL_S)
            return Signal.THROTTLED, REFUSAL_S, self.retry_after(now_s)
        self.serving += 1
        latency_s = self.latency()
        await asyncio.sleep(latency_s)
        self.serving -= 1
        self.good.append(now_s)
        return Signal.GOOD, latency_s, None

    def used(self, allowed: float) -> float:
        return len(self.good) / allowed

    def refused_share(self) -> float:
        return len(self.refused) / len(self.sent)


class SlidingWindow(Server):
    """Lets in `per_minute` calls in any 60 seconds."""

    def __init__(self, per_minute: int, seed: int = 1) -> None:
        super().__init__(seed)
        self.last: deque[float] = deque(maxlen=per_minute)

    def lets_in(self, now_s: float) -> bool:
        full = len(self.last) == self.last.maxlen and now_s - self.last[0] < 60
        if not full:
            self.last.append(now_s)
        return not full


class FixedWindow(Server):
    """Lets in `per_minute` calls in each minute of its own clock."""

    def __init__(self, per_minute: int, seed: int = 1) -> None:
        super().__init__(seed)
        self.per_minute = per_minute
        self.minute = -1
        self.count = 0

    def lets_in(self, now_s: float) -> bool:
        minute = int((now_s + 17) // 60)
        if minute != self.minute:
            self.minute, self.count = minute, 0
        self.count += 1
        return self.count <= self.per_minute

    def retry_after(self, now_s: float) -> float | None:
        return 60 - (now_s + 17) % 60


class Bucket(Server):
    """A token bucket: `per_minute` tokens a minute, as many kept."""

    def __init__(self, per_minute: int, seed: int = 1) -> None:
        super().__init__(seed)
        self.per_minute = per_minute
        self.tokens = float(per_minute)
        self.filled_s = 0.0

    def lets_in(self, now_s: float) -> bool:
        gained = (now_s - self.filled_s) * self.per_minute / 60
        self.tokens = min(self.per_minute, self.tokens + gained)
        self.filled_s = now_s
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class InFlight(Server):
    """Serves `most` calls at a time."""

    def __init__(self, most: int, seed: int = 1) -> None:
        super().__init__(seed)
        self.most = most

    def lets_in(self, now_s: float) -> bool:
        return self.serving < self.most


def simulate(scene: Callable[[], Awaitable[T]]) -> T:
    """Run a scene on virtual time."""
    loop = async_solipsism.EventLoop()
    try:
        return loop.run_until_complete(scene())  # type: ignore[no-any-return]
    finally:
        loop.close()


def make_pacer(
    clock: Clock | None = None,
    told: Told | None = None,
    *,
    concurrency: int = 8,
    give_up_after_s: float = 900.0,
    rpm: int | None = None,
    deadline: Deadline | None = None,
    seed: int = 7,
) -> Pacer:
    """A pacer as `batch.py` makes one."""
    return Pacer(
        clock or VirtualClock(),
        told or Told(),
        random.Random(seed),
        concurrency=concurrency,
        give_up_after_s=give_up_after_s,
        rpm=rpm,
        deadline=deadline,
        own_timeouts_s=(360.0, 600.0),
    )


async def work(pacer: Pacer, call: Callable[[], Awaitable[tuple[Signal, float | None, float | None]]]) -> None:
    """One worker of the engine: a turn, a call, the turn back, until there are no more turns."""
    while await pacer.admit(KIND):
        signal, latency_s, retry_after_s = await call()
        pacer.ended(KIND, signal, latency_s, retry_after_s)


async def run_for(
    seconds: float,
    pacer: Pacer,
    call: Callable[[], Awaitable[tuple[Signal, float | None, float | None]]],
    workers: int,
) -> None:
    """Let `workers` run, then drain and wait for what is on the wire."""
    tasks = [asyncio.ensure_future(work(pacer, call)) for _ in range(workers)]
    await asyncio.wait(tasks, timeout=seconds)
    pacer.drain()
    await asyncio.gather(*tasks)
