"""A thread that writes what the event loop only notes down.

Rule 1: whoever notes something down never waits; a write that hangs hangs here.
Rule 2: the thread is a daemon and is waited for with a limit: a dead terminal or disk never keeps a run from ending.
"""

import threading
from collections.abc import Callable


class Background:
    """Calls `turn` on its own thread: every `interval_s`, at once when woken, and a last time when closed.

    Args:
        name: Of the thread.
        turn: Must not raise.
        interval_s: Seconds between two turns when nobody wakes it.
    """

    def __init__(self, name: str, turn: Callable[[], None], interval_s: float) -> None:
        self._turn = turn
        self._interval_s = interval_s
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ask for a turn now."""
        self._wake.set()

    def close(self, patience_s: float) -> bool:
        """End with a last turn; tell whether it came to its end within `patience_s` seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._turn()
        # What was noted down between the last turn and the close.
        self._turn()
