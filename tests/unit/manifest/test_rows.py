"""What a row may say, and how wrong values are told."""

import json
from typing import Any

import pytest

from tests.unit.manifest.planning import Plan, Planned

PRO, FLASH, OLD = "gemini-3-pro-image-preview", "gemini-3.1-flash-image-preview", "gemini-2.5-flash-image"


def _row(plan: Plan, settings: dict[str, Any] | None = None, **row: Any) -> Planned:
    return plan("a.jsonl", json.dumps({"prompt": "p", **row}), **(settings or {}))


@pytest.mark.parametrize(
    ("field", "value", "near"),
    [
        ("image_size", "2k", "2K"),
        ("image_size", " 4 K", "4K"),
        ("image_size", "1024", "1K"),
        ("image_size", 2048, "2K"),
        ("aspect_ratio", "16/9", "16:9"),
        ("aspect_ratio", "16x9", "16:9"),
        ("aspect_ratio", "16 : 9", "16:9"),
        ("aspect_ratio", "16:09:00", "16:9"),
        ("model", "gemini-3-pro", PRO),
        ("model", "gemini-3-pro-image", PRO),
        ("model", "nanobanana pro", PRO),
        ("model", "gemini-3.1-flash", FLASH),
        ("thinking_level", "high", "High"),
        ("thinking_level", "MINIMAL", "Minimal"),
        ("google_search", "yes", "true"),
        ("image_search", "No", "false"),
    ],
)
def test_a_near_miss_is_named_and_not_mended(plan: Plan, field: str, value: Any, near: str) -> None:
    """file:line: field: found → allowed, with the likely meaning."""
    planned = _row(plan, **{field: value})
    assert planned.jobs == []
    (problem,) = planned.problems
    assert (problem.file, problem.line, problem.field) == ("a.jsonl", 1, field)
    assert problem.allowed.endswith(f"(did you mean {near}?)")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "   "}, "prompt"),
        ({"prompt": "\u3000\n"}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "half \ud800"}, "prompt"),
        ({"model": ["x"]}, "model"),
        ({"model": 3}, "model"),
        ({"model": "dall-e"}, "model"),
        ({"aspect_ratio": "7:5"}, "aspect_ratio"),
        ({"image_size": {"a": 1}}, "image_size"),
        ({"google_search": "maybe"}, "google_search"),
        ({"google_search": 2}, "google_search"),
        ({"thinking_level": True}, "thinking_level"),
        ({"copies": 0}, "copies"),
        ({"copies": 10_001}, "copies"),
        ({"copies": 1.5}, "copies"),
        ({"copies": True}, "copies"),
        ({"copies": "many"}, "copies"),
        ({"id": "a~2"}, "id"),
        ({"id": "a\u0000"}, "id"),
        ({"id": "é" * 101}, "id"),
        ({"id": 1.5}, "id"),
        ({"id": ["x"]}, "id"),
        ({"id": "\udfff"}, "id"),
        ({"extra": "no object"}, "extra"),
        ({"extra": [1]}, "extra"),
        ({"extra": {"prompt": "other"}}, "extra"),
        ({"extra": {"image_size": "4K"}}, "extra"),
        ({"extra": {"a": "\ud800"}}, "extra"),
        ({"refer_images": 7}, "refer_images"),
        ({"refer_images": [7]}, "refer_images"),
        ({"refer_images": [""]}, "refer_images"),
        ({"refer_images": "[1"}, "refer_images"),
        ({"note": "\ud800"}, "note"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_by_its_field(plan: Plan, row: dict[str, Any], field: str) -> None:
    """Never a traceback, never a job of half a row."""
    planned = _row(plan, **row)
    assert planned.jobs == []
    assert [problem.field for problem in planned.problems] == [field]
    assert planned.problems[0].found
    assert planned.problems[0].found.isprintable()


def test_all_bad_values_of_all_bad_rows_come_at_once(plan: Plan) -> None:
    """One pass to see everything that has to be mended."""
    content = "id,prompt,image_size,aspect_ratio\na~b,,2k,16/9\ngood,x,,\nc,  ,3K,\n"
    planned = plan("a.csv", content)
    assert [(problem.line, problem.field) for problem in planned.problems] == [
        (2, "id"), (2, "aspect_ratio"), (2, "image_size"), (2, "prompt"), (4, "image_size"), (4, "prompt"),
    ]  # fmt: skip
    assert [job.id for job in planned.jobs] == ["good"]


def test_header_names_match_without_case_and_with_spaces_or_dashes(plan: Plan) -> None:
    """`Image Size` is image_size; a column of the user's own keeps its name."""
    planned = plan("a.csv", "PROMPT,Image Size,aspect-ratio, My Note \na,2K,16:9,n\n")
    assert planned.requests == [{"prompt": "a", "model": PRO, "aspect_ratio": "16:9", "image_size": "2K"}]
    assert planned.jobs[0].meta == '{"My Note":"n"}'


def test_two_columns_for_one_field_are_refused(plan: Plan) -> None:
    """Which of them was meant can't be known."""
    assert plan("a.csv", "prompt,Prompt\na,b\n").told == [
        "2: two columns Prompt → names that differ, whatever their case"
    ]
    assert plan("a.jsonl", '{"prompt": "a", "Prompt": "b"}\n' * 2).problems[1].line == 2


def test_a_column_that_is_nearly_a_field_is_kept_and_warned_of_once(plan: Plan) -> None:
    """`aspect_ration` would else go unnoticed into meta, and every image be square."""
    planned = plan("a.csv", "prompt,aspect_ration\na,16:9\nb,16:9\n")
    assert [str(warning) for warning in planned.warnings] == [
        "a.csv:2: aspect_ration: kept as a column of your own → did you mean aspect_ratio?"
    ]
    assert len(planned.jobs) == 2


def test_a_table_without_a_prompt_column_is_told_once(plan: Plan) -> None:
    """Not a million times."""
    planned = plan("a.csv", "product,color\nmug,red\ncup,blue\n")
    assert len(planned.problems) == 1
    assert "product, color" in planned.problems[0].found


@pytest.mark.parametrize("name", ["Nano Banana", "nano banana", " NANO  BANANA ", OLD, OLD.upper()])
def test_a_model_goes_by_its_alias_in_any_case(plan: Plan, name: str) -> None:
    """`Nano Banana` is the id without preview."""
    assert _row(plan, model=name).requests[0]["model"] == OLD


def test_an_unknown_model_needs_the_flag(plan: Plan) -> None:
    """Ids the vendor adds later; nothing is known of them, so nothing is held back."""
    row: dict[str, Any] = {"model": "gemini-4-image", "aspect_ratio": "16:9", "image_search": True}
    assert "--allow-unknown-model" in _row(plan, **row).problems[0].allowed
    allowed = _row(plan, {"allow_unknown_model": True}, **row)
    assert allowed.requests[0] == {**row, "prompt": "p", "image_search": "true"}
    assert allowed.warnings == []


def test_a_ratio_in_a_row_of_a_25_model_is_refused_but_for_the_square(plan: Plan) -> None:
    """Only supported by gemini-3 and above; 1:1 is what they make, and it is not sent."""
    assert [problem.field for problem in _row(plan, model=OLD, aspect_ratio="16:9").problems] == ["aspect_ratio"]
    square = _row(plan, model=OLD, aspect_ratio="1:1")
    assert square.requests == [{"prompt": "p", "model": OLD}]
    assert square.jobs[0].unsent == '{"aspect_ratio":"1:1"}'


def test_what_only_third_parties_speak_against_is_sent_with_one_warning(plan: Plan) -> None:
    """Warnings are told once per file and cause."""
    row = json.dumps({"prompt": "p", "model": OLD, "image_size": "4K", "google_search": True, "thinking_level": "High"})
    planned = plan("a.jsonl", f"{row}\n" * 3)
    assert planned.requests[0] == {
        "prompt": "p", "model": OLD, "image_size": "4K", "google_search": "true", "thinking_level": "High",
    }  # fmt: skip
    assert [warning.field for warning in planned.warnings] == ["image_size", "thinking_level", "google_search"]
    assert [warning.field for warning in _row(plan, aspect_ratio="1:8").warnings] == ["aspect_ratio"]


def test_defaults_fill_what_a_row_leaves_out_where_its_model_takes_them(plan: Plan) -> None:
    """Row over setting; a default that a model does not take is not sent to it."""
    rows: list[dict[str, Any]] = [{}, {"aspect_ratio": "1:1", "google_search": False}, {"model": OLD}, {"model": FLASH}]
    content = "\n".join(json.dumps({"prompt": "p", **row}) for row in rows)
    settings = {"aspect_ratio": "1:8", "image_size": "4K", "google_search": True, "image_search": True}
    planned = plan("a.jsonl", content, thinking_level="High", **settings)
    common = {"image_size": "4K", "thinking_level": "High"}
    assert planned.requests == [
        {"prompt": "p", "model": PRO, **common, "google_search": "true"},
        {"prompt": "p", "model": PRO, "aspect_ratio": "1:1", **common},
        {"prompt": "p", "model": OLD},
        {
            "prompt": "p",
            "model": FLASH,
            "aspect_ratio": "1:8",
            **common,
            "google_search": "true",
            "image_search": "true",
        },
    ]
    assert [job.unsent for job in planned.jobs] == [None, '{"google_search":false}', None, None]
    assert planned.warnings == []
    assert [str(job.kind) for job in planned.jobs] == [f"{PRO} 4K", f"{PRO} 4K", f"{OLD} 1K", f"{FLASH} 4K"]


@pytest.mark.parametrize(
    ("value", "sent"),
    [(True, True), ("TRUE", True), ("1.0", True), (1, True), (False, False), ("0", False), ("", None)],
)
def test_search_flags_are_sent_only_when_on_and_as_text(plan: Plan, value: Any, sent: bool | None) -> None:
    """Off is left out: "false" may read as true on the other side. What was spelled out is remembered."""
    planned = _row(plan, google_search=value)
    assert planned.requests[0].get("google_search") == ("true" if sent else None)
    assert planned.jobs[0].unsent == ('{"google_search":false}' if sent is False else None)


def test_a_copy_of_a_row_has_an_id_and_a_name_of_its_own(plan: Plan) -> None:
    """`x`, `x~2`, `x~3`; rows without id share their key, and the batch counts them."""
    planned = plan("a.csv", "id,prompt,copies,filename\nx,p,3,cat\n,p,2,\n")
    assert [job.id for job in planned.jobs] == ["x", "x~2", "x~3", None, None]
    assert [job.stem for job in planned.jobs] == ["cat", "cat~2", "cat~3", "\x01-p", "\x01-p"]
    assert len({job.key for job in planned.jobs}) == 1


def test_a_whole_number_of_copies_may_look_like_a_fraction(plan: Plan) -> None:
    """Notebooks write 2.0 for a column with gaps."""
    assert len(_row(plan, copies=2.0).jobs) == len(_row(plan, copies="2.0").jobs) == 2


def test_a_prompt_of_spaces_that_a_template_makes_is_told(plan: Plan) -> None:
    """A column may hold spaces alone."""
    assert plan("a.csv", "a,b\n ,x\n", prompt="{a}").told == [
        "2: prompt: only spaces → any text with a character that is not space"
    ]


def test_a_numeric_id_is_its_digits(plan: Plan) -> None:
    """Notebooks write 17 where a sheet writes "17"."""
    assert _row(plan, id=17).jobs[0].id == "17"


def test_extra_fields_pass_through(plan: Plan) -> None:
    """As an object, or as JSON in a cell."""
    assert _row(plan, extra={"seed": 7, "deep": {"a": [1.5, None]}}).requests[0]["deep"] == {"a": [1.5, None]}
    assert plan("a.tsv", 'prompt\textra\np\t{"seed": 7}\n').requests[0]["seed"] == 7


def test_meta_keeps_what_it_was(plan: Plan) -> None:
    """Numbers, lists and null of JSON stay; empty cells of a table say nothing."""
    planned = _row(plan, score=1.50, tags=["a", "é"], none=None, empty="")
    assert json.loads(planned.jobs[0].meta or "") == {"score": 1.5, "tags": ["a", "é"], "none": None, "empty": ""}
    assert plan("a.csv", "prompt,note\np,\n").jobs[0].meta is None


def test_one_and_true_do_not_stand_in_for_each_other(plan: Plan) -> None:
    """Combinations are remembered by value, and 1 == True: the next row must not inherit a wrong reading."""
    rows: list[dict[str, Any]] = [
        {"copies": 1},
        {"copies": True},
        {"google_search": 1},
        {"google_search": True},
        {"thinking_level": True},
    ]
    planned = plan("a.jsonl", "\n".join(json.dumps({"prompt": "p", **row}) for row in rows))
    assert [(problem.line, problem.field) for problem in planned.problems] == [(2, "copies"), (5, "thinking_level")]
