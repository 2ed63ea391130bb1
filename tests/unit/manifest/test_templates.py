"""Prompts and file names from columns: names only, nothing that runs."""

import pytest

from banana_batch.errors import UsageError
from banana_batch.manifest.templates import FilenameTemplate, TemplateError, TextTemplate
from tests.unit.manifest.planning import Plan

SHEET = "product,Main Color\nmug,red\ncup,\n"


def test_a_prompt_is_made_of_a_rows_columns(plan: Plan) -> None:
    """Names match as header names do; braces are doubled; a missing value is told, not bought."""
    planned = plan("a.csv", SHEET, prompt="a {{{product}}} in {main-color}")
    assert planned.prompts == ["a {mug} in red"]
    assert planned.told == ["3: prompt: nothing for {main-color} → a column of this row: product"]


def test_a_misspelt_column_is_told_with_the_likely_one(plan: Plan) -> None:
    """A near miss names the column."""
    planned = plan("a.csv", SHEET, prompt="a {produkt}")
    assert planned.problems[0].allowed.endswith("(did you mean {product}?)")


def test_a_rows_own_prompt_is_no_template(plan: Plan) -> None:
    """It is sent exactly as given, braces and all."""
    assert plan("a.jsonl", '{"prompt": "a {b} {{c}} %s"}', prompt="x {b}").prompts == ["a {b} {{c}} %s"]


def test_numbers_and_truth_are_put_in_as_json_writes_them(plan: Plan) -> None:
    """A column of a JSONL row may be a number; a list or an object can't be put in."""
    row = '{"n": 3, "f": 1.5, "b": true, "l": [1]}'
    assert plan("a.jsonl", row, prompt="{n} {f} {b}").prompts == ["3 1.5 true"]
    assert [problem.field for problem in plan("a.jsonl", row, prompt="{l}").problems] == ["prompt"]


@pytest.mark.parametrize(
    "template", ["{", "}", "a {b", "{}", "{ }", "{a:>10}", "{a:05d}", "{index:05d}", "{{a}", "{a{b}}", "{:d}"]
)
def test_a_template_that_cannot_be_understood_is_refused(plan: Plan, template: str) -> None:
    """Before anything is read."""
    with pytest.raises(TemplateError):
        TextTemplate(template)
    with pytest.raises(UsageError, match="--prompt"):
        plan("a.csv", SHEET, prompt=template)


@pytest.mark.parametrize(
    "template", ["{product.__class__}", "{product[0]}", "{0}", "{product!r}", "{__import__('os')}", "{self._parts}"]
)
def test_a_template_reaches_no_attribute_and_runs_no_code(plan: Plan, template: str) -> None:
    """What is between the braces is a column's name, and there is no such column."""
    planned = plan("a.csv", SHEET, prompt=template)
    assert planned.jobs == []
    assert {problem.field for problem in planned.problems} == {"prompt"}


def test_file_names_are_made_of_the_documented_parts(plan: Plan) -> None:
    """index, id, slug, model, aspect_ratio, image_size, copy, hash and columns; the index is left to the batch."""
    template = "{shelf}/{index:04d}_{id}_{slug}_{model}_{aspect_ratio}_{image_size}_{copy:02d}_{hash}"
    content = "id,prompt,model,aspect_ratio,copies,shelf\nx,A Cat!,Nano Banana 2,16:9,2,Top Left\n,b,,,,C\n"
    planned = plan("a.csv", content, filename=template)
    key, other = planned.jobs[0].key.hex()[:12], planned.jobs[2].key.hex()[:12]
    assert [job.stem for job in planned.jobs] == [
        f"Top-Left/\x01_x_a-cat_gemini-3.1-flash-image-preview_16x9_1K_01_{key}",
        f"Top-Left/\x01_x_a-cat_gemini-3.1-flash-image-preview_16x9_1K_02_{key}",
        f"C/\x01_{other}_b_gemini-3-pro-image-preview_1x1_1K_01_{other}",
    ]
    assert planned.manifests.index_width == 4


def test_the_default_name_of_a_prompt_without_latin_words_is_its_index(plan: Plan) -> None:
    """No dangling dash."""
    assert [job.stem for job in plan("a.txt", "狐と雪\na fox\n").jobs] == ["\x01", "\x01-a-fox"]
    assert plan("b.txt", "狐\n", filename="{slug}").jobs[0].stem == plan("b.txt", "狐\n").jobs[0].key.hex()[:12]


def test_copies_never_share_a_name(plan: Plan) -> None:
    """A template that tells no copies apart gets ~2, ~3 at the end."""
    content = "id,prompt,copies\nx,p,3\n"
    assert [job.stem for job in plan("a.csv", content, filename="{id}").jobs] == ["x", "x~2", "x~3"]
    assert [job.stem for job in plan("a.csv", content, filename="{id}-{copy}").jobs] == ["x-1", "x-2", "x-3"]


def test_a_long_value_is_cut_and_the_index_stays(plan: Plan) -> None:
    """At most 200 bytes, whole characters."""
    stem = plan("a.jsonl", '{"prompt": "p", "t": "' + "é" * 500 + '"}', filename="{t}-{index}").jobs[0].stem
    assert stem.endswith("é-\x01")
    assert 150 < len(stem.encode()) <= 190


def test_a_missing_column_for_a_file_name_is_told(plan: Plan) -> None:
    """Before any spend."""
    assert plan("a.csv", "prompt,sku\np,\n", filename="{sku}").told == [
        "2: filename: nothing for {sku} → a column of this row: prompt"
    ]


@pytest.mark.parametrize(
    "template",
    [
        "", "plain", "{", "../{slug}", "/{slug}", "{slug}/", "a//{slug}", ".{slug}", "{slug}:x", "{slug}\\x", "-{slug}",
        "{index:05d}-{index:04d}", "{slug:10}", "{prompt}", "{index:5d}", "{index:005d}", "x" * 190 + "{slug}",
        "a/b/c/d/e/f/g/h/{slug}", "{slug}\x01", "nul.{slug}", "{slug}.",
    ],
)  # fmt: skip
def test_a_file_name_template_that_cannot_work_is_refused(plan: Plan, template: str) -> None:
    """A usage error, before anything is read."""
    with pytest.raises(TemplateError):
        FilenameTemplate(template)
    with pytest.raises(UsageError, match="--filename"):
        plan("a.csv", SHEET, filename=template)
