"""What can go wrong, and when.

Rule 1: whether a call meets a fault, and how long it takes, derives from the seed, the request and how often
        it came, never from the order of arrival: the same night can be played again at any concurrency.
Rule 2: each kind says whether the call is charged; a test may say otherwise.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b

from msgspec import Struct, field

from .orders import Order

# In the body or the headers of a Canned answer: the url of a picture that was sold for it.
IMAGE_URL_MARK = "%IMAGE_URL%"


class FaultKind(StrEnum):
    """The names are those of the command line."""

    TOO_MANY = "429"
    TOO_MANY_RETRY_AFTER = "429-retry-after"
    QUEUE_FULL = "499"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    BAD_GATEWAY = "502-html"
    GATEWAY_TIMEOUT = "504"
    DROP_BEFORE_CHARGE = "drop-before-charge"
    DROP_AFTER_CHARGE = "drop-after-charge"
    HANG = "hang"
    TRUNCATED_JSON = "truncated-json"
    FAILED_200 = "failed-200"
    MISSING_URL = "missing-url"
    IMAGE_404 = "image-404"
    IMAGE_SLOW = "image-slow"
    IMAGE_CUT = "image-cut"
    IMAGE_MISLABELLED = "image-mislabelled"

    @property
    def charged(self) -> bool:
        """Whether a call that meets it is charged, unless the fault says otherwise."""
        return self not in _FREE

    @property
    def at_once(self) -> bool:
        """Whether it comes without the latency of a generation."""
        return self in _AT_ONCE

    @property
    def of_image(self) -> bool:
        """Whether the call itself goes well, and its picture is what suffers."""
        return self.value.startswith("image-")


_AT_ONCE = frozenset(
    {
        FaultKind.TOO_MANY,
        FaultKind.TOO_MANY_RETRY_AFTER,
        FaultKind.QUEUE_FULL,
        FaultKind.UNAVAILABLE,
        FaultKind.DROP_BEFORE_CHARGE,
    }
)
_FREE = _AT_ONCE | {FaultKind.SERVER_ERROR, FaultKind.BAD_GATEWAY, FaultKind.FAILED_200}


class Fault(Struct, frozen=True):
    """One thing that goes wrong.

    Attributes:
        charged: None: as the kind has it.
        tries: Of an image fault: how many fetches of the picture meet it; None: all.
        retry_after_s: What `429-retry-after` asks for, seconds.
    """

    kind: FaultKind
    charged: bool | None = None
    tries: int | None = None
    retry_after_s: int = 2

    @property
    def charges(self) -> bool:
        """Whether the call is charged."""
        return self.kind.charged if self.charged is None else self.charged


class Canned(Struct, frozen=True):
    """An answer made by hand, instead of the sandbox's own.

    Attributes:
        body: IMAGE_URL_MARK in it becomes the url of the picture that was sold; so in header values.
        charged: Whether the call is charged; only then a picture is sold.
        latency_s: Seconds until it is sent; None: drawn as for any other call.
        wire: These exact bytes are put on the connection instead, which is then closed.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    charged: bool = False
    latency_s: float | None = 0.0
    wire: bytes | None = None

    @property
    def charges(self) -> bool:
        """Whether the call is charged."""
        return self.charged


class CallInfo(Struct, frozen=True):
    """A paid call that passed all checks, as a script sees it.

    Attributes:
        number: Order of arrival among all calls of this life, from 1.
        occurrence: How often the same request came before, from 0; always 0 where requests aren't counted.
        headers: As received; names compare without case.
    """

    number: int
    order: Order
    occurrence: int
    headers: Mapping[str, str]


class FaultShare(Struct, frozen=True):
    """A fault and the share of calls that meet it, from 0 to 1."""

    fault: Fault
    share: float


class Dice(Struct, frozen=True):
    """Two independent fractions in (0, 1) for one call: which fault it meets, and how slow it is."""

    fault: float
    latency: float

    @classmethod
    def throw(cls, seed: int, life: int, key: bytes, occurrence: int) -> "Dice":
        """Derive them.

        `life` is the number of charges at the start: after a kill, a request that came back must be able to
        meet something else, or one that is always dropped would never be bought.
        """
        digest = blake2b(b"%d/%d/%d/" % (seed, life, occurrence) + key, digest_size=16).digest()
        return cls(_fraction(digest[:8]), _fraction(digest[8:]))

    def pick(self, shares: Sequence[FaultShare]) -> Fault | None:
        """Return the fault that this call meets, if any."""
        edge = 0.0
        for one in shares:
            edge += one.share
            if self.fault < edge:
                return one.fault
        return None


def _fraction(eight: bytes) -> float:
    # 53 bits and a half: never 0 and never 1, where a normal distribution has no value.
    return (int.from_bytes(eight, "big") >> 12) / 2**52 + 2**-54
