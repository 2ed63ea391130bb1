"""What a run needs of its settings once its batch is ready: plain values, checked by the model in settings.py."""

from datetime import time
from pathlib import Path

from msgspec import Struct

from . import money
from .models import Caps

DEFAULT_MAX_PRICE = 50 * money.MICRO
TIMEOUT_S = 360.0
TIMEOUT_4K_S = 600.0  # 4K with high thinking takes up to 150 s, and its tail far longer (vendor facts, section 6)
GRACE_SLACK_S = 30.0


class RunSettings(Struct, frozen=True):
    """Settings of a run; each means what it does in settings.py, which says the defaults.

    Attributes:
        budget, run_budget, max_price: Millionths of a credit.
        max_duration, timeout, grace, give_up_after, download_wait: Seconds.
    """

    concurrency: int
    budget: int | None
    run_budget: int | None
    max_price: int | None
    rpm: int | None
    limit: int | None
    stop_by: time | None
    max_duration: float | None
    sandbox: bool
    yes: bool
    in_doubt: str
    retries: int
    timeout: float | None
    grace: float | None
    give_up_after: float
    download_wait: float
    on_finish: str | None
    base_url: str
    proxy: str | None
    allow_host: list[str]
    ca_file: Path | None
    key_file: Path | None
    json_output: bool
    quiet: bool
    verbose: bool
    no_progress: bool
    log_file: Path | None

    @property
    def caps(self) -> Caps:
        """The caps as the engine takes them."""
        price = DEFAULT_MAX_PRICE if self.max_price is None else self.max_price
        return Caps(self.budget, self.run_budget, price, bounded=self.max_price is None)

    def timeout_s(self, image_size: str) -> float:
        """Return how long one call may take, seconds."""
        return self.timeout or (TIMEOUT_4K_S if image_size == "4K" else TIMEOUT_S)

    @property
    def grace_s(self) -> float:
        """How long a drain waits, seconds."""
        return self.grace if self.grace is not None else (self.timeout or TIMEOUT_4K_S) + GRACE_SLACK_S
