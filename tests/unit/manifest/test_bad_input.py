"""Whatever is in a manifest: never a traceback, never a wrong row, never an altered prompt, names stay inside."""

import json
from pathlib import Path

import pytest

from banana_batch.manifest import names
from tests.unit.manifest.planning import Plan
from tests.unit.manifest.suites import CSV_SPECTRUM, JSON_BAD, JSON_EITHER, JSON_GOOD, NAUGHTY

REAL = [text for text in NAUGHTY if text.strip()]
SURROGATES = "surrogatepass"


def test_json_that_must_be_taken_is_kept_as_it_is(plan: Plan) -> None:
    """As a value inside a row, in a line and in an array: what comes out is what went in."""
    for text in JSON_GOOD:
        row = f'{{"prompt": "p", "value": {text}}}'
        for name, content in (("a.jsonl", row.replace("\n", " ")), ("a.json", f"[{row}]")):
            planned = plan(name, content)
            assert (text, planned.problems) == (text, [])
            assert json.loads(planned.jobs[0].meta or "") == {"value": json.loads(text)}


def test_json_that_must_be_refused_is_told(plan: Plan) -> None:
    """As a line, as a value in a row, and as a whole file."""
    for text in JSON_BAD:
        flat = text.replace("\n", "\t")
        line = plan("a.jsonl", f'{flat}\n{{"prompt": "p"}}')
        assert (text[:40], len(line.problems)) == (text[:40], 1 if flat.strip() else 0)
        assert line.prompts == ["p"]
        value = plan("b.jsonl", f'{{"prompt": "p", "value": {flat}}}')
        assert (text[:40], value.jobs, len(value.problems)) == (text[:40], [], 1)
        whole = plan("a.json", text)
        assert (text[:40], whole.jobs, bool(whole.problems)) == (text[:40], [], True)
        assert plan("b.json", f'[{{"prompt": "p", "value": {text}}}]').problems


def test_json_that_may_be_either_is_kept_or_told(plan: Plan) -> None:
    """No traceback, and nothing in between."""
    for text in JSON_EITHER:
        for name, content in (("a.jsonl", f'{{"prompt": "p", "v": {text}}}'), ("a.json", text), ("b.jsonl", text)):
            planned = plan(name, content.encode("utf-8", SURROGATES))
            assert bool(planned.jobs) != bool(planned.problems)


@pytest.mark.parametrize("value", ["1e999", '"\\ud800"', '{"a": [-1e999]}'])
def test_a_column_that_no_ledger_could_hold_is_told_by_its_name(plan: Plan, value: str) -> None:
    """Among a hundred columns: which one, and what it holds."""
    planned = plan("a.jsonl", f'{{"prompt": "p", "Note": "fine", "Last seed": {value}}}')
    (problem,) = planned.problems
    assert (problem.line, problem.field) == (1, "Last seed")
    assert problem.found == json.dumps(json.loads(value))


def test_rows_that_are_no_objects_are_told(plan: Plan) -> None:
    """A list of prompts is a .txt, not a .json."""
    planned = plan("a.json", '["a prompt", 5, null, [1], {"prompt": "p"}]')
    assert [problem.found for problem in planned.problems] == ["a prompt", "5", "nothing", "[1]"]
    assert planned.prompts == ["p"]


@pytest.mark.parametrize("case", CSV_SPECTRUM)
def test_csv_is_read_as_the_spectrum_says(plan: Plan, case: str) -> None:
    """Cells arrive as they are, empty ones say nothing."""
    content, rows = CSV_SPECTRUM[case]
    planned = plan("a.csv", content)
    assert planned.problems == []
    assert [
        {"prompt": prompt, **json.loads(job.meta or "{}")}
        for prompt, job in zip(planned.prompts, planned.jobs, strict=True)
    ] == rows


def test_naughty_prompts_arrive_unaltered(plan: Plan) -> None:
    """Through every format that can hold them."""
    jsonl = plan("a.jsonl", "\n".join(json.dumps({"prompt": text}) for text in REAL))
    array = plan("a.json", json.dumps([{"prompt": text} for text in REAL], ensure_ascii=False))
    table = plan("a.csv", "prompt\r\n" + "\r\n".join('"' + text.replace('"', '""') + '"' for text in REAL))
    cells = plan("a.tsv", "prompt\tn\n" + "\n".join(f"{text}\t{n}" for n, text in enumerate(REAL)))
    assert jsonl.prompts == array.prompts == table.prompts == cells.prompts == REAL
    assert [job.key for job in jsonl.jobs] == [job.key for job in table.jobs]
    lines = [text for text in REAL if not text.startswith("#")]
    assert plan("a.txt", "\n".join(lines)).prompts == lines


def test_naughty_ids_names_and_columns_are_taken_whole_or_told(plan: Plan) -> None:
    """Ids and meta as given; file names inside the folder; what can't be is told."""
    rows = "\n".join(json.dumps({"prompt": "p", "id": text, "note": text, text: text}) for text in NAUGHTY)
    planned = plan("a.jsonl", rows, filename="{note}/{id}-{index}")
    for job in planned.jobs:
        text = NAUGHTY[job.line - 1]
        assert job.id == (text if text.strip() else None)
        assert json.loads(job.meta or "")["note"] == text
        assert names.complaint(job.stem.replace("\x01", "1")) is None
    told = {problem.line for problem in planned.problems}
    assert told | {job.line for job in planned.jobs} == set(range(1, len(NAUGHTY) + 1))
    assert len(planned.jobs) > 100


def test_naughty_file_names_stay_inside_the_folder(plan: Plan, tmp_path: Path) -> None:
    """A row's own name is taken as it is, or refused."""
    planned = plan("a.jsonl", "\n".join(json.dumps({"prompt": "p", "filename": text}) for text in NAUGHTY))
    for job in planned.jobs:
        place = tmp_path / "images" / job.stem.replace("\x01", "1")
        assert place.resolve().is_relative_to(tmp_path / "images")
        assert place.resolve() != tmp_path / "images"


def test_what_is_shown_of_bad_input_is_printable_and_short(plan: Plan) -> None:
    """A manifest must not paint the terminal."""
    rows = "\n".join(json.dumps({"prompt": "p", "model": text, "image_size": text}) for text in REAL)
    planned = plan("a.jsonl", rows)
    for problem in planned.problems:
        assert "\x1b" not in str(problem)
        assert "\u202e" not in str(problem)
        assert "\n" not in str(problem)
        assert len(problem.found) <= 120
