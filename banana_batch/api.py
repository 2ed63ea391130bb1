"""The Python API: the same run, with the same guarantees, as an async iterator of results.

from banana_batch import Job, Settings, run_batch

async with run_batch([Job(prompt="a cute cat")], Settings(out="outputs/cat", sandbox=True)) as run:
    async for result in run:
        print(result.id, result.state, result.image)
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Self

from .batch import Run, Work
from .engine.stops import Stop
from .errors import Exit, ManifestError, Problem, UsageError
from .images.guard import parse_allow_host
from .job import Job
from .lifecycle import JobState
from .manifest.loader import index_width, plan_jobs
from .models import PlannedJob, RunResult
from .ordering import Order
from .planning import made_ready
from .report.account import Account
from .report.results import result_dict
from .report.tally import Tally
from .settings import Settings
from .store import database, queries


class BatchRun:
    """A run of jobs that a program made. Iterate it once, inside `async with`; each job is yielded once.

    Jobs that this run settles come as they settle, the others at the end, in the order given: done earlier, or
    still pending because a budget, a limit or the endpoint ended the run. Leaving the `async with` early
    drains: calls in flight are finished and recorded. Without it, Python does not wait for a loop that was left, and
    ends what is in flight with the event loop: in doubt.

    Attributes:
        account: How the run went, once the iteration has ended; `account.exit` is the command's exit code.
    """

    def __init__(self, jobs: Iterable[Job], settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        if settings.out is None:
            raise UsageError("Settings(out=...) is needed: the folder that the batch lives in")
        if settings.dry_run or settings.on_finish is not None:
            raise UsageError("dry_run and on_finish are the command's: a program plans, and goes on, by itself")
        for host in settings.allow_host:
            parse_allow_host(host)
        self.account: Account | None = None
        self._out = settings.out.absolute()
        order = Order(settings, self._out, _Jobs(jobs, settings))
        self._running: asyncio.Task[Account] | None = None
        self._settled: asyncio.Queue[int | None] = asyncio.Queue()
        self._run = Run(
            Work(self._out, settings.of_run, lambda: made_ready(order), os.environ if environ is None else environ),
            self._view,
        )

    def _view(self, _tally: Tally) -> "_Watcher":
        return _Watcher(self._settled)

    async def __aenter__(self) -> Self:
        """Nothing begins before the first result is asked for."""
        return self

    async def __aexit__(self, *ending: object) -> None:
        """Let calls in flight end, and wait for them."""
        await self._end()

    async def _end(self) -> None:
        if self._running is None:
            return
        if not self._running.done():
            self._run.drain(Stop(Exit.STOPPED, "the caller left the loop"))
        self.account = await self._running

    async def __aiter__(self) -> AsyncIterator[RunResult]:
        """Run, and yield each job's result.

        Raises:
            BananaError: the run could not begin; nothing was sent.
        """
        # The one task outside the pool: the run goes on while the caller looks at a result.
        running = self._running = asyncio.create_task(self._run.run(), name="run")
        running.add_done_callback(lambda _: self._settled.put_nowait(None))
        told: set[int] = set()
        try:
            while (index := await self._settled.get()) is not None:
                if index not in told:
                    told.add(index)
                    yield self._result(index)
        finally:
            await self._end()
        for result in self._others(told):
            yield result

    def _result(self, index: int) -> RunResult:
        with closing(database.open_reader(self._out)) as db:
            return _typed(queries.result(db, index))

    def _others(self, told: set[int]) -> Iterator[RunResult]:
        with closing(database.open_reader(self._out)) as db:
            for row in queries.results(db, manifest_only=True):
                if row["job"] not in told:
                    yield _typed(row)


def run_batch(jobs: Iterable[Job], settings: Settings, *, environ: Mapping[str, str] | None = None) -> BatchRun:
    """Make every image of `jobs`, in the batch that lives in `settings.out`; resumes it when it exists.

    Args:
        environ: Where the key is looked for; None: the process's environment.

    Raises:
        UsageError: no output folder is given.
    """
    return BatchRun(jobs, settings, environ)


class _Jobs:
    """Jobs from a program, as a source like a manifest."""

    def __init__(self, jobs: Iterable[Job], settings: Settings) -> None:
        self._jobs = jobs
        self._settings = settings
        self.index_width = index_width(settings)

    def jobs(self, problems: list[Problem], warnings: list[Problem]) -> Iterator[PlannedJob]:
        """See ordering.JobSource."""
        try:
            yield from plan_jobs(self._jobs, self._settings, warnings=warnings)
        except ManifestError as failed:
            problems += failed.problems

    def fingerprint(self) -> bytes | None:
        """See ordering.JobSource: code has no bytes to hash."""
        return None


class _Watcher:
    """Implements batch.View for a program: nobody to ask, and a queue of settled jobs."""

    can_ask = False

    def __init__(self, settled: "asyncio.Queue[int | None]") -> None:
        self._settled = settled

    def emit(self, event: str, /, **facts: object) -> None:
        """See ports.Events."""
        index = facts.get("index")
        over = event == "stored" or (event == "fetch_failed" and facts["lost"])
        over = over or (event == "answered" and facts["outcome"] in ("refused", "in_doubt"))
        if over and isinstance(index, int):
            self._settled.put_nowait(index)

    async def ask(self, question: str) -> bool:  # noqa: ARG002  # nobody is there
        """See batch.View."""
        return False

    async def ask_doubts(self, doubts: Sequence[queries.Doubt]) -> bool:  # noqa: ARG002
        """See batch.View."""
        return False


def _typed(row: sqlite3.Row) -> RunResult:
    found = result_dict(row)
    return RunResult(**{**found, "state": JobState(found["state"])})
