"""How many paid calls may be in flight: up by one, down by half, with a memory of the width that failed.

Plain AIMD saws for ever between half the endpoint's limit and a refusal. So the width that was refused is
remembered as the ceiling: below it the limit grows by one a window of answers, at it the limit rests, and is
tried again only after a patience that doubles with each try that fails.

Rule 1: no clock, no randomness: times are handed in.
"""

FIRST_PATIENCE_S = 300.0
LONGEST_PATIENCE_S = 3600.0


class Width:
    """The limit of calls in flight.

    Attributes:
        widest: `--concurrency`.
        limit: Between 1 and `widest`.
    """

    def __init__(self, widest: int) -> None:
        self.widest = widest
        self.limit = widest
        self._ceiling: int | None = None
        self._refused_s = 0.0
        self._patience_s = FIRST_PATIENCE_S
        self._probing = False
        self._goods = 0

    def accepted(self, now_s: float, in_flight: int) -> None:
        """Count a good answer, given with `in_flight` calls (its own among them); `limit` of them are a window.

        Only answers that came while the limit was in use count: an idle limit proves nothing.
        """
        in_use = in_flight >= self.limit if self._probing else in_flight * 2 > self.limit
        if self.limit >= self.widest or not in_use:
            return
        self._goods += 1
        if self._goods >= self.limit:
            self._goods = 0
            self._widen(now_s)

    def _widen(self, now_s: float) -> None:
        if self._probing:  # a whole window at the width that once failed: the endpoint has grown
            self._probing = False
            self._ceiling = None
            self._patience_s = FIRST_PATIENCE_S
        if self._ceiling is not None and self.limit + 1 >= self._ceiling:
            if now_s < self._refused_s + self._patience_s:
                return
            self._probing = True
        self.limit += 1

    def refused(self, now_s: float, width: int, *, again: bool) -> None:
        """Narrow after a refusal that came with `width` calls in flight, its own among them.

        `again`: no good answer came since the last refusal. Then the door is shut, whatever the width: the limit
        is halved, but the ceiling stays, or a shut door would be remembered as a narrow one.
        """
        self._goods = 0
        self._refused_s = now_s
        width = max(1, min(width, self.limit))
        if self._probing and self._ceiling is not None and width >= self._ceiling:
            # It failed there before: nothing new below it, so no halving (or the limit would never come to rest).
            self.limit = self._ceiling - 1 or 1
            self._patience_s = min(2 * self._patience_s, LONGEST_PATIENCE_S)
        else:
            self.limit = max(1, width // 2)
            self._patience_s = FIRST_PATIENCE_S
            if not again:
                self._ceiling = width if width > 1 else None
        self._probing = False

    def restore(self, width: int) -> None:
        """Go back to a width that was proven: its refusals had another reason."""
        self.limit = max(self.limit, min(width, self.widest))
        self._ceiling = None
        self._probing = False
        self._goods = 0
