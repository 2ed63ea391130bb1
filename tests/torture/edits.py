"""Manifests and budgets as hypothesis makes them up: few different requests, so that rows often meet again."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st

from banana_batch.models import INDEX_MARK, Kind, PlannedJob

KINDS = (Kind("gemini-2.5-flash-image"), Kind("gemini-3-pro-image-preview", "2K"))
CREDIT = 1_000_000

Row = tuple[str | None, int]  # id, and what is asked for
ROWS = st.lists(st.tuples(st.none(), st.integers(0, 5)), max_size=8)
NAMED = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5)), max_size=3, unique_by=lambda row: row[0])
PRICES = st.sampled_from([0, CREDIT, 2 * CREDIT, 13 * CREDIT, 60 * CREDIT])
BUDGETS = st.none() | st.integers(0, 200).map(lambda amount: amount * CREDIT)


def planned(rows: Sequence[Row]) -> list[PlannedJob]:
    """Return the rows as a manifest hands them in."""
    return [
        PlannedJob(
            name, hashlib.blake2b(b"%d" % what, digest_size=16).digest(), KINDS[what % 2],
            json.dumps({"prompt": f"p{what}"}), None, None, None, f"{INDEX_MARK}-p{what}", "rows", line,
        )
        for line, (name, what) in enumerate(rows, 2)
    ]  # fmt: skip


def identities(rows: Sequence[Row]) -> Iterator[tuple[str, PlannedJob]]:
    """Yield each row with the id that the contract gives it: its own, or the request's hash and occurrence."""
    seen: Counter[int] = Counter()
    for row in rows:
        (job,) = planned([row])
        if row[0] is not None:
            yield row[0], job
            continue
        seen[row[1]] += 1
        yield job.key.hex()[:20] + (f"~{seen[row[1]]}" if seen[row[1]] > 1 else ""), job
