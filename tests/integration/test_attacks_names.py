"""Names out of other people's text, and folders in which somebody swaps files meanwhile (S7, S8)."""

import contextlib
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from banana_batch.cli import app
from banana_batch.errors import ManifestError, OutputError
from banana_batch.images.names import split_stem
from banana_batch.manifest.names import complaint
from banana_batch.ordering import settle_order
from banana_batch.planning import looked_at, made_ready
from tests.integration.racing import race
from tests.integration.whole_runs import scratch
from tests.unit.manifest.suites import NAUGHTY

DEVICES = [
    "CON",
    "prn",
    "Aux",
    "NUL",
    "com1",
    "COM9",
    "lpt1",
    "COM¹",
    "LPT²",
    "COM³",
    "CONIN$",
    "CONOUT$",
    "nul.tar.gz",
    "con .x",
]
BIDI = [
    f"a{mark}b" for mark in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\ufeff\u200b\u2028"
]
CONTROLS = [f"a{chr(code)}b" for code in (*range(32), *range(0x7F, 0xA0))]
SIGNS = [f"a{sign}b" for sign in '\\:*?"<>|']
TRAVERSALS = [
    "../x", "..", ".", "../../../../etc/cron.d/x", "/etc/passwd", "//x", "a/../../x", "a/..", "./x", "a//b", "a/", "~/../x/..",
    "..\\..\\x", "C:\\x", "c:x", "\\\\host\\share", "file:///etc/passwd", "a/./b", "a/.b", ".hidden", ".1.part", "-rf", "--help", "a/-b",
    " x", "x ", "x.", "x..", "...", "/", "\\", "/".join("abcdefghij"), "a" * 201, "é" * 101, "\U0001f600" * 51, "a" * 256, "a" * 5000,
    "x\0.png", "x/\0", "..%2fx\0", "aux/x", "x/nul", "x/con.png",
]  # fmt: skip
BAD = [*TRAVERSALS, *DEVICES, *BIDI, *CONTROLS, *SIGNS]
TEMPLATES = ["{index:05d}-{slug}", "{id}", "{slug}", "{note}", "{model}/{note}", "{hash}-{note}", "x-{note}-y"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder in memory, with a sentinel beside the batch's own."""
    with scratch() as made:
        (made / "sentinel").write_text("precious")
        yield made


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_no_bad_name_is_bent_into_a_good_one(name: str) -> None:
    """Whoever names a file names one that every system can hold, inside the folder; checked before any spend."""
    row = json.dumps({"prompt": "a", "filename": name})
    assert complaint(unicodedata.normalize("NFC", name)) is not None
    with scratch() as made:
        (made / "p.jsonl").write_text(row)
        order = settle_order(
            [str(made / "p.jsonl")], {"sandbox": True, "out": str(made / "out")}, {}, made, io.BytesIO()
        )
        with pytest.raises(ManifestError) as refused, looked_at(order):
            pass
        assert any(problem.field == "filename" for problem in refused.value.problems)
        assert not (made / "out").exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_text_becomes_a_name_inside_the_folder(folder: Path, template: str) -> None:
    """Naughty and crafted texts as prompt, id and column, all in one batch: each image has a file of its own."""
    texts = list(dict.fromkeys(text for text in (*NAUGHTY, *BAD) if text.strip() and "\0" not in text))
    # What is no id is refused as one (tests/unit/manifest); as prompt and column any text will do.
    good = [
        text.isascii() and text.isprintable() and text.strip() == text and len(text) < 100 and "~" not in text
        for text in texts
    ]
    ids = [f"{n} {text}" if fine else str(n) for n, (text, fine) in enumerate(zip(texts, good, strict=True))]
    rows = [
        {"prompt": text, "id": name, "note": f"{n}{text}"}
        for n, (text, name) in enumerate(zip(texts, ids, strict=True))
    ]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"sandbox": True, "out": str(folder / "out"), "filename": template}
    order = settle_order([str(folder / "p.jsonl")], options, {}, folder, io.BytesIO())
    if template == "{slug}":
        with pytest.raises(ManifestError), looked_at(order):
            pass  # texts whose words are the same: refused, never overwritten
        return
    with made_ready(order) as prepared, contextlib.closing(prepared.db) as db:
        names = [row["stem"] for row in db.execute("SELECT stem FROM jobs ORDER BY job")]
    assert len(names) == len(texts)
    assert len({unicodedata.normalize("NFC", named).casefold() for named in names}) == len(names)
    for index, named in enumerate(names, 1):
        assert complaint(named) is None, named
        place, name = split_stem(index, named)
        assert ".." not in (*place, name)
        assert len(f"{name}.webp".encode()) <= 255


def test_hostile_rows_write_nothing_outside(folder: Path) -> None:
    """A whole run of them: what is outside the folder is as it was, and every image is there."""
    texts = [text for text in (*NAUGHTY, *TRAVERSALS, *DEVICES, *BIDI) if text.strip() and "\0" not in text][:24]
    rows = [{"prompt": text, "id": f"{number}", "note": text} for number, text in enumerate(texts)]
    manifest = folder / "p.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = manifest.read_bytes()
    arguments = ["run", str(manifest), "--sandbox", "-q", "-o", str(folder / "out"), "--filename", "{note}-{index}"]
    assert app.main(arguments) == 0
    assert {path.name for path in folder.iterdir()} == {"sentinel", "p.jsonl", "out"}
    assert (folder / "sentinel").read_text() == "precious"
    assert manifest.read_bytes() == before
    assert len(list((folder / "out" / "images").rglob("*.png"))) == len(texts)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.integers(1, 2_000_000))
@example("..", 1)
@example("a/../../b", 10_000)
def test_no_stem_leads_out_of_images(stem: str, index: int) -> None:
    """Also one from a tampered state file: refused, or below images/ by plain names alone."""
    try:
        place, name = split_stem(index, stem)
    except OutputError:
        return
    assert place[0] == "images"
    for part in (*place, name):
        assert part not in ("", ".", "..")
        assert not {"/", "\\", "\0"} & set(part)
        assert len(part.encode("utf-8", "surrogatepass")) <= 255


def test_a_racer_leads_nothing_outside() -> None:
    """A thousand swaps of final names, parts, results and folders for symlinks: what they point at is as it was."""
    with scratch() as made:
        raced = race(made, 1000)
    assert raced.broken == []
    assert raced.swaps == 1000
    assert raced.stored
