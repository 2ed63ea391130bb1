"""The time of an event loop, as durations and waits want it."""

import asyncio
import encodings.idna  # noqa: F401  # uvloop's first connection wants it: not from a disk that has failed meanwhile
import time
from collections.abc import Callable

import uvloop


def time_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return what tells a loop's time, seconds: it never jumps, and passes during a turn of the loop too.

    uvloop's own stands still in a turn, which planning a million rows is, or in which the process was frozen. A
    simulated night has a time of its own.
    """
    return time.monotonic if isinstance(loop, uvloop.Loop) else loop.time
