"""How the sandbox behaves: one frozen value, and the forms in which the command line writes its parts.

Rule 1: every part has one text form, read by a `parse` that says what is allowed.
Rule 2: what is not said is the plainest endpoint there is: no latency, no limits, no faults.
"""

from collections.abc import Sequence
from math import exp, isfinite, log
from statistics import NormalDist

from msgspec import Struct, field

from banana_batch import money
from banana_batch.capabilities import IMAGE_SIZES, MODELS, resolve_model
from banana_batch.models import Kind

from .faults import Fault, FaultKind, FaultShare

_Z95 = NormalDist().inv_cdf(0.95)
_NORMAL = NormalDist()
_LATENCY_FORMS = "fixed:SECONDS, uniform:FROM,TO or lognormal:MEDIAN,P95, in seconds"

# Credits by model and size. Only the first is the vendor's (its sample); the others follow the maker's list prices.
_CREDITS: dict[str, tuple[int, int, int]] = {
    "gemini-2.5-flash-image-preview": (2, 2, 2),
    "gemini-2.5-flash-image": (2, 2, 2),
    "gemini-3-pro-image-preview": (13, 13, 24),
    "gemini-3.1-flash-image-preview": (7, 10, 15),
}


def list_prices() -> dict[Kind, int]:
    """Return the default prices, in millionths of a credit."""
    return {
        Kind(model, size): amount * money.MICRO
        for model, amounts in _CREDITS.items()
        for size, amount in zip(IMAGE_SIZES, amounts, strict=True)
    }


class Latency(Struct, frozen=True):
    """How long a generation takes, seconds.

    `fixed`: always `low`. `uniform`: from `low` to `high`. `lognormal`: median `low`, 95 % under `high`.
    """

    shape: str = "fixed"
    low: float = 0.0
    high: float = 0.0

    def at(self, fraction: float) -> float:
        """Return the latency below which `fraction` of all calls end; `fraction` within (0, 1)."""
        if self.shape == "fixed" or self.high == self.low:
            return self.low
        if self.shape == "uniform":
            return self.low + (self.high - self.low) * fraction
        sigma = log(self.high / self.low) / _Z95
        return self.low * exp(sigma * _NORMAL.inv_cdf(fraction))

    @classmethod
    def parse(cls, text: str) -> "Latency":
        """Read one of the three forms.

        Raises:
            ValueError: says the forms.
        """
        shape, _, values = text.strip().partition(":")
        try:
            numbers = [float(part) for part in values.split(",")]
        except ValueError:
            raise ValueError(_LATENCY_FORMS) from None
        if len(numbers) != {"fixed": 1, "uniform": 2, "lognormal": 2}.get(shape):
            raise ValueError(_LATENCY_FORMS)
        low, high = numbers[0], numbers[-1]
        if not isfinite(high) or not 0 <= low <= high or (shape == "lognormal" and low <= 0):
            raise ValueError(f"{_LATENCY_FORMS}, the smaller number first")
        return cls(shape, low, high)


def parse_fault(text: str) -> FaultShare:
    """Read `KIND=SHARE`, such as `429=0.05`; `image-404x2=0.1`: only the first two fetches meet it.

    Raises:
        ValueError: says what is allowed.
    """
    name, _, share_text = text.strip().partition("=")
    name, times, tries_text = name.partition("x") if name.startswith("image-") else (name, "", "")
    allowed = f"KIND=SHARE, such as 429=0.05, of {', '.join(FaultKind)}"
    try:
        kind, share = FaultKind(name), float(share_text)
        tries = int(tries_text) if times else None
    except ValueError:
        raise ValueError(allowed) from None
    if not 0 <= share <= 1 or (tries is not None and tries < 1):
        raise ValueError(f"{allowed}; the share from 0 to 1, the fetches from 1")
    return FaultShare(Fault(kind, tries=tries), share)


def parse_prices(texts: Sequence[str]) -> dict[Kind, int]:
    """Read prices in credits: `3` for every image, `MODEL=3` for a model, `MODEL/SIZE=3`; the last one wins.

    Raises:
        ValueError: says what is allowed.
    """
    prices = list_prices()
    for text in texts:
        where, _, amount = text.rpartition("=")
        model_text, _, size = where.partition("/")
        model = resolve_model(model_text)
        micro = money.parse_credits(amount)
        hit = [kind for kind in prices if model in ("", kind.model) and size in ("", kind.image_size)]
        if not hit:
            raise ValueError(f"CREDITS, MODEL=CREDITS or MODEL/SIZE=CREDITS, of {', '.join(MODELS)}")
        prices.update(dict.fromkeys(hit, micro))
    return prices


class SandboxConfig(Struct, frozen=True):
    """How the sandbox behaves.

    Attributes:
        seed: Of faults and latencies.
        latency: Of a generation, seconds.
        prices: Of each model and size, millionths of a credit.
        queue_limit: Calls in flight at most, further ones get 499; None: no limit.
        rate_limit: Calls within any 60 seconds at most, further ones get 429; None: no limit.
        retry_after: Whether that 429 says when to come again.
        balance: What the account holds over the life of the charge log, millionths; then 402. None: endless.
        faults: Shares of calls; together at most 1.
        slow_image_s: Seconds that a picture takes which meets `image-slow`.
        plain_pictures: One colour of the right size instead of drawings: costs nothing, each still unique.
        count_requests: Keep how often each request and prompt came, in memory. Off for a million rows:
            the same request then always meets the same.
    """

    seed: int = 0
    latency: Latency = Latency()
    prices: dict[Kind, int] = field(default_factory=list_prices)
    queue_limit: int | None = None
    rate_limit: int | None = None
    retry_after: bool = True
    balance: int | None = None
    faults: tuple[FaultShare, ...] = ()
    slow_image_s: float = 30.0
    plain_pictures: bool = False
    count_requests: bool = True

    def __post_init__(self) -> None:
        """Check what the parts can't check alone.

        Raises:
            ValueError: the shares of faults are more than all calls.
        """
        if sum(one.share for one in self.faults) > 1 + 1e-9:
            raise ValueError("shares of faults that add up to 1 at most")


# What `run --sandbox` uses: slow enough to see a progress bar move, fast enough for a dozen pictures in seconds.
REHEARSAL = SandboxConfig(latency=Latency("uniform", 0.2, 0.8), count_requests=False)
