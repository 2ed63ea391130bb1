"""The worker pool: every task of a run is made here, named, in one group.

    feed       reads the next jobs while those before are being sent
    senders    take a job, wait for a turn, set credits aside, buy, hand the image on
    fetchers   bring images home; they outlive the senders
    watch      waits for the order to stop hard, and for the end of the grace time

Rule 1: a fixed number of tasks; never one per job.
Rule 2: `drain` lets what is under way end; `abort` cancels it, and each call is settled by its evidence.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Iterator

from msgspec import Struct, field

from banana_batch.errors import BananaError, Exit, bug_text
from banana_batch.models import PaidImage, QueuedJob, Reserve
from banana_batch.ports import Clock, Disk, Endpoint, Events, Images, Pacer, Store

from .downloads import CROWD, Downloads
from .feed import Feed
from .sending import Rules, Sending, credits_free, reserve_now
from .stops import Stop, Streak
from .waiting import Waiters
from .worker import send

# Of the loop, in which what came in time is still read: a process that was frozen finds both at once.
LAST_TURNS = 8
# Looking where the folder is takes two system calls, in a folder that is written to: 4 % of a call's time. Calls that
# leave within this time are lost to the next run as those that were in flight when the folder went.
LOOK_S = 0.05
_MOVED = "the output folder, or images/ in it, was moved or deleted while this runs"
_MOVED_HINT = "put it back under its name, or name its new place with -o; started over, all of it would be paid again"


class PoolConfig(Struct, frozen=True):
    """How wide and how long.

    Attributes:
        concurrency: Paid calls in flight at most; 0: send nothing (`download`).
        fetchers: Images being fetched at most.
        crowd: Of small ones so many times as many, while calls are under way.
        limit: Jobs that may be sent for the first time; None: all.
        resend: Jobs in doubt may be sent again once.
        download_wait_s: See Downloads.
        grace_s: How long a drain waits before it stops hard.
    """

    concurrency: int
    fetchers: int
    rules: Rules
    limit: int | None = None
    resend: bool = False
    crowd: int = CROWD
    download_wait_s: float = 900.0
    grace_s: float = 630.0


class Ending(Struct):
    """How a run's work ended.

    Attributes:
        stops: Why it ended before all was done.
        limited: The limit of first sends was used up.
    """

    stops: list[Stop] = field(default_factory=list)
    limited: bool = False


class _Aborted(Exception):
    """Cancels the group."""


class Pool:
    """Runs the workers. `drain` and `abort` may be called at any time, from the loop's thread."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        store: Store,
        endpoint: Endpoint,
        images: Images,
        pacer: Pacer,
        disk: Disk,
        clock: Clock,
        events: Events,
        rng: random.Random,
        confirm: Callable[[], Awaitable[bool]],
    ) -> None:
        self._config = config
        self._clock = clock
        self._events = events
        self._pacer = pacer
        self._disk = disk
        feed = Feed(store, clock, limit=config.limit, resend=config.resend)
        self._shared = Sending(
            store=store,
            endpoint=endpoint,
            pacer=pacer,
            clock=clock,
            events=events,
            feed=feed,
            rules=config.rules,
            rng=rng,
            waiters=Waiters(clock),
            streak=Streak(),
            on_wire={},
            stops=[],
            confirm=confirm,
            has_room=self._room_on_disk,
            keep=self._keep,
            all_durable=self._downloads_go_on,
        )
        self._downloads = Downloads(
            store,
            images,
            clock,
            events,
            pacer,
            calls=config.concurrency,
            width=config.fetchers,
            crowd=config.crowd,
            wait_s=config.download_wait_s,
            rng=rng,
            on_stop=self._shared.stop,
            leaving=lambda: self._shared.undurable > 0,
            under_way=lambda: len(self._shared.on_wire),
        )
        self._senders = 0
        self._ordered = Waiters(clock)
        self._cut_at_s: float | None = None
        self._looked_s = -math.inf
        self._abort = False

    @property
    def on_wire(self) -> int:
        """Paid calls under way."""
        return len(self._shared.on_wire)

    @property
    def at_stake_micro(self) -> int:
        """Credits set aside for the calls under way."""
        return sum(self._shared.on_wire.values())

    def drain(self, stop: Stop) -> None:
        """Start nothing more, let what is under way end, at most for the grace time."""
        self._shared.stop(stop)
        self._downloads.hurry()
        self._cut_at_s = self._clock.monotonic_s() + self._config.grace_s
        self._ordered.wake_all()

    def abort(self, stop: Stop) -> None:
        """Cut off what is under way: it is in doubt."""
        self._abort = True
        self._shared.stop(stop)
        self._ordered.wake_all()

    async def run(self) -> Ending:
        """Work until everything is done or must stop."""
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(), name="watch")
                workers = [
                    group.create_task(self._send(), name=f"send-{number}")
                    for number in range(1, self._config.concurrency + 1)
                ]
                self._senders = len(workers)
                if not workers:
                    self._downloads.close()
                feed = group.create_task(self._feed(), name="feed") if workers else None
                workers += [
                    group.create_task(self._downloads.work(), name=f"fetch-{number}")
                    for number in range(1, self._config.fetchers * CROWD + 1)
                ]
                await asyncio.wait(workers)
                watch.cancel()
                if feed is not None:
                    feed.cancel()
        except* _Aborted:
            pass  # each call that was cut off is settled by its evidence
        self._is_moved()  # also after the last call: what was stored since is not where it is looked for
        return Ending(list(self._shared.stops), self._shared.feed.limited)

    async def _watch(self) -> None:
        """End when calls under way have to be cut off: at once, or when a drain takes too long."""
        while not self._abort and (self._cut_at_s is None or self._clock.monotonic_s() < self._cut_at_s):
            await self._ordered.wait(self._cut_at_s)
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)
        raise _Aborted

    async def _feed(self) -> None:
        with self._stopping_where_it_breaks():
            await self._shared.feed.keep_filled()

    async def _send(self) -> None:
        shared = self._shared
        try:
            with self._stopping_where_it_breaks():
                while not shared.stops and (job := await shared.feed.take()) is not None:
                    held = await self._held(job)
                    if held is not None:
                        await send(shared, job, held)
        finally:
            self._senders -= 1
            if not self._senders:
                self._downloads.close()
                # While the last images come there is time for it: thousands of connections take a tenth of a second.
                shared.endpoint.rest()

    @contextlib.contextmanager
    def _stopping_where_it_breaks(self) -> Iterator[None]:
        """A failure must not cancel other people's paid calls: drain and say so."""
        try:
            yield
        except BananaError as failed:
            self._shared.stop(Stop(failed.exit, str(failed), failed.hint or ""))
        except Exception as failed:  # noqa: BLE001  # a bug
            self._events.emit("bug", error=type(failed).__name__, message=bug_text(failed))
            self._shared.stop(Stop(Exit.BUG, bug_text(failed), "please report it"))

    async def _held(self, job: QueuedJob) -> Reserve | None:
        """Wait for a turn and set credits aside; None: no further call may start."""
        shared = self._shared
        while await self._pacer.admit(job.kind):
            held = reserve_now(shared, job) if self._room_on_disk() else None
            if held is not None:
                return held
            # A turn is for now: a deadline or a pause may come while calls under way hold the credits.
            self._pacer.withdraw()
            if not await credits_free(shared, job):
                return None
        shared.feed.stop()
        return None

    def _keep(self, image: PaidImage, latency_s: float | None) -> None:
        self._downloads.put(image, latency_s)

    def _downloads_go_on(self) -> None:
        self._downloads.go_on()

    def _is_moved(self) -> bool:
        moved = self._disk.moved
        if moved:
            self._shared.stop(Stop(Exit.DISK, _MOVED, _MOVED_HINT))
        return moved

    def _room_on_disk(self) -> bool:
        shared = self._shared
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            if self._is_moved():
                return False
        if self._disk.has_room(len(shared.on_wire) + self._downloads.waiting + 1):
            return True
        shared.stop(Stop(Exit.DISK, "the disk is nearly full: no further image is bought", "free some space, then run"))
        return False
