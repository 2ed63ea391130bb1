"""UTF-8, or told how to make it so."""

import pytest

from tests.unit.manifest.planning import Plan

TEXT = "prompt\nein Fuchs über dem Fluß\n狐と雪\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_encodings_are_read(plan: Plan, encoding: str) -> None:
    """UTF-8 with or without its mark, UTF-16 with it."""
    assert plan("a.csv", TEXT.encode(encoding)).prompts == ["ein Fuchs über dem Fluß", "狐と雪"]
    assert plan("b.csv", TEXT.replace("\n", "\r\n").encode(encoding)).prompts == ["ein Fuchs über dem Fluß", "狐と雪"]


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        (TEXT.split("狐", maxsplit=1)[0].encode("cp1252"), 2, "the byte 0xfc near character 11 is not UTF-8"),
        (TEXT.encode("gb18030", "replace"), 2, "not UTF-8"),
        (TEXT.encode("utf-16-le"), 1, "UTF-16 without its byte order mark"),
        (TEXT.encode("utf-16-be"), 1, "UTF-16 without its byte order mark"),
        (TEXT.encode("utf-32"), 1, "UTF-32"),
        ("prompt\nab".encode("utf-16") + b"\x00", 2, "not UTF-16"),
        (b"prompt\nlast\xe2\x82", 2, "not UTF-8"),
        (b"prompt\n" + b"xyzab\n" * 60_000 + b"\xff\n", 60_002, "the byte 0xff near character 1 is"),
    ],
)
def test_other_encodings_are_told_with_the_line_and_how_to_convert(
    plan: Plan, content: bytes, line: int, found: str
) -> None:
    """Never guessed: a guess would be paid for letter by letter."""
    problem = plan("a.csv", content).problems[-1]
    assert problem.line == line
    assert found in problem.found
    assert "iconv -f" in problem.allowed


def test_an_empty_file_has_no_rows(plan: Plan) -> None:
    """An empty manifest is a problem, whatever its format."""
    for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json"):
        assert plan(name, "").told == [" no rows → at least one row with a prompt"]
    assert plan("b.csv", "prompt\n").told == [" no rows → at least one row with a prompt"]
    assert plan("b.json", " [ ] \n").told == [" no rows → at least one row with a prompt"]
    assert plan("b.txt", "# nothing\n").told == [" no rows → at least one row with a prompt"]
