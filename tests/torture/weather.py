"""What happens to the endpoint, the account and the program in one simulated night; drawn from a seed.

Rule 1: a night is a value: the same seed is the same night, on any machine.
Rule 2: no storm lasts as long as `--give-up-after` (8 hours): a night that ends in one could have gone on.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

from banana_batch import money
from banana_batch.models import Kind
from banana_batch.sandbox.faults import Fault, FaultKind, FaultShare

GIVE_UP_AFTER_S = 8 * 3600.0
KINDS = (
    Kind("gemini-2.5-flash-image"),
    Kind("gemini-3.1-flash-image-preview"),
    Kind("gemini-3-pro-image-preview", "2K"),
)
_DEAREST = 16 * money.MICRO


class Storm(StrEnum):
    """What every call meets for a while."""

    ERRORS = "500"
    OVERLOAD = "503"
    THROTTLED = "429"
    QUEUE = "499"
    DOUBTS = "504"
    REFUSED = "refused connections"
    DROPPED = "dropped connections"


@dataclass(frozen=True, slots=True)
class Spell:
    """A storm from `starts_s` on, in seconds of the night."""

    starts_s: float
    lasts_s: float
    storm: Storm


@dataclass(frozen=True, slots=True)
class Death:
    """The program dies: at a moment (`at_s`), or at its nth commit, just before or just after it is durable."""

    at_s: float | None = None
    commit: int = 0
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Night:
    """One night.

    Attributes:
        shares: Faults that single calls meet.
        cuts_s: When every open connection is cut: a burst of doubts.
        prices: When prices are multiplied, and by what.
        balance: What is on the account, in millionths; None: enough. It is topped up after a 402.
        budget: `--budget`, in millionths; raised to twice as much once it is reached if `raises`.
        drains_s: When the user says stop, and starts again later.
        stop_by_s: `--stop-by`, in seconds of the night.
    """

    seed: int
    jobs: int
    concurrency: int
    median_s: float
    rate_limit: int | None
    queue_limit: int | None
    shares: tuple[FaultShare, ...]
    spells: tuple[Spell, ...]
    cuts_s: tuple[float, ...]
    prices: tuple[tuple[float, float], ...]
    balance: int | None
    budget: int | None
    raises: bool
    deaths: tuple[Death, ...]
    drains_s: tuple[float, ...]
    stop_by_s: float | None
    in_doubt: str
    download_wait_s: float

    @property
    def work_s(self) -> float:
        """Seconds that the jobs take where nothing goes wrong but the endpoint's own limits."""
        by_width = self.jobs * self.median_s * 1.3 / min(self.concurrency, self.queue_limit or self.concurrency)
        return max(by_width, self.jobs / self.rate_limit * 60 if self.rate_limit else 0.0)

    @property
    def unreachable(self) -> bool:
        """Whether there are hours in which not even an image can be fetched."""
        return any(spell.storm in (Storm.REFUSED, Storm.DROPPED) for spell in self.spells)

    @property
    def stormy_s(self) -> float:
        """Seconds of the night in which nothing can be bought."""
        return sum(spell.lasts_s for spell in self.spells)


_SHARES: tuple[tuple[FaultKind, float], ...] = (
    (FaultKind.TOO_MANY, 0.03),
    (FaultKind.TOO_MANY_RETRY_AFTER, 0.03),
    (FaultKind.QUEUE_FULL, 0.03),
    (FaultKind.SERVER_ERROR, 0.05),
    (FaultKind.UNAVAILABLE, 0.03),
    (FaultKind.BAD_GATEWAY, 0.01),
    (FaultKind.GATEWAY_TIMEOUT, 0.01),
    (FaultKind.DROP_BEFORE_CHARGE, 0.01),
    (FaultKind.DROP_AFTER_CHARGE, 0.01),
    (FaultKind.HANG, 0.004),
    (FaultKind.FAILED_200, 0.02),
    (FaultKind.IMAGE_404, 0.05),
    (FaultKind.IMAGE_SLOW, 0.03),
    (FaultKind.IMAGE_CUT, 0.05),
    (FaultKind.IMAGE_MISLABELLED, 0.01),
)


def draw(seed: int, jobs: int) -> Night:
    """Return the night of a seed."""
    dice = random.Random(seed)

    def some(chance: float) -> bool:
        return dice.random() < chance

    concurrency = dice.choice((1, 4, 8, 16, 64))
    # At most an hour of work where nothing goes wrong: what takes longer has another reason.
    median_s = min(dice.choice((2.0, 12.0, 40.0)), 3600.0 * concurrency / jobs / 1.3)
    calm_s = jobs * median_s * 1.3 / concurrency
    worth = jobs * 6 * money.MICRO
    return Night(
        seed=seed,
        jobs=jobs,
        concurrency=concurrency,
        median_s=median_s,
        rate_limit=dice.choice((20, 60)) if some(0.2) else None,
        queue_limit=dice.choice((3, 6)) if some(0.2) else None,
        shares=tuple(
            # Twice 404 and no more: a later run calls an image lost that is still missing when its wait is over.
            FaultShare(Fault(kind, tries=dice.randint(1, 2) if kind.of_image else None), dice.uniform(0, most))
            for kind, most in _SHARES
            if some(0.25)
        ),
        spells=_spells(dice, calm_s),
        cuts_s=tuple(sorted(dice.uniform(0, calm_s) for _ in range(dice.choice((0, 0, 1, 3))))),
        prices=tuple((dice.uniform(0, calm_s), dice.choice((0.5, 1.5, 2.0))) for _ in range(dice.choice((0, 0, 1)))),
        balance=dice.randint(_DEAREST, worth) if some(0.15) else None,
        budget=dice.randint(0, worth) if some(0.25) else None,
        raises=some(0.5),
        deaths=tuple(_death(dice, calm_s) for _ in range(dice.choice((0, 0, 1, 2, 3)))),
        drains_s=(dice.uniform(0, calm_s),) if some(0.15) else (),
        stop_by_s=round(dice.uniform(600, 2 * calm_s + 1200) / 60) * 60.0 if some(0.1) else None,
        in_doubt=dice.choice(("keep", "ask", "resend", "drop")),
        download_wait_s=dice.choice((60.0, 900.0, 7200.0)),
    )


def _spells(dice: random.Random, calm_s: float) -> tuple[Spell, ...]:
    """Storms one after the other, with some calm between them."""
    spells, ends_s = [], 0.0
    for _ in range(dice.choice((0, 1, 1, 2))):
        starts_s = ends_s + dice.uniform(5, max(60.0, calm_s / 2))
        lasts_s = dice.choice((dice.uniform(1, 300), dice.uniform(300, 3600), 3600.0, dice.uniform(3600, 9000)))
        spells.append(Spell(starts_s, lasts_s, dice.choice(tuple(Storm))))
        ends_s = starts_s + lasts_s
    return tuple(spells)


def _death(dice: random.Random, calm_s: float) -> Death:
    if dice.random() < 0.4:
        return Death(at_s=dice.uniform(0, calm_s))
    return Death(commit=dice.randint(1, 600), durable=dice.random() < 0.5)
