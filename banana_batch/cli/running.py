"""A run under way in this process: limits, loop, signals, and how it is told at the end."""

import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import uvloop

from banana_batch import accounting
from banana_batch.batch import Run, Work
from banana_batch.errors import DiskError, Exit
from banana_batch.loading import leave_no_core, take_memory_ahead
from banana_batch.prepared import Prepared
from banana_batch.report.account import Account
from banana_batch.report.stream import Stream
from banana_batch.report.summary import terminal_text
from banana_batch.report.tally import Tally
from banana_batch.run_settings import RunSettings

from . import outcome
from .hook import on_finish
from .orders import Orders, breakable, orders
from .terminal import Terminal, signals

RESOLVERS = 16  # names looked up at once: dead name servers of image hosts must not keep the gateway's name waiting
AHEAD_BYTES = 3 << 20  # more than 64 calls at full speed were seen to reach in 800,000 jobs
DESCRIPTORS = 32_768  # at `-c 10000` a paid call, its fetch and its file, and some
__all__ = ["Work", "buy", "finish"]


def buy(
    out: Path,
    settings: RunSettings,
    ready: Callable[[], AbstractContextManager[Prepared]],
    told: outcome.Told,
    taking: Callable[[], AbstractContextManager[Orders]] = orders,
) -> int:
    """Run a batch that may buy; return the exit code. An order to stop breaks off what makes it ready.

    Args:
        taking: See `finish`.
    """
    command = ["banana-batch", *sys.argv[1:]]
    return finish(Work(out, settings, lambda: breakable(ready), os.environ, run_command=command), told, taking)


def finish(work: Work, told: outcome.Told, taking: Callable[[], AbstractContextManager[Orders]] = orders) -> int:
    """Do the work, tell how it went; return the exit code.

    Args:
        taking: Takes orders to stop while the run lasts.
    """
    _set_limits()
    take_memory_ahead(AHEAD_BYTES)
    settings = work.settings
    view: Terminal | None = None

    def watched(tally: Tally) -> Terminal:
        nonlocal view
        view = Terminal(tally, settings)
        return view

    task = Run(work, watched)
    assert view is not None
    try:
        with taking() as taken:
            account = uvloop.run(_with_signals(task, view, taken))
    except Exception as failed:
        view.close()
        known = outcome.as_told(failed)
        code = Exit.BUG if known is None else known.exit
        on_finish(settings, outcome.failed_summary(code, work.out, settings.budget), work.out)
        raise
    finally:
        view.close()
    told.code = account.exit
    try:
        _tell(account, settings)
    finally:
        on_finish(settings, accounting.summary_of(account), work.out)
    return account.exit


def _set_limits() -> None:
    leave_no_core()
    # A connection a call: the usual 1,024 descriptors are few for `-c 1000`.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system with a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Resolvers(ThreadPoolExecutor):
    """Where the loop looks names up. A run that has ended, or was stopped hard, waits for no server's answer."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002  # as it is called
        """Leave lookups under way; the process ends without them."""
        super().shutdown(wait=False, cancel_futures=True)


async def _with_signals(task: Run, view: Terminal, taken: Orders) -> Account:
    asyncio.get_running_loop().set_default_executor(_Resolvers(RESOLVERS, "names"))
    async with signals(task, view, taken):
        return await task.run()


def _tell(account: Account, settings: RunSettings) -> None:
    if settings.json_output:
        outcome.print_json(accounting.summary_of(account))
    elif not settings.quiet:
        with contextlib.suppress(DiskError):  # the code tells how the run went, as does the batch
            outcome.say(terminal_text(account))
    elif account.exit not in (Exit.DONE, Exit.STOPPED):
        # Doubts, failures and images of earlier runs are trouble too, though this one met none.
        Stream().write(terminal_text(account) + "\n")
