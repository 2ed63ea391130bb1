"""What a torture suite is: a name, and a function from a tier to its figures."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Figures:
    """What a suite found.

    Attributes:
        counts: Figures by name, as they are printed.
        violations: Broken promises, each with a one-line command that replays it.
    """

    counts: dict[str, int | float | str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Suite:
    """A module of this package that has one as `SUITE` is run by `python -m tests.torture`.

    Attributes:
        run: Takes the tier, `a` or `b`.
    """

    name: str
    run: Callable[[str], Figures]
