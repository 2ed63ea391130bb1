"""T-fuzz: everything that reads what others wrote, over mutations of good and odd seeds; and a longer race (S7, S8).

Each case is a function of its number: a violation names the target and the number that replay it.
"""

import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from tests.integration.racing import race
from tests.unit.targets import SEEDS, TARGETS

from .suite import Figures, Suite

SECONDS = {"a": 10.0, "b": 360.0}
SWAPS = {"a": 10_000, "b": 100_000}
SLOW_S = 2.0  # one case that takes longer is a violation too: a small text must not hold a run
_TOKENS = (
    b"\0", b"\r\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"/", b"..", b"%00", b"\xff", b"\xe2\x80\xae", b"\xed\xa0\x80",
    b"\x1b[31m", b"NaN", b"1e999", b"-1", b"99999999999999999999", b"null", b"true", b"127.0.0.1", b"::1", b"@", b"#", b"?",
    b"\\ud800", b"\\u0000", b"{x}", b"~2", b"CON", b"\xf0\x9f\x98\x80", b"\t", b"&#", b"IEND", b"\xff\xd9", b"RIFF", b";",
)  # fmt: skip


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """Return the case of this number."""
    rng = random.Random(number)
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        match rng.randint(0, 6):
            case 0:
                data[at:at] = rng.choice(_TOKENS)
            case 1:
                data[at : at + rng.randint(1, 8)] = b""
            case 2:
                data[at : at + 1] = bytes((rng.randrange(256),))
            case 3:
                data[at:at] = data[max(0, at - rng.randint(1, 40)) : at] * rng.randint(1, 4)
            case 4:
                other = rng.choice(seeds)
                cut = rng.randint(0, len(other))
                data[at:] = other[cut:]
            case 5:
                data[at:at] = rng.randbytes(rng.randint(1, 12))
            case _:
                data[at:at] = bytes((rng.randrange(256),)) * rng.choice((1, 2, 40, 3000))
    return bytes(data[:200_000])


def case(name: str, number: int) -> str | None:
    """Run one case; return what it broke."""
    began_s = time.perf_counter()
    try:
        TARGETS[name](mutated(SEEDS[name], number))
    except Exception as failed:  # noqa: BLE001  # whatever comes out is the finding
        last = traceback.extract_tb(failed.__traceback__)[-1]
        return f"{type(failed).__name__} at {Path(last.filename).name}:{last.lineno}"
    took_s = time.perf_counter() - began_s
    return f"took {took_s:.1f} s" if took_s > SLOW_S else None


def _fuzzed(name: str, seconds: float) -> tuple[str, int, list[str]]:
    ends_s, number = time.monotonic() + seconds, 0
    found: list[str] = []
    while time.monotonic() < ends_s and len(found) < 5:
        number += 1
        broken = case(name, number)
        if broken:
            found.append(f"{broken}: python -m tests.torture.fuzz {name} {number}")
    return name, number, found


def _run(tier: str) -> Figures:
    figures = Figures()
    with get_context("spawn").Pool(2) as pool:
        for name, count, found in pool.starmap(_fuzzed, [(name, SECONDS[tier]) for name in TARGETS], chunksize=1):
            figures.counts[f"cases of {name}"] = count
            figures.violations += [f"{name}: {text}" for text in found]
    with tempfile.TemporaryDirectory() as folder:
        raced = race(Path(folder), SWAPS[tier])
    figures.counts |= {"swaps": raced.swaps, "images stored meanwhile": raced.stored, "refused": raced.refused}
    figures.violations += [f"race: {text}: python -m tests.torture a fuzz" for text in raced.broken]
    return figures


SUITE = Suite("T-fuzz", _run)

if __name__ == "__main__":
    TARGETS[sys.argv[1]](mutated(SEEDS[sys.argv[1]], int(sys.argv[2])))
