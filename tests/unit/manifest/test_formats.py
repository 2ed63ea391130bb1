"""Every format to the same rows, and lines that point at the row's start."""

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banana_batch.errors import Problem
from banana_batch.manifest.encoding import CHUNK_BYTES
from banana_batch.manifest.formats import Row, read_jsonl
from banana_batch.manifest.reporting import Report
from tests.unit.manifest.planning import Plan, plan_files


def _thousand_rows() -> list[dict[str, str]]:
    chance = random.Random(7)
    words = [
        "fox",
        "snow",
        "“quoted”",
        'a "mark"',
        "comma, here",
        "semi; colon",
        "名前",
        "émeraude",
        "100 %",
        "{brace}",
    ]
    models = ["gemini-3-pro-image-preview", "Nano Banana 2"]
    return [
        {
            "prompt": f"{' '.join(chance.sample(words, 4))} {number}",
            "model": chance.choice(models),
            "aspect_ratio": chance.choice(["1:1", "16:9", "4:5"]),
            "image_size": chance.choice(["1K", "2K", ""]),
            "google_search": chance.choice(["true", "false", ""]),
        }
        for number in range(1000)
    ]


def _csv(rows: list[dict[str, str]], delimiter: str = ",", ends: str = "\r\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator=ends)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _toml(rows: list[dict[str, str]]) -> str:
    tables = ("\n".join(f"{name} = {json.dumps(value)}" for name, value in row.items()) for row in rows)
    return "\n".join(f"[[jobs]]\n{table}" for table in tables)


def test_the_same_thousand_jobs_have_the_same_keys_in_every_format(tmp_path: Path) -> None:
    """Identity is of the request, not of the file it came in."""
    rows = _thousand_rows()
    lines = "\n".join(json.dumps(row) for row in rows)
    tsv = "\n".join("\t".join(cells) for cells in [list(rows[0]), *(list(row.values()) for row in rows)])
    files: dict[str, bytes] = {
        "a.csv": _csv(rows).encode(),
        "excel.csv": b"\xef\xbb\xbf" + _csv(rows, ";").encode(),
        "wide.csv": _csv(rows).encode("utf-16"),
        "b.tsv": tsv.encode(),
        "c.jsonl": lines.encode(),
        "d.ndjson": lines.replace("\n", "\r\n").encode(),
        "e.json": json.dumps(rows, indent=2, ensure_ascii=False).encode(),
        "f.toml": _toml(rows).encode(),
        "g.csv.gz": gzip.compress(_csv(rows).encode()),
        "h.jsonl.gz": gzip.compress(lines[:5000].encode()) + gzip.compress(lines[5000:].encode()),
    }
    keys = {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        planned = plan_files([name], tmp_path)
        assert planned.problems == []
        keys[name] = [job.key for job in planned.jobs]
    assert len(keys["a.csv"]) == 1000
    assert all(found == keys["a.csv"] for found in keys.values())


def test_a_text_file_is_a_prompt_a_line(plan: Plan) -> None:
    """Blank lines and # lines are skipped; the prompt is the line as it stands, spaces and all."""
    planned = plan("a.txt", "# a list\n\n one \r\n   \ntwo\t\n # no comment\n\u2028three")
    assert planned.prompts == [" one ", "two\t", " # no comment", "\u2028three"]
    assert [job.line for job in planned.jobs] == [3, 5, 6, 7]


def test_quotation_marks_in_a_tsv_are_text(plan: Plan) -> None:
    """TSV is split on tabs alone."""
    planned = plan("a.tsv", 'prompt\tnote\n"half\tx\n""two"" "three\ty\n')
    assert planned.prompts == ['"half', '""two"" "three']


def test_a_quoted_csv_prompt_spans_lines_and_its_line_is_where_it_starts(plan: Plan) -> None:
    """RFC 4180: line breaks, delimiters and doubled marks inside quotes belong to the text, unaltered."""
    planned = plan("a.csv", 'prompt,image_size\r\n"one\r\ntwo, ""three""\n",1K\r\nlast,2k\r\n')
    assert planned.prompts == ['one\r\ntwo, "three"\n']
    assert [job.line for job in planned.jobs] == [2]
    assert planned.told == ["5: image_size: 2k → 1K, 2K or 4K (did you mean 2K?)"]


def test_the_habits_of_excel_are_understood(plan: Plan) -> None:
    """A mark at the start, ; between columns, trailing empty columns and rows, TRUE, 1.0."""
    content = "\ufeffPrompt;Google Search;Copies;Image-Size;;\r\na, b;TRUE;2.0;;;\r\nc;FALSE;;2K\r\n;;;;;\r\n"
    planned = plan("a.csv", content)
    assert planned.problems == []
    assert [request["prompt"] for request in planned.requests] == ["a, b", "a, b", "c"]
    assert [request.get("google_search") for request in planned.requests] == ["true", "true", None]
    assert planned.requests[2]["image_size"] == "2K"


def test_a_semicolon_in_a_header_with_commas_is_text(plan: Plan) -> None:
    """The delimiter is the one that makes a `prompt` column."""
    assert plan("a.csv", "note;x,prompt\n1,a;b\n").prompts == ["a;b"]
    assert plan("b.csv", "note,x;prompt\n1;a,b\n").prompts == ["a,b"]


def test_cells_beyond_the_header_are_told_and_short_rows_are_filled(plan: Plan) -> None:
    """A value without a column would be lost; a missing cell says nothing."""
    planned = plan("a.csv", "prompt,note\na\nb,1,,\nc,1,2\n")
    assert planned.prompts == ["a", "b"]
    assert planned.told == ["4: 3 columns, with 2 beyond the last → the 2 columns that the header names"]


@pytest.mark.parametrize("row", ['"never closed\nb,1', '"a"b,1', "a\rb,1"])
def test_a_csv_row_that_is_not_clean_ends_the_file(plan: Plan, row: str) -> None:
    """A stray quotation mark would else swallow rows or vanish from a prompt."""
    planned = plan("a.csv", f"prompt,note\nfirst,1\n{row}\n")
    assert planned.prompts == ["first"]
    (problem,) = planned.problems
    assert problem.line == 3
    assert "clean CSV row" in problem.found


def test_a_prompt_of_a_megabyte_is_taken(plan: Plan) -> None:
    """No limit is documented, so none is made up below 16 million characters."""
    prompt = "é" * 1_000_000
    assert plan("a.csv", f'prompt\n"{prompt}"\n').prompts == [prompt]
    assert plan("a.jsonl", json.dumps({"prompt": prompt}, ensure_ascii=False)).prompts == [prompt]
    assert plan("a.json", json.dumps([{"prompt": prompt}] * 2)).prompts == [prompt] * 2


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    """A small .gz may unpack to one endless line: memory stays bounded."""
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * (20 << 20)))
    planned = plan_files(["a.txt.gz"], tmp_path)
    assert [problem.found for problem in planned.problems] == ["a line that does not end"]


def test_elements_of_an_array_that_cross_chunks_are_whole(plan: Plan) -> None:
    """An array is read element by element, whatever its size, and each knows its line."""
    rows = [{"prompt": f"{number} " + "x" * (number * 97 % 5000)} for number in range(400)]
    content = json.dumps(rows, indent=1)
    assert len(content) > 3 * CHUNK_BYTES
    planned = plan("a.json", content)
    assert planned.prompts == [row["prompt"] for row in rows]
    assert [job.line for job in planned.jobs] == [2 + 3 * number for number in range(400)]


def test_a_broken_array_ends_at_its_line(plan: Plan) -> None:
    """What came before is planned, what is wrong is told with its line, nothing after it is guessed."""
    planned = plan("a.json", '[\n{"prompt": "a"},\n{"prompt": "b",\n "model" 7},\n{"prompt": "c"}]')
    assert planned.prompts == ["a"]
    assert planned.problems[0].line == 4
    one = plan("b.json", '{"prompt": "a"}\n{"prompt": "b"}')
    assert ".jsonl" in one.problems[0].allowed


def test_bad_lines_of_jsonl_are_told_and_the_others_read(plan: Plan) -> None:
    """All bad rows at once."""
    planned = plan("a.jsonl", '{"prompt": "a"}\n{"prompt": }\n\n[1]\n{"prompt": "b", "prompt": "c"}\n{"prompt": "d"}')
    assert planned.prompts == ["a", "d"]
    assert [(problem.line, problem.found) for problem in planned.problems] == [
        (2, "not JSON: Expecting value at character 12"),
        (4, "[1]"),
        (5, "prompt comes twice"),
    ]


def test_a_damaged_gzip_is_told(tmp_path: Path) -> None:
    """Cut or foreign bytes: a message, and no job of what came before a cut is taken for the whole."""
    whole = gzip.compress("".join(f"prompt {number}\n" for number in range(100_000)).encode())
    for content in (whole[: len(whole) // 2], b"no gzip at all"):
        (tmp_path / "a.txt.gz").write_bytes(content)
        planned = plan_files(["a.txt.gz"], tmp_path)
        assert [problem.allowed for problem in planned.problems] == ["a whole .gz file"]


def test_standard_input_is_read_as_the_format_says(tmp_path: Path) -> None:
    """`-` with --format."""
    planned = plan_files(["-"], tmp_path, stdin=b"prompt\na\nb\n", format="csv")
    assert planned.prompts == ["a", "b"]
    assert planned.jobs[0].file == "-"


_TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\\n\t\x7f\u2028'), max_size=6)
_NAMES = st.sampled_from(["prompt", "id", 'a"b', "\x7f", "ü"])


def _line(pairs: list[tuple[str, Any]], escaped: bool, space: str) -> str:
    said = ",".join(":".join(json.dumps(part, ensure_ascii=escaped) for part in pair) for pair in pairs)
    return space.join(["{", said, "}"])


_LINES = st.builds(
    _line,
    st.lists(st.tuples(_NAMES, _TEXTS | st.sampled_from([1, None, True, [], {}, ["x"]])), max_size=4),
    st.booleans(),
    st.sampled_from(["", " ", "\t", "\r"]),
)


@given(
    line=_LINES, at=st.integers(0, 200), put=st.sampled_from(["", '"', "\\", "\x01", "\\ud83d", "\\u0000", " ", "x"])
)
def test_a_line_of_texts_is_read_as_any_other(line: str, at: int, put: str) -> None:
    """What reads plain objects fast finds what the strict reader finds; doubles and slips are told alike."""
    line = line[:at] + put + line[at:]
    quick, strict = (_jsonl(f"{first}\n{line}\n".encode()) for first in ('{"prompt":"plain"}', '{"prompt":1}'))
    assert quick == strict


def _jsonl(data: bytes) -> tuple[list[Row], list[Problem]]:
    problems: list[Problem] = []
    _, *rows = read_jsonl(io.BytesIO(data), Report("a.jsonl", problems, []))
    return rows, problems
