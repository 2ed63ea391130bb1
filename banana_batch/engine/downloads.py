"""Fetching what was paid for. Free, so it is tried until it works or the time for it is over.

Rule 1: it holds no paid call's place, gives way for a moment to those that are just leaving, and backs off on its own
        clock.
Rule 2: urls expire: with many images waiting, new paid calls are held back; after an outage the waiting go first.
Rule 3: only the host's word that an image is gone, in a later run too, or the same damaged bytes twice, make it lost.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from itertools import count

from msgspec.structs import replace

from banana_batch.errors import BananaError, Exit, bug_text
from banana_batch.models import SMALL_BYTES, FetchFailed, PaidImage
from banana_batch.ports import Clock, Events, Images, Pacer, Store
from banana_batch.text import duration_text

from .pace import Pace
from .stops import Stop
from .waiting import Waiters

BACKLOG_LIMIT = 20  # contract: past 20 waiting urls, new paid calls pause
BACKLOG = "backlog"
OUTAGE = 5  # fetches that fail in a row: the host's trouble, not the images'
READY_LIMIT = 256  # a host that is slow, not down: what waits stays bounded, and the memory that it takes
READY_WAVES = 2  # all calls in flight may end at once: so many times as many images wait without the host being slow
GONE_LIMIT = 3  # safety.md, section 2: buying on would lose more
_GONE_HINT = "run sooner after a stop: urls expire; look at the account before going on"
PAGE = 256
GIVE_WAY_S = 0.5  # a wave of 2,000 answers and the calls that follow them; in a steady flow images come beside calls
CROWD = 4  # small images under way, times the fetchers: while one group is stored, the next comes


class Downloads:
    """The images that wait, and the loop that each fetching task runs.

    Args:
        calls: Paid calls in flight at most.
        width: Images being fetched at most, of large ones; `work` is run by CROWD times as many tasks.
        crowd: Small images wait for their group longer than they were on their way: of them so many times as many may
            be fetched, as long as that is no more memory than twice as many of the largest small ones. Below CROWD
            they are spread over the time that calls take (pace.py), too. CROWD once the last paid call has ended.
        wait_s: How long to go on after the last paid call for images that can't be fetched yet, and with calls held
            back for them: from the last one that came.
        leaving: Tells whether paid calls are just leaving, or what an answer cost in excess is being written. Images
            wait for that, at most GIVE_WAY_S, and no more of them than calls can end at once: beside a wave of calls
            there is time for its images until the next one.
        under_way: Counts the paid calls in flight.
        on_stop: Told of what must end the run: a broken disk, an address that may not be fetched.
    """

    def __init__(
        self, store: Store, images: Images, clock: Clock, events: Events, pacer: Pacer, *, calls: int, width: int,
        crowd: int, wait_s: float, rng: random.Random,
        on_stop: Callable[[Stop], None], leaving: Callable[[], bool], under_way: Callable[[], int],
    ) -> None:  # fmt: skip
        self._store = store
        self._images = images
        self._clock = clock
        self._events = events
        self._pacer = pacer
        self._most_ready = max(READY_LIMIT, READY_WAVES * calls)
        self._width = width
        self._wait_s = wait_s
        self._rng = rng
        self._on_stop = on_stop
        self._calls = calls
        self._leaving = leaving
        self._under_way = under_way
        self._patience: asyncio.TimerHandle | None = None
        self._waited = False
        self._gone = 0
        self._failed_in_row = 0
        self._silent_in_row = 0  # without an answer that an image is gone
        self._ready: deque[PaidImage] = deque()
        self._due: list[tuple[float, int, PaidImage]] = []
        self._order = count()
        self._waiters = Waiters(clock)
        self._fetching = 0
        self._crowd = crowd
        self._pace = Pace(calls) if crowd < CROWD else None
        self._turn: asyncio.TimerHandle | None = None
        self._fitting = 1
        self._earlier_left = True
        self._refilling = asyncio.Lock()
        self._closing_at_s: float | None = None
        self._impatient = False
        self._held = False
        self._late_since_s: float | None = None
        self._gave_up = False
        self._left = False

    @property
    def waiting(self) -> int:
        """Images that are paid and not on disk."""
        return len(self._ready) + len(self._due) + self._fetching

    @property
    def _most(self) -> int:
        """Images that may be under way at once, as large as the last one."""
        return self._width * min(self._crowd, self._fitting)

    def _gives_way(self) -> bool:
        """Tell whether images wait for calls; that they do so for a moment only is seen to from then on."""
        waits = (self._ready or self._due) and len(self._ready) <= self._calls
        if self._waited or not waits or not self._leaving():
            return False
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(GIVE_WAY_S, self._wait_no_longer)
        return True

    def _left_now(self) -> int:
        """Return how many images may be started now: all, where more wait than came with a wave, or none follows."""
        waiting = len(self._ready) + len(self._due)
        if self._pace is None or len(self._ready) > self._calls or self._under_way() < self._calls // 2:
            return waiting
        left = self._pace.left(self._clock.monotonic_s())
        return waiting if left is None else min(left, waiting)

    def _is_early(self) -> bool:
        """Tell whether what waits has to wait for its turn; that it is woken then is seen to."""
        if not self._ready or self._left_now() > 0:
            return False
        if self._turn is None and self._pace is not None:
            wait_s = self._pace.next_s - self._clock.monotonic_s()
            self._turn = asyncio.get_running_loop().call_later(wait_s, self._take_turn)
        return True

    def _take_turn(self) -> None:
        self._turn = None
        self.go_on()

    def _wait_no_longer(self) -> None:
        self._waited = True
        self.go_on()

    def _next(self) -> PaidImage:
        image = self._ready.popleft()
        if self._pace is not None:
            self._pace.started()
        if not self._ready:
            self._waited = False
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        return image

    def put(self, image: PaidImage, latency_s: float | None = None) -> None:
        """Queue an image that was just paid for; `latency_s`: how long its call took."""
        if self._left:
            return
        if self._pace is not None and latency_s is not None:
            self._pace.answered(latency_s)
        self._ready.append(image)
        if len(self._ready) > self._most_ready:
            self._balance()
        if not self._gives_way():
            self.go_on()

    def go_on(self) -> None:
        """Fetch what waits, as much of it as may be under way: it need not give way any more, or more may be."""
        if self._is_early():
            return
        for _ in range(min(self._left_now(), self._most - self._fetching)):
            self._waiters.wake_one()

    def close(self) -> None:
        """No more images will be put: the last paid call has ended."""
        self._crowd = CROWD
        self._pace = None
        if self._turn is not None:
            self._turn.cancel()
        if self._closing_at_s is None:
            self._closing_at_s = closing_at_s = self._clock.monotonic_s() + (0.0 if self._gave_up else self._wait_s)
            # What was to be tried later than that is tried then, for the last time.
            self._due = [(min(at_s, closing_at_s), number, image) for at_s, number, image in self._due]
            heapq.heapify(self._due)
        self._waiters.wake_all()

    def hurry(self) -> None:
        """Leave what waits for another try to the next run; what never was tried is still fetched."""
        self._impatient = True
        self._due.clear()
        self._waiters.wake_all()

    async def work(self) -> None:
        """Fetch until nothing is left, or the time is over. Run by several tasks."""
        while True:
            image = None
            try:
                image = await self._take()
                if image is None:
                    break
                self._fetching += 1
                await self._fetch(image)
            except BananaError as failed:
                self._on_stop(Stop(failed.exit, str(failed), failed.hint or ""))
                self._give_up(for_good=failed.exit is Exit.DISK)
            except Exception as failed:  # noqa: BLE001  # a bug must not cancel other people's paid calls
                self._on_stop(Stop(Exit.BUG, bug_text(failed), "please report it"))
                self._give_up()
            finally:
                if image is not None:
                    self._fetching -= 1
            self._balance()
        self._waiters.wake_all()

    def _give_up(self, *, for_good: bool = False) -> None:
        """Leave everything to the next run; `for_good`: also what is still bought.

        A full disk's last room is for answers, which come once; images can be fetched again.
        """
        self._left = self._left or for_good
        self._due.clear()
        self._ready.clear()
        self._earlier_left = False

    async def _fetch(self, image: PaidImage) -> None:
        result = await self._images.fetch(image)
        if isinstance(result, FetchFailed):
            await self._failed(image, result)
            return
        self._late_since_s = None
        most = self._most
        self._fitting = max(1, 2 * SMALL_BYTES // max(1, result.bytes))
        if self._most > most:
            self.go_on()
        await self._store.finish(image.index, result)
        self._events.emit("stored", index=image.index, id=image.id, path=result.path, bytes=result.bytes)
        outage, self._failed_in_row = self._failed_in_row >= OUTAGE, 0
        self._silent_in_row = 0
        if outage and self._due:
            # The host is back: what waited goes first.
            self._ready.extendleft(entry[2] for entry in sorted(self._due, reverse=True))
            self._due.clear()
            self._waiters.wake_all()

    async def _failed(self, image: PaidImage, failure: FetchFailed) -> None:
        self._failed_in_row += 1
        self._silent_in_row = 0 if failure.gone else self._silent_in_row + 1
        over = self._closing_at_s is not None and self._clock.monotonic_s() >= self._closing_at_s
        lost = failure.lost or (failure.gone and image.failed_earlier and over)
        await self._store.unfetched(image.index, failure, lost)
        self._events.emit(
            "fetch_failed", index=image.index, id=image.id, error=failure.name, message=failure.message, lost=lost
        )
        if lost and failure.gone:
            self._gone += 1
            if self._gone == GONE_LIMIT:
                self._on_stop(Stop(Exit.UNAVAILABLE, f"{GONE_LIMIT} paid images are gone from their host", _GONE_HINT))
        if failure.stop is not None:
            # What an earlier run stopped for, and went unheeded, keeps this one from nothing else.
            if not (image.failed_earlier and failure.stop.exit is Exit.PROTOCOL):
                self._on_stop(Stop(failure.stop.exit, failure.message, failure.stop.hint))
            if failure.stop.exit is Exit.DISK:
                self._give_up(for_good=True)
        elif not lost and not self._impatient and not over:
            self._again(image, failure)

    def _again(self, image: PaidImage, failure: FetchFailed) -> None:
        backoff = failure.backoff
        delay_s = self._rng.uniform(0, min(backoff.cap_s, backoff.base_s * 2.0 ** min(image.tries, 16)))
        again_at_s = self._clock.monotonic_s() + delay_s
        if self._closing_at_s is not None:
            # One last try when the time is over: only then can an image be called lost.
            again_at_s = min(again_at_s, self._closing_at_s)
        tried = replace(image, tries=image.tries + 1, damaged_sha256=failure.sha256 or image.damaged_sha256)
        heapq.heappush(self._due, (again_at_s, next(self._order), tried))

    def _balance(self) -> None:
        late = len(self._due) > BACKLOG_LIMIT
        if late:
            self._end_where_none_comes()
        hold = late or len(self._ready) > self._most_ready
        if hold != self._held:
            self._held = hold
            if hold:
                self._pacer.hold(BACKLOG)
            else:
                self._pacer.release(BACKLOG)

    def _end_where_none_comes(self) -> None:
        """Calls wait for images that never come: a run must not wait for them for ever."""
        now_s = self._clock.monotonic_s()
        if self._late_since_s is None:
            self._late_since_s = now_s
        elif not self._gave_up and self._closing_at_s is None and now_s - self._late_since_s >= self._wait_s:
            self._gave_up = True
            text = f"no image could be fetched for {duration_text(self._wait_s)}; {self.waiting} paid ones wait"
            self._on_stop(Stop(Exit.UNAVAILABLE, text, "run again later: they are fetched first"))

    def _hopeless(self) -> bool:
        """Tell whether the time is over and the host silent: each further try would only wait as long as the last."""
        over = self._closing_at_s is not None and self._clock.monotonic_s() >= self._closing_at_s
        return over and self._silent_in_row >= OUTAGE

    async def _take(self) -> PaidImage | None:
        while True:
            if self._hopeless():
                self._give_up()
            if self._store.broken is not None and not self._left:
                self._on_stop(Stop(Exit.DISK, str(self._store.broken), self._store.broken.hint or ""))
                self._give_up(for_good=True)
            if self._fetching >= self._most:
                await self._waiters.wait()
            elif self._earlier_left and not self._ready:
                await self._refill()
            elif self._gives_way() or self._is_early():
                await self._waiters.wait()
            elif self._due and self._due[0][0] <= self._clock.monotonic_s():
                return heapq.heappop(self._due)[2]
            elif self._ready:
                return self._next()
            elif (self._closing_at_s is not None and not self._due and not self._fetching) or (
                self._closing_at_s is not None and self._impatient
            ):
                return None
            else:
                await self._waiters.wait(self._due[0][0] if self._due else None)

    async def _refill(self) -> None:
        """Take up what earlier runs left unfetched."""
        async with self._refilling:
            if self._ready or not self._earlier_left:
                return
            page = await self._store.next_paid(PAGE)
            self._ready.extend(page)
            self._earlier_left = bool(page)
        self._waiters.wake_all()
