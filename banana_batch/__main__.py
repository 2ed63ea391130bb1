"""The command: `banana-batch` and `python -m banana_batch` are the same program."""

import gc
import os
import sys
from typing import TYPE_CHECKING

from . import __version__

if TYPE_CHECKING:
    from .cli.apart import HandOver


def main() -> None:
    """Run the command line and exit with its code."""
    _hold_standard_descriptors()
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        # Answered before anything is imported.
        try:
            os.write(1, f"{__version__}\n".encode())
        except OSError:
            sys.exit(74)
        sys.exit(0)
    gc.disable()  # while everything is loaded; `app` turns it on
    try:
        code = _run(arguments)
    except KeyboardInterrupt:
        # Before a run could take it for an order to stop, or after its end: nothing is under way.
        from .errors import Exit

        code = Exit.INTERRUPTED
    _leave(code)


def _run(arguments: list[str]) -> int:
    try:
        if arguments[:1] == ["run"]:
            from .cli import apart

            return apart.begin(arguments, _command)
        return _command(arguments)
    except Exception as failed:  # noqa: BLE001  # the last line of defence: a message and a code, no traceback
        from .cli import outcome

        told = outcome.a_bug(failed)
        outcome.complain(told)
        return told.exit


def _command(arguments: list[str], hand_over: "HandOver | None" = None) -> int:
    from .cli import app

    return app.main(arguments, hand_over)


def _leave(code: int) -> None:
    """End with a code. Everything is closed: taking hundreds of modules apart one by one would help nobody."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # none, or nobody reads it: left to the interpreter's own end
        sys.exit(code)
    os._exit(code)


def _hold_standard_descriptors() -> None:
    """Open those of 0, 1, 2 that are closed: else a log becomes descriptor 1, and what is printed goes into it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is the closed one; what --on-finish starts gets it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


if __name__ == "__main__":
    main()
