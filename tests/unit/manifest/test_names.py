"""Names stay inside the folder and are fit for every file system."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banana_batch.manifest import names
from tests.unit.manifest.planning import Plan

BAD = [
    "../x", "a/../b", "/etc/x", "a//b", "a/", ".hidden", "a/.b", "-rf", " x", "x ", "x.", "a\\b", "C:x", "a\nb", "a\x00b",
    "a\x1b[31m", "a\u202eb", "a\u200bb", "a\x7fb", "a\x01", "con", "CON.txt", "nul.tar.gz", "COM¹", "lpt9.x", "aux .x",
    'a"b', "a<b", "a|b", "a*b", "a?b", "é" * 101, "x" * 201, "a/b/c/d/e/f/g/h/i", "\ud800", "a/con", "~/../x/..",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_a_row_spells_out_is_refused_and_never_bent(name: str) -> None:
    """The complaint says what is allowed."""
    assert names.complaint(names.nfc(name))


@pytest.mark.parametrize(
    "name", ["cat", "a/b c", "猫", "café", "x~2", "a.b", "console", "com10", "x" * 200, "_x", "(1) é!"]
)
def test_harmless_names_are_taken(name: str) -> None:
    """Only what is dangerous is refused."""
    assert names.complaint(name) is None


def test_a_rows_file_name_is_composed_and_a_second_extension_warned_of(plan: Plan) -> None:
    """NFC, so that one name is one file on every system; the extension comes from the bytes."""
    planned = plan("a.csv", "prompt,filename\na,cafe\u0301\nb,cat.png\nc,../x\n")
    assert [job.stem for job in planned.jobs] == ["café", "cat.png"]
    assert [warning.line for warning in planned.warnings] == [3]
    assert [problem.line for problem in planned.problems] == [4]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300), st.text(max_size=40))
def test_whatever_a_template_puts_together_is_a_good_name(value: str, other: str) -> None:
    """Cleaned and tidied, any text passes the check that spelled-out names must pass."""
    stem = names.tidy(f"{names.cut(names.clean(value), 90)}/{names.cut(names.clean(other), 90)}", "0123abcd")
    assert names.complaint(stem) is None
    assert unicodedata.is_normalized("NFC", stem)
    assert stem.count("/") == 1


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_a_name_that_passes_makes_a_file_inside_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """On a real file system."""
    if names.complaint(names.nfc(name)) is not None:
        return
    folder = tmp_path_factory.getbasetemp() / "names"
    path = folder / f"{names.nfc(name)}.png"
    assert os.path.commonpath([folder, os.path.normpath(path)]) == str(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    path.unlink()
