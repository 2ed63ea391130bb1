"""`run`, `plan` and `download`: what sends, what would be sent, what is only fetched."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from banana_batch.errors import Exit
from banana_batch.finding import working_folder
from banana_batch.ordering import Order, settle_order
from banana_batch.planning import looked_at, made_ready, opened_for_images
from banana_batch.settings import wants_json

from . import outcome
from .options import with_settings
from .plan import plan_json, plan_text
from .questions import confirmed

if TYPE_CHECKING:
    from .apart import HandOver

Manifests = Annotated[
    list[str], typer.Argument(metavar="MANIFEST...", help="Prompt files, patterns, or - for standard input")
]

DownloadWait = Annotated[
    str | None, typer.Option(metavar="DURATION", help="How long to go on for images not to be had yet [15m]")
]


@with_settings
def run(context: typer.Context, manifests: Manifests, options: dict[str, Any]) -> int:
    """Generate every image of a manifest; goes on by itself where an earlier run stopped.

    Example: banana-batch run prompts.csv --budget '$5'
    """
    told = outcome.Told(wants_json(options, os.environ))
    with outcome.json_whatever_happens(told):
        order = _settled(manifests, options, told)
        if order.settings.dry_run:
            return _show_plan(order)
        settings = order.settings.of_run
        if context.obj is not None:
            hand_over: HandOver = context.obj
            hand_over(order.out, settings, lambda: made_ready(order, os.getppid()))
        from .running import buy  # not before: another process may do all of this

        return buy(order.out, settings, lambda: made_ready(order), told)
    return told.code


@with_settings
def plan(manifests: Manifests, options: dict[str, Any]) -> int:
    """Check a manifest and show what a run would do and cost. Sends nothing, writes nothing.

    Example: banana-batch plan prompts.csv
    """
    told = outcome.Told(wants_json(options, os.environ))
    with outcome.json_whatever_happens(told):
        return _show_plan(_settled(manifests, options, told))
    return told.code


def _settled(manifests: Sequence[str], options: Mapping[str, Any], told: outcome.Told) -> Order:
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
    from .running import Work, finish

    told = outcome.Told(wants_json(options, os.environ))
    with outcome.json_whatever_happens(told):
        out, settings, ready = opened_for_images(batch, options, os.environ, working_folder())
        told.out = out
        return finish(Work(out, settings, ready, os.environ, sends=False), told)
    return told.code
