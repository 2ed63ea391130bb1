"""A file descriptor as a text stream that never raises.

Rule 1: writes go straight to the descriptor: a thread that hangs in one holds no lock of `sys.stderr`, which the
        interpreter would need to exit.
Rule 2: a reader that went away (EPIPE, EIO) makes the stream silent for good (safety.md, trap 20).
Rule 3: what is shown may be cut where a terminal does not wait; what was asked for, on standard output, may not.
"""

import errno
import os
import select
import sys

_OUT = 1
_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)


class Stream:
    """Text to a file descriptor.

    Args:
        fd: Standard error, if nothing else is said. It is not closed.

    Attributes:
        error: Why no more can be written, unless the reader went away: a full disk.
    """

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self.error: OSError | None = None
        # Started with standard error closed, descriptor 2 is whatever was opened first: a log, the state file.
        self._dead = fd == 2 and sys.stderr is None
        self.encoding = getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write all of it, or fall silent."""
        data = memoryview(text.encode(self.encoding, "replace"))
        while data and not self._dead:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                if self._fd != _OUT:
                    break
                select.select((), (self._fd,), ())
            except OSError as failed:
                self._dead = True
                self.error = None if failed.errno in _GONE else failed
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Tell whether a person may be looking."""
        return not self._dead and os.isatty(self._fd)

    def columns(self) -> int:
        """Return the width of the terminal, 80 where it is not known."""
        try:
            return os.get_terminal_size(self._fd).columns or 80
        except OSError:
            return 80
