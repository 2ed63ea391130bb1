"""Group commit: many callers, one costly durable step for all that came meanwhile.

Rule 1: a caller resumes only when its own item is through.
Rule 2: one group at a time, items in the order they were put: what one group read, the next may rely on.
Rule 3: a caller that is cancelled takes nothing back: the group goes on without it. Only what was said to be
        droppable, and is in no group yet, is left out.
Rule 4: no task and no thread of our own; the executor is handed in (a simulation hands in one that runs inline).
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Runs `commit(items)` on an executor, for whatever was put since the last group.

    Args:
        executor: Where `commit` runs, one call at a time.
        commit: Takes a group, returns a result or an exception for each item, in order. What it raises
            goes to every caller of the group.
        abandoned: Called on the loop's thread with an item and its result, where its caller was cancelled while
            the item was on its way. What it puts is in the next group. Items that failed are not told.
        droppable: Tells of an item whose caller was cancelled before its group began whether it is left out.
        max_group: Items a group takes at most.
        gather_s: Seconds from the start of one group to that of the next at least: what comes in a row shares a step.
            The first after a pause never waits. May be changed at any time.
    """

    def __init__(
        self,
        executor: Executor,
        commit: Callable[[Sequence[Item]], Sequence[Result | BaseException]],
        abandoned: Callable[[Item, Result], None] | None = None,
        *,
        droppable: Callable[[Item], bool] | None = None,
        max_group: int = 256,
        gather_s: float = 0.0,
    ) -> None:
        self._executor = executor
        self._commit = commit
        self._abandoned = abandoned
        self._droppable = droppable
        self._max_group = max_group
        self.gather_s = gather_s
        self._started_s = -math.inf
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._busy = False
        self._idle: list[asyncio.Future[None]] = []

    def put(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item for the next group; the future ends with its result. Call it on the loop's thread.

        The future is the caller's own: cancelled, it tells `abandoned`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if not self._busy:
            # One turn of the loop later: all that became ready in this turn shares the group.
            self._busy = True
            loop.call_soon(self._gather, loop)
        return future

    async def idle(self) -> None:
        """Return when all that was put is through, whether or not anybody waits for it still."""
        while self._busy:
            idle = asyncio.get_running_loop().create_future()
            self._idle.append(idle)
            await idle

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        wait_s = self._started_s + self.gather_s - loop.time()
        if wait_s > 0 and len(self._waiting) < self._max_group:
            loop.call_later(wait_s, self._start, loop)
        else:
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._started_s = loop.time()
        group, self._waiting = self._waiting[: self._max_group], self._waiting[self._max_group :]
        group = [entry for entry in group if not (entry[1].cancelled() and self._may_drop(entry[0]))]
        if not group:
            self._next(loop)
            return
        done = self._executor.submit(self._commit, [item for item, _ in group])
        done.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._land, loop, group, ended))

    def _may_drop(self, item: Item) -> bool:
        return self._droppable is not None and self._droppable(item)

    def _land(
        self,
        loop: asyncio.AbstractEventLoop,
        group: list[tuple[Item, asyncio.Future[Result]]],
        ended: Future[Sequence[Result | BaseException]],
    ) -> None:
        failure = ended.exception()
        results: Sequence[Result | BaseException] = [failure] * len(group) if failure else ended.result()
        for (item, future), result in zip(group, results, strict=True):
            if isinstance(result, BaseException):
                if not future.done():
                    future.set_exception(result)
            elif not future.done():
                future.set_result(result)
            elif self._abandoned is not None:
                self._abandoned(item, result)
        self._next(loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting:
            self._gather(loop)
        else:
            self._busy = False
            for idle in self._idle:
                if not idle.done():
                    idle.set_result(None)
            self._idle.clear()
