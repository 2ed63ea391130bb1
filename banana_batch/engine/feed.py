"""Which job next: retries that are due, then the manifest's pending jobs, then what may be sent again.

Rule 1: lazy: a few pages of jobs are in memory, never the manifest.
Rule 2: a job is out with one worker at a time; it comes back with `again` or is `closed`.
Rule 3: jobs in doubt that the user lets go again come when nothing else is left or under way.
"""

import heapq
from collections import deque
from itertools import count

from banana_batch.models import QueuedJob
from banana_batch.ports import Clock, Store

from .waiting import Waiters

PAGE = 256
# A page is on its way while as many calls as this begin: where a wave ended while none was at hand, all of it waited.
LOW_WATER = 384


class Feed:
    """Hands jobs to the workers.

    Args:
        limit: Jobs that may be sent for the first time in this run; None: all.
        resend: Whether jobs in doubt may be sent again.
    """

    def __init__(self, store: Store, clock: Clock, *, limit: int | None, resend: bool) -> None:
        self._store = store
        self._clock = clock
        self._first_left = limit
        self._resend = resend
        self._page: deque[QueuedJob] = deque()
        self._due: list[tuple[float, int, QueuedJob]] = []
        self._order = count()
        self._out = 0
        self._dry = False
        self._stopped = False
        self._refilling = False
        self._waiters = Waiters(clock)
        self._low = Waiters(clock)

    def stop(self) -> None:
        """Hand out nothing more; who waits for a job gets None."""
        self._stopped = True
        self._waiters.wake_all()
        self._low.wake_all()

    async def keep_filled(self) -> None:
        """Read each page before the one before it is used up, until there is none. Run by one task; or by none."""
        while not self._dry and not self._stopped:
            if self.at_hand < LOW_WATER:
                await self._refill()
            else:
                await self._low.wait()

    @property
    def limited(self) -> bool:
        """The run's limit of first sends is used up."""
        return self._first_left == 0

    @property
    def at_hand(self) -> int:
        """Jobs that are read and not yet handed out."""
        return len(self._page)

    @property
    def dry(self) -> bool:
        """No job is left but those that are out or come again."""
        return self._dry and not self._page

    async def take(self) -> QueuedJob | None:
        """Return the next job; None when nothing is left, or `stop` was called."""
        while not self._stopped:
            job = self.take_now()
            if job is not None:
                return job
            if not self._dry:
                await self._refill()
            elif self._due or self._out:
                await self._waiters.wait(self._due[0][0] if self._due else None)
            elif self._resend:
                await self._refill()
            else:
                break
        self._waiters.wake_all()
        return None

    def take_now(self) -> QueuedJob | None:
        """Return the next job; None where none is at hand."""
        job = None if self._stopped else self._next()
        if job is not None:
            self._out += 1
        return job

    def put_back(self, job: QueuedJob) -> None:
        """Take back a job that was just handed out: it is the next one again. The caller takes one later."""
        self._page.appendleft(job)
        if not job.attempts and self._first_left is not None:
            self._first_left += 1
        self._out -= 1

    def closed(self) -> None:
        """A job is out of the run: bought, refused for good, in doubt."""
        self._out -= 1
        if not self._out:
            self._waiters.wake_all()

    def again(self, job: QueuedJob, delay_s: float) -> None:
        """Take a job back, to be handed out after `delay_s`."""
        heapq.heappush(self._due, (self._clock.monotonic_s() + delay_s, next(self._order), job))
        self._out -= 1
        self._waiters.wake_all()

    def _next(self) -> QueuedJob | None:
        if self._due and self._due[0][0] <= self._clock.monotonic_s():
            return heapq.heappop(self._due)[2]
        if len(self._page) <= LOW_WATER:
            self._low.wake_one()
        while self._page:
            job = self._page.popleft()
            if job.attempts or self._first_left is None:
                return job
            if self._first_left > 0:
                self._first_left -= 1
                return job
        return None

    async def _refill(self) -> None:
        """Read the next page, of pending jobs, then of doubts; thousands may wait for one read, in one line."""
        if self._refilling:
            await self._waiters.wait()
            return
        self._refilling = True
        try:
            if not self._dry:
                page = await self._store.next_pending(PAGE, known_only=self.limited)
                self._dry = not page
            else:
                page = await self._store.next_resend(PAGE)
                self._resend = bool(page)
            self._page.extend(page)
        finally:
            self._refilling = False
            self._waiters.wake_all()
            self._low.wake_all()
