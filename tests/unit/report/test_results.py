"""results.jsonl and its CSV form."""

import contextlib
import csv
import io
import json
import math
import os
import stat
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from banana_batch.errors import DiskError
from banana_batch.lifecycle import JobState
from banana_batch.report.results import COLUMNS, KEYS, json_line, result_dict, write_csv, write_results
from banana_batch.store import queries
from banana_batch.store.unborn import Unborn

CONTRACT_KEYS = [
    "id", "index", "state", "prompt", "model", "aspect_ratio", "image_size", "thinking_level",
    "google_search", "image_search", "refer_images", "meta", "image", "bytes", "sha256", "width", "height",
    "content_type", "image_url", "credits", "attempts", "latency_s", "sent_at", "done_at", "error", "warning",
]  # fmt: skip


def row(**columns: Any) -> list[Any]:
    known: dict[str, Any] = dict.fromkeys(COLUMNS)
    known |= {"job": 1, "id": "a", "state": "pending", "request": '{"prompt":"p","model":"m"}', "attempts": 0}
    return list((known | columns).values())


DONE = row(
    state="done",
    request=json.dumps({"prompt": "é\u2028\x1b", "model": "m", "google_search": "true", "refer_images": ["u"]}),
    unsent='{"image_search": false, "image_size": "1K"}',
    meta='{"Note": "n", "n": 1.5}',
    path="images/00001-p.png",
    bytes=10,
    sha256=b"\xab" * 32,
    width=1,
    height=2,
    content_type="image/png",
    image_url="https://x/y",
    credits=2_500_000,
    attempts=2,
    latency_s=1.5,
    sent_at_us=1_763_812_800_000_001,
    done_at_us=1_763_812_801_000_000,
    warning="w",
)


def test_a_result_has_the_contracts_keys_in_order() -> None:
    """Also where nothing is known yet; what was left out is null."""
    assert list(result_dict(DONE)) == list(KEYS) == CONTRACT_KEYS
    pending = result_dict(row())
    assert list(pending) == CONTRACT_KEYS
    said = {"id": "a", "index": 1, "state": "pending", "prompt": "p", "model": "m", "attempts": 0}
    assert {key: value for key, value in pending.items() if value is not None} == said


def test_a_result_says_what_was_asked_bought_and_stored() -> None:
    """Search flags are booleans, credits a decimal string, times UTC, fields the wire leaves out are there."""
    found = result_dict(DONE)
    assert (found["google_search"], found["image_search"], found["image_size"]) == (True, False, "1K")
    assert (found["credits"], found["sha256"], found["meta"]) == ("2.5", "ab" * 32, {"Note": "n", "n": 1.5})
    assert found["sent_at"] == "2025-11-22T12:00:00.000001Z"
    assert found["error"] is None
    failed = result_dict(row(state="failed", error_class="refused_400", error_message=None))
    assert failed["error"] == {"class": "refused_400", "message": ""}


def test_rows_come_straight_from_the_state(tmp_path: Path) -> None:
    """The query's columns are those that a result is made of, in the same order."""
    unborn = Unborn(tmp_path)
    with contextlib.closing(unborn.open()) as db:
        db.execute("INSERT INTO kinds (kind, model, image_size) VALUES (1, 'm', '1K')")
        db.executemany(
            "INSERT INTO jobs (job, id, position, key, kind, stem, request) VALUES (?, ?, ?, x'', 1, 's', '{}')",
            [(1, "gone", None), (2, "last", 7), (3, "first", 6)],
        )
        rows = list(queries.results(db))
        assert [row["id"] for row in rows] == ["first", "last", "gone"]
        assert tuple(rows[0].keys()) == COLUMNS == tuple(queries.result(db, 2).keys())
        assert queries.result(db, 2)["id"] == "last"
        assert [row["id"] for row in queries.results(db, manifest_only=True)] == ["first", "last"]
        assert [row["id"] for row in queries.results(db, JobState.DONE)] == []


def test_results_are_ascii_lines_that_read_back(tmp_path: Path) -> None:
    """Whatever stands in a prompt, lone surrogates too."""
    lone = row(request='{"prompt":"a\\ud800b","model":"m"}', meta='{"x": 1e999}')
    rows = [result_dict(DONE), result_dict(lone)]
    assert write_results(tmp_path, rows) == 2
    raw = (tmp_path / "results.jsonl").read_bytes()
    assert raw.isascii()
    lines = raw.decode().splitlines()
    assert json.loads(lines[0]) == rows[0]
    assert json.loads(lines[1])["prompt"] == "a\ud800b"
    assert stat.S_IMODE((tmp_path / "results.jsonl").stat().st_mode) == 0o600


_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.sampled_from(["\ud800", "\x7f", "\x00", "\\", '"', "\u2028", "\u202e", "plain"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8), _VALUES, max_size=5))
@example({"half a character": "\ud800", "no number": math.inf})
def test_a_line_is_ascii_and_reads_back_whatever_is_in_it(found: dict[str, Any]) -> None:
    """Numbers that JSON does not have become null; nothing is raised, and no control leaves."""
    line = json_line(found)
    assert line.endswith(b"\n")
    assert all(32 <= byte < 127 for byte in line[:-1])
    assert json.loads(line) == _finite(found)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def test_a_write_that_fails_leaves_the_old_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is replaced before the new file is whole and durable, and nothing stays behind."""
    write_results(tmp_path, [result_dict(DONE)])
    old = (tmp_path / "results.jsonl").read_bytes()

    def failing(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("banana_batch.report.atomic.os.fsync", failing)
        with pytest.raises(DiskError, match="No space left"):
            write_results(tmp_path, [result_dict(row())])
    with pytest.raises(ZeroDivisionError):
        write_results(tmp_path, ({"x": 1 // zero} for zero in [0]))
    assert (tmp_path / "results.jsonl").read_bytes() == old
    assert os.listdir(tmp_path) == ["results.jsonl"]
    with pytest.raises(DiskError):
        write_results(tmp_path / "nowhere", [])


def test_the_file_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old file or the new one, whole."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        steps.append("fsync")
        fsync(fd)

    def noted_rename(source: str, target: str, **folders: int) -> None:
        steps.append("rename")
        rename(source, target, src_dir_fd=folders["src_dir_fd"], dst_dir_fd=folders["dst_dir_fd"])

    monkeypatch.setattr("banana_batch.report.atomic.os.fsync", noted_fsync)
    monkeypatch.setattr("banana_batch.report.atomic.os.rename", noted_rename)
    folder = os.open(tmp_path, os.O_RDONLY)
    write_results(folder, [])
    os.close(folder)
    assert steps == ["fsync", "rename", "fsync"]


def test_what_killed_writers_left_is_swept_and_living_ones_are_not(tmp_path: Path) -> None:
    """A temporary file that nobody touched for an hour has no writer."""
    dead, alive = tmp_path / ".results.jsonl.dead.part", tmp_path / ".results.jsonl.alive.part"
    for path in (dead, alive):
        path.touch()
    os.utime(dead, (time.time() - 4000,) * 2)
    write_results(tmp_path, [])
    assert sorted(os.listdir(tmp_path)) == [alive.name, "results.jsonl"]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """20,000 rows take no more than a buffer."""
    tracemalloc.start()
    try:
        write_results(tmp_path, (result_dict(DONE) for _ in range(20_000)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


def test_csv_reads_back_with_meta_as_columns() -> None:
    """The contract's keys, with a column for each meta name of any row."""
    rows = [result_dict(DONE), result_dict(row(meta='{"other": {"a": [1]}}', error_class="e", error_message="m"))]
    out = io.StringIO(newline="")
    assert write_csv(out, rows) == 2
    first, second = csv.DictReader(io.StringIO(out.getvalue(), newline=""))
    assert list(first) == [*CONTRACT_KEYS[:11], "meta.Note", "meta.n", "meta.other", *CONTRACT_KEYS[12:]]
    assert (first["prompt"], first["google_search"], first["refer_images"]) == ("é\u2028\x1b", "true", "u")
    assert (second["meta.other"], second["error"], second["meta.n"]) == ('{"a": [1]}', "e: m", "")


def test_no_csv_cell_starts_a_formula_and_all_of_it_is_utf8() -> None:
    """In prompts, meta names and values; a lone carriage return stays in its cell (S9)."""
    hostile = '=cmd|" /C calc"!A0\r\n,\ud800'
    request = json.dumps({"prompt": hostile, "model": "@m", "refer_images": ["a|b", "+c"]})
    rows = [result_dict(row(request=request, meta=json.dumps({hostile: "-1", "ok": "x\ry"}), error_class="=e"))]
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, "utf-8", newline="") as out:
        write_csv(out, rows)
        out.flush()
        text = raw.getvalue().decode()
    table = list(csv.reader(io.StringIO(text, newline="")))
    assert len(table) == 2
    assert not [cell for line in table for cell in line if cell.startswith(("=", "+", "-", "@"))]
    assert "x\ry" in table[1]


def test_csv_wants_rows_that_can_be_gone_through_twice() -> None:
    """An iterator would give a header and no row."""
    with pytest.raises(ValueError, match="twice"):
        write_csv(io.StringIO(), iter([]))
