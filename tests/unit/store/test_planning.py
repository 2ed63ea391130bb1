"""A manifest held against its batch: what is known keeps its index, what is new gets the next."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from banana_batch.errors import Problem
from banana_batch.models import INDEX_MARK, Kind, PlannedJob
from banana_batch.store.difference import Difference
from banana_batch.store.founding import Founder
from banana_batch.store.listed import Listed
from banana_batch.store.planning import Planner
from banana_batch.store.unborn import Unborn, nowhere
from tests.unit.peak import printed_and_peak


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = Unborn(tmp_path).open()
    yield opened
    opened.close()


def row(
    prompt: str,
    line: int = 1,
    id: str | None = None,
    size: str = "1K",
    stem: str | None = None,
    file: str = "a.csv",
    meta: str | None = None,
) -> PlannedJob:
    request = json.dumps({"prompt": prompt, "image_size": size})
    key = hashlib.sha256(request.encode()).digest()[:16]
    named = f"{INDEX_MARK}-{prompt}" if stem is None else stem
    return PlannedJob(id, key, Kind("model", size), request, None, None, meta, named, file, line)


_A = row("a").key.hex()[:20]  # the id of a row that gives none


def staged(
    db: sqlite3.Connection, rows: Sequence[PlannedJob], *, default_names: bool = True
) -> tuple[Listed, list[Problem]]:
    for table in ("places", "planned", "planned_kinds", "names"):
        db.execute(f"DROP TABLE IF EXISTS temp.{table}")
    born = db.execute("SELECT 1 FROM jobs").fetchone()
    planner = Planner(db, index_width=5) if born else Founder(db, index_width=5)
    return planner, planner.stage(rows, default_names=default_names)


def planned(db: sqlite3.Connection, *rows: PlannedJob) -> Difference:
    planner, problems = staged(db, rows)
    assert problems == []
    difference = planner.difference()
    planner.apply()
    return difference


def jobs(db: sqlite3.Connection) -> list[tuple[int, str]]:
    found = db.execute("SELECT job, stem FROM jobs WHERE position IS NOT NULL ORDER BY position")
    return [(job["job"], job["stem"]) for job in found]


def test_in_a_new_batch_the_place_is_the_index(db: sqlite3.Connection) -> None:
    """Rows are numbered from 1 in the manifest's order, in file names too, whatever model and size they are of."""
    difference = planned(db, row("a"), row("b", size="4K"), row("c"))
    assert jobs(db) == [(1, "00001-a"), (2, "00002-b"), (3, "00003-c")]
    assert (difference.rows, difference.new, difference.known, difference.duplicates) == (3, 3, 0, 0)
    sizes = db.execute("SELECT image_size FROM jobs JOIN kinds USING (kind) ORDER BY job").fetchall()
    assert [size["image_size"] for size in sizes] == ["1K", "4K", "1K"]


def test_rows_may_be_shuffled_and_inserted(db: sqlite3.Connection) -> None:
    """A known row keeps its index and its file name wherever it stands; a new one gets the next index."""
    planned(db, row("a"), row("b"))
    difference = planned(db, row("new"), row("b"), row("a"))
    assert jobs(db) == [(3, "00003-new"), (2, "00002-b"), (1, "00001-a")]
    assert (difference.new, difference.known, difference.removed) == (1, 2, 0)


def test_a_removed_row_leaves_the_manifest_and_stays_known(db: sqlite3.Connection) -> None:
    """It is counted, keeps its job, and comes back under the same index."""
    planned(db, row("a"), row("b"), row("c"))
    difference = planned(db, row("c"))
    assert (difference.removed, difference.mostly_gone) == (2, True)
    assert jobs(db) == [(3, "00003-c")]
    planned(db, row("c"), row("a"))
    assert jobs(db) == [(3, "00003-c"), (1, "00001-a")]


def test_the_same_request_again_is_a_job_of_its_own(db: sqlite3.Connection) -> None:
    """Second and third occurrences are told apart by their number, in the manifest's order."""
    difference = planned(db, row("a", 1), row("b", 2), row("a", 3), row("a", 4))
    ids = [job["id"] for job in db.execute("SELECT id FROM jobs ORDER BY job")]
    assert ids[2:] == [f"{ids[0]}~2", f"{ids[0]}~3"]
    assert difference.duplicates == 2
    assert planned(db, row("a", 1), row("a", 2)).new == 0


def test_an_id_given_twice_is_told_with_its_first_line(db: sqlite3.Connection) -> None:
    """Every later row with it is named; nothing is planned."""
    _, problems = staged(db, [row("a", 1, "x"), row("b", 2, "y"), row("c", 3, "x"), row("d", 4, "x")])
    assert [(problem.line, problem.field) for problem in problems] == [(3, "id"), (4, "id")]
    assert all("a.csv:1" in str(problem) for problem in problems)


def test_what_is_told_of_a_row_names_its_own_file_and_line(db: sqlite3.Connection) -> None:
    """Rows of several lines, copies on one line, a second file: in a new batch as in a known one."""
    rows = [
        row("a", 3), row("b", 9, "x"), row("c", 9), row("d", 10), row("e", 12, "y"),
        row("f", 1, "x", file="b.csv"), row("g", 2, file="b.csv"), row("h", 3, "y", file="b.csv"),
    ]  # fmt: skip
    told = [("b.csv", 1, '"x"', "unique; first at a.csv:9"), ("b.csv", 3, '"y"', "unique; first at a.csv:12")]
    for known in ([], [row("k")]):
        if known:
            planned(db, *known)
        _, problems = staged(db, rows)
        assert [(bad.file, bad.line, bad.found, bad.allowed) for bad in problems] == told


def test_an_id_that_a_row_gives_is_never_numbered(db: sqlite3.Connection) -> None:
    """Not even one that the same request, in the row before, has of its own."""
    _, problems = staged(db, [row("a", 1), row("a", 2, _A), row("a", 3)])
    assert [(bad.line, bad.found) for bad in problems] == [(2, f'"{_A}"')]


def test_file_names_that_are_one_are_told(db: sqlite3.Connection) -> None:
    """In another case is the same name: beside another row, and beside an image that the batch has."""
    _, problems = staged(db, [row("a", 1, stem="Fox"), row("b", 2, stem="owl"), row("c", 3, stem="fox")])
    assert [(bad.line, bad.found, "line 1 has it" in bad.allowed) for bad in problems] == [(3, '"fox"', True)]
    planned(db, row("a", 1, stem="Fox"))
    _, problems = staged(db, [row("a", 1, stem="Fox"), row("b", 2, stem="FOX")], default_names=False)
    assert [(bad.line, "an image of this batch has it" in bad.allowed) for bad in problems] == [(2, True)]


def test_a_refused_first_manifest_leaves_nothing(db: sqlite3.Connection) -> None:
    """Neither rows nor a state without its indexes."""
    before = db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
    _, problems = staged(db, [row("a", 1, "x"), row("b", 2, "x")])
    assert problems
    assert db.execute("SELECT * FROM jobs").fetchall() == []
    assert db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall() == before
    planned(db, row("a"))
    assert db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall() == before


_ROWS = st.lists(
    st.builds(
        row,
        prompt=st.sampled_from("aaabc"),
        line=st.sampled_from([1, 1, 1, 0, 2]),  # from the row before
        id=st.sampled_from([None, None, None, "x", "X", _A, f"{_A}~2"]),
        size=st.sampled_from(["1K", "1K", "4K"]),
        stem=st.sampled_from([None, None, "own", "OWN"]),
        file=st.sampled_from(["a.csv", "a.csv", "b.csv"]),
        meta=st.sampled_from([None, '{"k":"v"}', '{"l":1}']),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [job._replace(line=line) for job, line in zip(rows, accumulate(job.line for job in rows), strict=True)]
)


@example(rows=[row("a", 1), row("a", 2, _A)], default_names=True, reuse=False)
@given(rows=_ROWS, default_names=st.booleans(), reuse=st.booleans())
def test_the_first_manifest_is_what_staging_would_make_of_it(
    rows: list[PlannedJob], default_names: bool, reuse: bool
) -> None:
    """Written where they stay, the rows come to the same jobs, the same difference and the same complaints."""
    outcomes: list[object] = []
    for kind in (Founder, Planner):
        with contextlib.closing(nowhere()) as db:
            listed: Listed = kind(db, 5)
            problems = listed.stage(rows, default_names=default_names)
            if problems:
                outcomes.append((problems, None, []))
                continue
            difference = listed.difference()
            listed.apply(reuse=reuse)
            made = db.execute("SELECT * FROM jobs JOIN kinds USING (kind) ORDER BY job").fetchall()
            outcomes.append(([], difference, [tuple(job) for job in made]))
    assert outcomes[0] == outcomes[1]


_MEASURE = """
import sys
from pathlib import Path
from banana_batch.models import INDEX_MARK, Kind, PlannedJob
from banana_batch.store.unborn import Unborn
from banana_batch.store.founding import Founder
count, kind, long = int(sys.argv[2]), Kind("model", "1K"), "a long prompt " * 300
db = Unborn(Path(sys.argv[1])).open()
founder = Founder(db, 5)
pairs = ((n, n // 2) for n in range(count))
founder.stage((
    PlannedJob(None, twin.to_bytes(16, "little"), kind, f"{long}{twin}", None, None, None, INDEX_MARK, "a", n)
    for n, twin in pairs), default_names=True)
founder.apply(reuse=True)
print(db.execute("SELECT count(*) FROM jobs WHERE twin IS NOT NULL").fetchone()[0])
"""


def test_rows_that_ask_for_the_same_are_tied_in_flat_memory(tmp_path: Path) -> None:
    """Numbered and tied, row by row over the whole state: none of it is kept to be undone."""
    used = []
    for count in (200, 10_000):  # 42 MB of prompts
        (tmp_path / str(count)).mkdir()
        printed, peak = printed_and_peak(_MEASURE, tmp_path / str(count), count)
        assert printed == [count // 2]
        used.append(peak)
    assert used[1] - used[0] < 8 << 20


def test_a_job_never_sent_takes_its_new_request(db: sqlite3.Connection) -> None:
    """The same id with another request is no new job as long as nothing was paid for it."""
    planned(db, row("a", id="x"))
    difference = planned(db, row("b", id="x", size="2K"))
    assert (difference.updated, difference.changed, difference.new) == (1, 0, 0)
    found = db.execute("SELECT job, request, image_size FROM jobs JOIN kinds USING (kind)").fetchall()
    assert [(job["job"], json.loads(job["request"])["prompt"], job["image_size"]) for job in found] == [(1, "b", "2K")]


def test_a_changed_request_of_a_sent_job_is_told(db: sqlite3.Connection) -> None:
    """It counts as changed, with what is different; accepted, it is a new job, and the old one keeps its index."""
    planned(db, row("a", 7, id="x"), row("b", id="y"))
    db.execute("UPDATE jobs SET attempts = 1 WHERE job = 1")
    difference = planned(db, row("z", 9, id="x"), row("b", id="y"))
    assert (difference.changed, difference.new, difference.updated) == (1, 0, 0)
    assert [(change.id, change.line, change.differences) for change in difference.changes] == [
        ("x", 9, ('prompt: "a" → "z"',))
    ]
    assert jobs(db) == [(3, "00003-z"), (2, "00002-b")]
