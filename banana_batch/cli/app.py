"""The commands, and the one place where a failure becomes an exit code."""

import gc
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
import typer.main

from banana_batch import __version__
from banana_batch.errors import Exit, UsageError
from banana_batch.loading import by_itself, keep_what_is_loaded

from . import outcome

if TYPE_CHECKING:
    from .apart import HandOver  # `status` begins in one process

HELP = "Buy images for whole manifests of prompts: never pays twice, never loses a paid image, resumes by itself."

# Each command with the module that holds it and its function there.
_COMMANDS = {
    "run": ("run", "run"),
    "plan": ("run", "plan"),
    "status": ("look", "status"),
    "ledger": ("look", "ledger"),
    "download": ("run", "download"),
    "resolve": ("settle", "resolve_doubts"),
    "redo": ("settle", "redo"),
    "verify": ("verify", "verify"),
    "export": ("look", "export"),
    "schedule": ("schedule", "schedule"),
    "sandbox": ("rehearse", "sandbox"),
}

# Those that run something, and load what that takes beforehand.
_RUNNING = frozenset({"run", "download", "verify"})


def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit"),
) -> None:
    if version:
        outcome.say(__version__)
        raise typer.Exit(0)


def _app(arguments: Sequence[str], *, runs: bool) -> typer.Typer:
    """Return the command that is meant alone, or all of them: `status` must not wait for what only a run needs."""
    app = typer.Typer(
        name="banana-batch",
        help=HELP,
        no_args_is_help=False,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    meant = arguments[0] if arguments and arguments[0] in _COMMANDS else None
    with by_itself():
        for name in [meant] if meant else _COMMANDS:
            module, function = _COMMANDS[name]
            app.command(name)(getattr(import_module(f".{module}", __package__), function))
        if runs and meant in _RUNNING:
            import_module(".running", __package__)
    return app


def main(arguments: list[str], hand_over: "HandOver | None" = None) -> int:
    """Run one command; return its exit code. Nothing is raised but what must be: no traceback for the user's errors.

    Args:
        hand_over: Takes a run that is ready to begin; None: it is run here.
    """
    command = typer.main.get_command(_app(arguments, runs=hand_over is None))
    if not gc.isenabled():
        # __main__ holds it still while everything is loaded.
        keep_what_is_loaded()
    try:
        result: Any = command.main(args=arguments, prog_name="banana-batch", standalone_mode=False, obj=hand_over)
    except typer.Abort:
        return Exit.INTERRUPTED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as failed:
        known = outcome.as_told(failed)
        if known is not None:
            outcome.complain(known)
            return known.exit
        # Click's usage errors say themselves what they are; all else is a bug and is shown as one.
        message = getattr(failed, "format_message", None)
        if message is None:
            raise
        outcome.complain(UsageError(message(), f"{' '.join(['banana-batch', *arguments[:1]])} --help"))
        return Exit.USAGE
    return int(result or 0)
