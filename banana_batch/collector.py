"""The garbage collector, for a process of which thousands of short-lived objects are in use at once."""

import gc


def keep_what_is_loaded() -> None:
    """Let the collector never look at modules again, and seldom at the rest: a tenth of a run's time.

    Thousands of calls in flight are many objects and hardly a cycle: by default an eighth of the time goes into
    looking for some.
    """
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()
