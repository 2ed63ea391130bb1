"""The command: `banana-batch` and `python -m banana_batch` are the same program."""

import sys

from . import __version__


def main() -> None:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        # Answered before anything is imported.
        print(__version__)  # noqa: T201
        sys.exit(0)
    from .cli import app

    try:
        code = app.main(arguments)
    except Exception as failed:  # noqa: BLE001  # the last line of defence: a message and a code, no traceback
        code = app.bug(failed)
    sys.exit(code)


if __name__ == "__main__":
    main()
