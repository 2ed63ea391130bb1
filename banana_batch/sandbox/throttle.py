"""Limits of the endpoint: rate, queue, balance, in this order.

Rule 1: a plain function of values: the time is handed in, nothing waits here.
"""

from collections import deque
from math import ceil

from msgspec import Struct

from .config import SandboxConfig

_MINUTE_S = 60.0


class Refusal(Struct, frozen=True):
    """A call that is not taken.

    Attributes:
        retry_after_s: When to come again, seconds; None: not said.
    """

    status: int
    message: str
    retry_after_s: int | None = None


class Throttle:
    """Decides for each call whether it is taken."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._taken_s: deque[float] = deque()

    def judge(self, now_s: float, in_flight: int, price: int, charged: int) -> Refusal | None:
        """Return why a call is refused, None if it is taken.

        Args:
            now_s: Monotonic.
            in_flight: Calls being served, without this one.
            price: Of this call, millionths.
            charged: Over the life of the charge log, millionths.
        """
        config, taken = self._config, self._taken_s
        if config.rate_limit is not None:
            while taken and taken[0] <= now_s - _MINUTE_S:
                taken.popleft()
            if len(taken) >= config.rate_limit:
                free_in_s = max(1, ceil(taken[0] + _MINUTE_S - now_s)) if taken else int(_MINUTE_S)
                return Refusal(429, "Short-term request rate exceeded", free_in_s if config.retry_after else None)
        if config.queue_limit is not None and in_flight >= config.queue_limit:
            return Refusal(499, "Queue exhausted: not enough queue capacity for that product")
        if config.balance is not None and charged + price > config.balance:
            return Refusal(402, "Insufficient balance: not enough quota")
        if config.rate_limit is not None:
            taken.append(now_s)
        return None
