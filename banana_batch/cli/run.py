"""`run`, `plan` and `download`: what sends, what would be sent, what is only fetched."""

import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
import uvloop

from banana_batch import accounting
from banana_batch.batch import Run, Work
from banana_batch.errors import BananaError, DiskError, Exit
from banana_batch.finding import working_folder
from banana_batch.ordering import Order, settle_order
from banana_batch.planning import looked_at, made_ready, opened_for_images
from banana_batch.report.account import Account
from banana_batch.report.stream import Stream
from banana_batch.report.summary import terminal_text
from banana_batch.report.tally import Tally
from banana_batch.settings import Settings, wants_json

from . import outcome
from .hook import on_finish
from .options import with_settings
from .plan import plan_json, plan_text
from .terminal import Orders, Terminal, breakable, confirmed, orders, signals

RESOLVERS = 16  # names looked up at once: dead name servers of image hosts must not keep the gateway's name waiting
DESCRIPTORS = 32_768  # at `-c 10000` a paid call, its fetch and its file, and some

Manifests = Annotated[
    list[str], typer.Argument(metavar="MANIFEST...", help="Prompt files, patterns, or - for standard input")
]

DownloadWait = Annotated[
    str | None, typer.Option(metavar="DURATION", help="How long to go on for images not to be had yet [15m]")
]


@with_settings
def run(manifests: Manifests, options: dict[str, Any]) -> int:
    """Generate every image of a manifest; goes on by itself where an earlier run stopped.

    Example: banana-batch run prompts.csv --budget '$5'
    """
    with json_whatever_happens(options) as told:
        order = _settled(manifests, options, told)
        if order.settings.dry_run:
            return _show_plan(order)
        work = Work(
            order.out,
            order.settings,
            lambda: breakable(lambda: made_ready(order)),
            os.environ,
            run_command=["banana-batch", *sys.argv[1:]],
        )
        return finish(work, told)
    return told.code


@with_settings
def plan(manifests: Manifests, options: dict[str, Any]) -> int:
    """Check a manifest and show what a run would do and cost. Sends nothing, writes nothing.

    Example: banana-batch plan prompts.csv
    """
    with json_whatever_happens(options) as told:
        return _show_plan(_settled(manifests, options, told))
    return told.code


def _settled(manifests: Sequence[str], options: Mapping[str, Any], told: "Told") -> Order:
    order = settle_order(manifests, options, os.environ, working_folder(), _stdin(), confirmed)
    told.out, told.json, told.budget = order.out, order.settings.json_output, order.settings.budget
    return order


def _show_plan(order: Order) -> int:
    """Print the plan; whether it is wanted may be said in a job file or the environment too."""
    with looked_at(order) as prepared:
        if order.settings.json_output:
            outcome.print_json(plan_json(order, prepared))
        else:
            outcome.say(plan_text(order, prepared, _as_run(sys.argv[1:])))
    return Exit.DONE


def _as_run(arguments: Sequence[str]) -> list[str]:
    """Return the words of the run that `plan`, or a dry run, told of."""
    return ["banana-batch", "run", *(word for word in arguments[1:] if word not in ("-n", "--dry-run"))]


class Told:
    """What is known when a command fails half way."""

    def __init__(self) -> None:
        self.out: Path | None = None
        self.json = False
        self.budget: int | None = None
        self.code = Exit.DONE


@contextlib.contextmanager
def json_whatever_happens(options: Mapping[str, Any]) -> Iterator[Told]:
    told = Told()
    told.json = wants_json(options, os.environ)
    try:
        yield told
    except Exception as broken:
        failed = outcome.as_told(broken)
        if failed is not None:
            outcome.complain(failed)
            told.code = failed.exit
        if told.json:
            with contextlib.suppress(DiskError):  # the code tells already of a failure, maybe of this one
                outcome.print_json(outcome.failed_summary(failed.exit if failed else Exit.BUG, told.out, told.budget))
        if failed is None:
            raise


def finish(work: Work, told: Told) -> int:
    _set_limits()
    settings = work.settings
    view: Terminal | None = None

    def watched(tally: Tally) -> Terminal:
        nonlocal view
        view = Terminal(tally, settings)
        return view

    task = Run(work, watched)
    assert view is not None
    try:
        with orders() as taken:
            account = uvloop.run(_with_signals(task, view, taken))
    except BananaError as failed:
        view.close()
        on_finish(settings, outcome.failed_summary(failed.exit, work.out, settings.budget), work.out)
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
    # S3: a core dump would hold the key.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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


def _tell(account: Account, settings: Settings) -> None:
    if settings.json_output:
        outcome.print_json(accounting.summary_of(account))
    elif not settings.quiet:
        with contextlib.suppress(DiskError):  # the code tells how the run went, as does the batch
            outcome.say(terminal_text(account))
    elif account.exit not in (Exit.DONE, Exit.STOPPED):
        # Doubts, failures and images of earlier runs are trouble too, though this one met none.
        Stream().write(terminal_text(account) + "\n")


def _stdin() -> BinaryIO:
    return sys.stdin.buffer if sys.stdin is not None else open(os.devnull, "rb")


def download(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Output folder, or the manifest it was made from")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but trouble")] = False,
    download_wait: DownloadWait = None,
) -> int:
    """Fetch the images that are paid for and not on disk yet. Can never send a paid request.

    Example: banana-batch download outputs/prompts
    """
    given: dict[str, Any] = {"json": json, "quiet": quiet, "download_wait": download_wait}
    options = {name: value for name, value in given.items() if value}
    with json_whatever_happens(options) as told:
        out, settings, ready = opened_for_images(batch, options, os.environ, working_folder())
        told.out = out
        return finish(Work(out, settings, ready, os.environ, sends=False), told)
    return told.code
