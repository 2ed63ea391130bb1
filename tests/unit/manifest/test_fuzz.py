"""Whatever bytes: jobs or problems, and prompts as they stand in the file."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banana_batch.errors import ManifestError
from banana_batch.manifest import read_job_file
from banana_batch.manifest.rows import FIELDS
from tests.unit.manifest.planning import Planned, plan_files

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PROMPT = TEXT.filter(lambda text: bool(text.strip()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def _plan(folder: Path, name: str, content: bytes) -> Planned:
    (folder / name).write_bytes(content)
    return plan_files([name], folder)


@QUICK
@given(st.binary(max_size=400), st.sampled_from(["txt", "csv", "tsv", "jsonl", "json", "csv.gz"]))
def test_any_bytes_make_jobs_or_problems(tmp_path: Path, content: bytes, kind: str) -> None:
    """Never a traceback, never neither."""
    planned = _plan(tmp_path, f"a.{kind}", content)
    assert planned.jobs or planned.problems
    assert all(str(problem).isprintable() for problem in planned.problems)


@QUICK
@given(st.text(max_size=200))
def test_any_text_as_a_job_file_is_read_or_refused(tmp_path: Path, content: str) -> None:
    """With what is wrong."""
    (tmp_path / "a.toml").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ManifestError) as refused:
        read_job_file(tmp_path / "a.toml")
    assert refused.value.problems


@QUICK
@given(st.lists(PROMPT, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]), st.sampled_from([",", ";"]))
def test_prompts_of_a_csv_are_not_altered(tmp_path: Path, prompts: list[str], ends: str, delimiter: str) -> None:
    """As Python's own writer quotes them."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ends, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt", "n"], *([prompt, number] for number, prompt in enumerate(prompts))])
    assert _plan(tmp_path, "a.csv", out.getvalue().encode()).prompts == prompts


@QUICK
@given(st.lists(st.tuples(PROMPT, st.dictionaries(TEXT, JSON, max_size=3)), min_size=1, max_size=6))
def test_rows_of_jsonl_and_json_arrive_as_they_are(tmp_path: Path, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Prompt and meta, whatever the user's columns hold; the two formats agree."""
    content = [{"prompt": prompt, **{f"x {name}": value for name, value in meta.items()}} for prompt, meta in rows]
    lines = _plan(tmp_path, "a.jsonl", "\n".join(map(json.dumps, content)).encode())
    array = _plan(tmp_path, "a.json", json.dumps(content, indent=1, ensure_ascii=False).encode())
    good = {job.line - 1 for job in lines.jobs}
    for place, job in zip(sorted(good), lines.jobs, strict=True):
        assert {"prompt": json.loads(job.request)["prompt"], **json.loads(job.meta or "{}")} == content[place]
    assert [(job.key, job.meta) for job in lines.jobs] == [(job.key, job.meta) for job in array.jobs]
    assert {problem.line - 1 for problem in lines.problems} == set(range(len(rows))) - good


@QUICK
@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["1K", "16:9", "High", "true", "a.png"])))
def test_any_value_in_any_field_makes_a_job_or_a_problem(tmp_path: Path, row: dict[str, Any]) -> None:
    """A row is planned whole or told."""
    row.setdefault("prompt", "p")
    if isinstance(row.get("copies"), int):
        row["copies"] = min(row["copies"], 50)
    planned = _plan(tmp_path, "a.jsonl", json.dumps(row).encode())
    assert bool(planned.jobs) != bool(planned.problems)
    if planned.jobs:
        assert planned.prompts[0] == row["prompt"]
