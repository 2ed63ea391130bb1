"""Manifests as people have them: each format, what is wrong told at once, and a public collection of prompts."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from .command import JOBS, charges, command, credits_of, here, results, tree

PROMPTS = ["a cup of tea", 'a sign that says "open"', "an äpfel tree", "a, b and c"]


def test_every_format_gives_the_same_jobs(tmp_path: Path) -> None:
    """txt, csv, tsv, jsonl and a gzip of it, read as one batch: the prompts arrive as written, in order."""
    (tmp_path / "a.txt").write_text("# a comment\n\n" + "\n".join(PROMPTS) + "\n")
    with open(tmp_path / "b.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["Prompt", "Image-Size", "shelf"], *([one, "1K", "b"] for one in PROMPTS)])
    (tmp_path / "c.tsv").write_text("prompt\tshelf\r\n" + "".join(f"{one}\tc\r\n" for one in PROMPTS))
    lines = "".join(json.dumps({"prompt": one, "shelf": "d"}) + "\n" for one in PROMPTS)
    (tmp_path / "d.jsonl").write_text(lines)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines.replace('"d"', '"e"').encode()))
    (tmp_path / "f.json").write_text(json.dumps([{"prompt": one, "shelf": "f"} for one in PROMPTS]))
    names = ["a.txt", "b.csv", "c.tsv", "d.jsonl", "e.jsonl.gz", "f.json"]
    ended = command("run", *names, "--sandbox", "-o", "out", "-c", "32", "-q", cwd=tmp_path)
    assert ended.code == 0, ended.err
    rows = results(tmp_path / "out")
    assert [row["prompt"] for row in rows] == PROMPTS * 6
    assert [(row["meta"] or {}).get("shelf") for row in rows[4:]] == [shelf for shelf in "bcdef" for _ in PROMPTS]
    assert [row["image_size"] for row in rows[4:8]] == ["1K"] * 4


def test_standard_input_is_a_manifest(tmp_path: Path) -> None:
    """`-` with --format and -o is read to its end; the prompts are bought."""
    ended = command(
        "run", "-", "--format", "txt", "--sandbox", "-o", "out", "--json", cwd=tmp_path, stdin=b"one\ntwo\n"
    )
    assert ended.summary["jobs"]["done"] == 2
    assert [row["prompt"] for row in results(tmp_path / "out")] == ["one", "two"]


def test_standard_input_without_a_format_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` alone says nothing of what it holds: 64, and no folder."""
    monkeypatch.chdir(tmp_path)
    assert here("run", "-", "--sandbox", "-o", "out").code == 64
    assert tree(tmp_path) == set()


BAD = """prompt,model,image_size,aspect_ratio
fine,Nano Banana Pro,1K,1:1
,Nano Banana Pro,1K,1:1
small k,Nano Banana Pro,2k,1:1
odd shape,Nano Banana Pro,1K,7:5
old model,Nano Banana,1K,16:9
who,Nano Papaya,1K,1:1
"""


def test_every_bad_row_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan`, `run -n` and `run` name file, line, field, what was found and what is allowed of all of them; 65."""
    (tmp_path / "bad.csv").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    for arguments in (["plan", "bad.csv"], ["run", "bad.csv", "-n"], ["run", "bad.csv", "--sandbox"]):
        ended = here(*arguments)
        assert ended.code == 65
        told = [line for line in ended.err.splitlines() if line.startswith("bad.csv:")]
        assert [line.split(" ")[:2] for line in told] == [
            ["bad.csv:3:", "prompt:"],
            ["bad.csv:4:", "image_size:"],
            ["bad.csv:5:", "aspect_ratio:"],
            ["bad.csv:6:", "aspect_ratio:"],
            ["bad.csv:7:", "model:"],
        ]
        assert all(" → " in line for line in told)
        assert ended.out == ""
    assert tree(tmp_path) == {str(tmp_path / "bad.csv")}


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    """`plan` counts by model and size, says what it would cost at most, and leaves no folder, no file, no lock."""
    (tmp_path / "demo.csv").write_bytes((JOBS / "demo.csv").read_bytes())
    told = command("plan", "demo.csv", cwd=tmp_path)
    assert told.code == 0, told.err
    assert "12 jobs" in told.out
    assert "600 credits ($6.00)" in told.out
    plan = command("run", "demo.csv", "--dry-run", "--json", cwd=tmp_path).object
    assert (plan["exit"], plan["plan"]["to_send"], plan["plan"]["new"]) == (0, 12, 12)
    assert tree(tmp_path) == {str(tmp_path / "demo.csv")}


def test_a_plan_says_what_to_buy_first_and_what_is_not_sent(tmp_path: Path) -> None:
    """The command that is advised keeps every option, model and budget among them; columns of one's own are named, and
    where one is meant for a field, that too."""
    rows = "".join(f"p{row},16:9,me\n" for row in range(6))
    (tmp_path / "six.csv").write_text("prompt,ratio,Kunde\n" + rows)
    told = command("plan", "six.csv", "--model", "Nano Banana", "--budget", "$2", "--limit", "6", cwd=tmp_path)
    assert "banana-batch run six.csv --model 'Nano Banana' --budget '$2' --limit 5\n" in told.out
    assert "columns of your own, kept and not sent: ratio, Kunde" in told.out
    assert "did you mean aspect_ratio?" in told.out
    again = command("run", "six.csv", "-n", "-o", "o", cwd=tmp_path)
    assert "banana-batch run six.csv -o o --limit 5\n" in again.out


def test_a_public_collection_of_prompts(tmp_path: Path) -> None:
    """60 rows of PartiPrompts: every image opens, results keep the order and the collection's own columns, and the
    ledger is the charge log to the micro-credit."""
    source = JOBS / "parti-excerpt.tsv"
    lines = [line.split("\t") for line in source.read_text().splitlines()[1:]]
    ended = command("run", source, "--sandbox", "-c", "32", "--json", "-o", "out", cwd=tmp_path)
    assert ended.code == 0, ended.err
    out = tmp_path / "out"
    rows = results(out)
    assert [row["prompt"] for row in rows] == [line[0] for line in lines]
    assert len(rows) == 60
    for row, line in zip(rows, lines, strict=True):
        cells = dict(zip(("Category", "Challenge", "Note"), line[1:], strict=False))
        assert row["meta"] == {name: cell for name, cell in cells.items() if cell}
        name = Path(row["image"]).name
        assert name.isascii()
        assert name.startswith(f"{row['index']:05d}-")
        with Image.open(io.BytesIO((out / row["image"]).read_bytes())) as image:
            image.load()
    charged = charges(out)
    assert (len(charged), credits_of(charged)) == (60, ended.summary["credits"]["spent"])
    assert sorted(charge.prompt for charge in charged) == sorted(row["prompt"] for row in rows)
