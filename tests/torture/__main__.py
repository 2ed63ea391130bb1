"""`python -m tests.torture [a|b] [NAME…]`: run every suite of this package, print what was proved, replay what was not.

A suite is a module with a `SUITE` (suite.py). One after the other, as each uses all of the machine.
"""

import importlib
import pkgutil
import sys
import time
import traceback

from . import __path__ as here
from .suite import Figures, Suite

HELPERS = frozenset({"__main__", "suite"})


def suites() -> list[Suite]:
    """Return the suites of this package, in the order of their names."""
    found = []
    for module in sorted(pkgutil.iter_modules(here), key=lambda one: one.name):
        if module.name in HELPERS or module.name.startswith("test_"):
            continue
        suite = getattr(importlib.import_module(f"{__package__}.{module.name}"), "SUITE", None)
        if isinstance(suite, Suite):
            found.append(suite)
    return sorted(found, key=lambda suite: suite.name)


def run(suite: Suite, tier: str) -> Figures:
    """Run one suite; one that breaks is a violation."""
    try:
        return suite.run(tier)
    except Exception as failed:  # noqa: BLE001  # a suite that breaks must not hide what the others find
        traceback.print_exc()
        return Figures(violations=[f"the suite itself broke: {type(failed).__name__}: {failed}"])


def main(arguments: list[str]) -> int:
    """Run the suites; return 1 if a promise is broken."""
    tier = arguments[0] if arguments else "a"
    wanted = set(arguments[1:])
    known = suites()
    if tier not in ("a", "b") or wanted - {suite.name for suite in known}:
        print(f"python -m tests.torture a|b [{'|'.join(suite.name for suite in known)}]", file=sys.stderr)
        return 64
    chosen = [suite for suite in known if not wanted or suite.name in wanted]
    began_s, broken, lines = time.monotonic(), 0, []
    for suite in chosen:
        start_s = time.monotonic()
        print(f"{suite.name} …", flush=True)
        figures = run(suite, tier)
        seconds = time.monotonic() - start_s
        broken += len(figures.violations)
        for violation in figures.violations:
            print(f"  VIOLATION {violation}", flush=True)
        counts = ", ".join(f"{value:,} {name}" if isinstance(value, int) else f"{name} {value}"
                           for name, value in figures.counts.items())  # fmt: skip
        lines.append(f"{suite.name:<10} {len(figures.violations):>3} violations  {seconds:>6.1f} s  {counts}")
        print(f"  {lines[-1]}", flush=True)
    print("\n" + "\n".join(lines))
    print(f"{len(chosen)} suites, tier {tier}: {broken} violations in {time.monotonic() - began_s:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
