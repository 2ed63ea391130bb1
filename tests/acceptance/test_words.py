"""The user's word: resolve, redo and verify, on a real batch."""

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from banana_batch.sandbox.faults import Canned, Fault, FaultKind

from .command import here
from .peer import refusal, serving

PROMPTS = "prompt,id,model\na,a,Nano Banana\nb,b,Nano Banana\n"


def _batch(folder: Path, fault: Fault | Canned) -> Path:
    """A batch of two: `a` is done, `b` met the fault."""
    (folder / "prompts.csv").write_text(PROMPTS)
    with serving(canned=[None, fault]) as peer:
        peer.run(folder / "prompts.csv", "-c", "1", "--download-wait", "0", "-o", "out", cwd=folder)
    return folder / "out"


def _again(folder: Path) -> None:
    with serving() as peer:
        assert peer.run(folder / "prompts.csv", "-o", "out", cwd=folder).code == 0


def _figures(out: Path) -> tuple[dict[str, int], dict[str, str]]:
    found = here("status", out, "--json").summary
    return {state: count for state, count in found["jobs"].items() if count}, found["credits"]


@pytest.mark.parametrize(
    ("word", "jobs", "spent", "at_risk", "wasted"),
    [
        (["--resend"], {"done": 1, "pending": 1}, "2", "2", "0"),
        (["--not-charged"], {"done": 1, "pending": 1}, "2", "0", "0"),
        (["--charged", "2"], {"done": 1, "dropped": 1}, "4", "0", "2"),
        (["--charged", "2", "--resend"], {"done": 1, "pending": 1}, "4", "0", "2"),
        (["--drop"], {"done": 1, "dropped": 1}, "2", "2", "0"),
        (["--image-url", "https://cdn.example.com/b.png"], {"done": 1, "paid": 1}, "4", "0", "0"),
    ],
)
def test_a_doubt_is_settled_as_the_user_says(
    tmp_path: Path, word: list[str], jobs: dict[str, int], spent: str, at_risk: str, wasted: str
) -> None:
    """Credits leave the account of what is at risk only by the user's word, and go where that says."""
    out = _batch(tmp_path, Fault(FaultKind.DROP_AFTER_CHARGE))
    assert here("resolve", out, "b", *word).code == 0
    states, sums = _figures(out)
    assert states == jobs
    assert (sums["spent"], sums["at_risk"], sums["wasted"]) == (spent, at_risk, wasted)


def test_what_is_settled_is_in_the_next_results(tmp_path: Path) -> None:
    """The next run has nothing to send, and still writes what was said."""
    out = _batch(tmp_path, Fault(FaultKind.DROP_AFTER_CHARGE))
    assert here("resolve", out, "b", "--charged", "2").code == 0
    _again(tmp_path)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["state"] for row in rows] == ["done", "dropped"]


def test_what_is_settled_is_not_settled_twice(tmp_path: Path) -> None:
    """A second word on the same doubt is refused, and changes nothing."""
    out = _batch(tmp_path, Fault(FaultKind.DROP_AFTER_CHARGE))
    assert here("resolve", out, "--all", "--charged", "2").code == 0
    before = _figures(out)
    assert here("resolve", out, "b", "--charged", "3").code == 64
    assert _figures(out) == before


def test_a_resend_leaves_its_credits_at_risk_until_the_user_knows(tmp_path: Path) -> None:
    """After the resend the first request's credits can still be taken back, without moving the job."""
    out = _batch(tmp_path, Fault(FaultKind.DROP_AFTER_CHARGE))
    assert here("resolve", out, "b", "--resend").code == 0
    _again(tmp_path)
    assert _figures(out)[1]["at_risk"] == "2"
    assert here("resolve", out, "b", "--not-charged").code == 0
    assert _figures(out) == ({"done": 2}, {**_figures(out)[1], "spent": "4", "at_risk": "0"})


def test_words_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    """Nothing is guessed: two words, no job, an unknown job, several jobs for one url."""
    out = _batch(tmp_path, Fault(FaultKind.DROP_AFTER_CHARGE))
    for words in (
        ["--all", "--drop", "--not-charged"],
        ["--all", "--resend", "--drop"],
        ["--drop"],
        ["nobody", "--drop"],
        ["a", "b", "--image-url", "https://x.example/y.png"],
        ["--all", "b", "--drop"],
        ["b", "--charged", "much"],
        ["b"],
    ):
        assert here("resolve", out, *words).code == 64, words
    assert _figures(out)[0] == {"done": 1, "in_doubt": 1}


def test_a_failed_job_is_redone_in_place(tmp_path: Path) -> None:
    """`redo --failed` brings it back to pending, with its retries unspent; the next run buys it."""
    out = _batch(tmp_path, refusal(400, "banned word"))
    assert _figures(out)[0] == {"done": 1, "failed": 1}
    assert here("redo", out, "--failed").code == 0
    assert _figures(out)[0] == {"done": 1, "pending": 1}
    _again(tmp_path)
    assert _figures(out)[0] == {"done": 2}


def test_a_done_job_is_redone_as_a_copy(tmp_path: Path) -> None:
    """The old image stays; the copy has an id, a file and a price of its own, and follows its row."""
    out = _batch(tmp_path, Fault(FaultKind.DROP_BEFORE_CHARGE))
    old = (out / "images" / "00001-a.png").read_bytes()
    assert here("redo", out, "a").code == 0
    assert here("resolve", out, "--all", "--not-charged").code == 0
    _again(tmp_path)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(row["id"], row["state"], row["image"]) for row in rows] == [
        ("a", "done", "images/00001-a.png"),
        ("a~2", "done", "images/00001-a~2.png"),
        ("b", "done", "images/00002-b.png"),
    ]
    assert (out / "images" / "00001-a.png").read_bytes() == old


def test_who_is_named_twice_is_redone_once(tmp_path: Path) -> None:
    """By name and by `--failed`, or two times over: one job is bought once."""
    out = _batch(tmp_path, refusal(400, "banned word"))
    assert here("redo", out, "a", "1", "b", "--failed", "a").code == 0
    assert _figures(out)[0] == {"done": 1, "pending": 2}


def test_a_lost_job_gets_one_copy(tmp_path: Path) -> None:
    """`redo --lost`, said every night, orders no second copy while the first is on its way, nor once it is there."""
    out = _batch(tmp_path, Fault(FaultKind.IMAGE_404))
    for _ in range(2):
        with contextlib.closing(sqlite3.connect(out / "state.sqlite3")) as db, db:
            db.execute("UPDATE jobs SET state = 'lost' WHERE id = 'b' AND state = 'paid'")
        assert here("redo", out, "--lost").code == 0
        assert _figures(out)[0] == {"done": 1, "lost": 1, "pending": 1}
    _again(tmp_path)
    assert here("redo", out, "--lost").code == 0
    assert _figures(out)[0] == {"done": 2, "lost": 1}


def test_a_number_is_an_id_where_the_manifest_numbers_its_rows(tmp_path: Path) -> None:
    """Row 2 has the id 1: `redo 2` means nobody, and certainly not that row."""
    (tmp_path / "prompts.csv").write_text("prompt,id,model\na,0,Nano Banana\nb,1,Nano Banana\n")
    with serving() as peer:
        assert peer.run(tmp_path / "prompts.csv", "-o", "out", cwd=tmp_path).code == 0
    out = tmp_path / "out"
    refused = here("redo", out, "2")
    assert (refused.code, "no such job: 2" in refused.err) == (64, True)
    assert here("redo", out, "1").code == 0
    with contextlib.closing(sqlite3.connect(out / "state.sqlite3")) as db:
        assert db.execute("SELECT id FROM jobs WHERE state = 'pending'").fetchall() == [("1~2",)]


def test_what_left_the_manifest_is_not_promised(tmp_path: Path) -> None:
    """A redone job without a row is bought once the row is back: the message says so."""
    out = _batch(tmp_path, refusal(400, "banned word"))
    (tmp_path / "prompts.csv").write_text(PROMPTS.replace("b,b,Nano Banana\n", ""))
    _again(tmp_path)
    told = here("redo", out, "b")
    assert (told.code, "b is not in the manifest: it will be bought once its row is there again" in told.out) == (
        0,
        True,
    )


def test_the_same_batch_is_counted_once(tmp_path: Path) -> None:
    """`ledger` with a batch named twice, by whichever path; two of one name are told apart."""
    out = _batch(tmp_path, refusal(400, "banned word"))
    once = here("ledger", out, "--json").object
    assert here("ledger", out, tmp_path / "out" / ".." / "out", "--json").object == once
    other = tmp_path / "other" / "out"
    shutil.copytree(out, other)
    both = here("ledger", out, other, "--by", "run", "--json").object
    assert len({row["key"] for row in both["rows"]}) == 2 * len(once["rows"])


def test_a_job_in_doubt_is_not_redone(tmp_path: Path) -> None:
    """`redo` is no way around `resolve`."""
    out = _batch(tmp_path, Fault(FaultKind.DROP_AFTER_CHARGE))
    assert here("redo", out, "b").code == 64


def test_verify_finds_and_repairs_without_paying(tmp_path: Path) -> None:
    """A missing and a changed image are found, fetched again, and cost nothing; what was there is kept aside."""
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    assert here("run", tmp_path / "prompts.txt", "--sandbox", "-o", tmp_path / "out", "-q").code == 0
    out, charges = tmp_path / "out", tmp_path / "out" / "sandbox" / "charges.jsonl"
    whole, paid = (out / "images" / "00002-b.png").read_bytes(), charges.read_bytes()
    (out / "images" / "00001-a.png").unlink()
    (out / "images" / "00002-b.png").write_bytes(b"not what it was")
    found = here("verify", out, "--json")
    assert found.code == 3
    assert found.object == {"images": 3, "missing": ["images/00001-a.png"], "changed": ["images/00002-b.png"]}
    assert here("verify", out, "--repair").code == 0
    assert here("verify", out).code == 0
    assert (out / "images" / "00002-b.png").read_bytes() == whole
    assert (out / "conflicts" / "00002-b.png").read_bytes() == b"not what it was"
    assert charges.read_bytes() == paid


def test_a_repair_that_is_cut_off_makes_no_other_image_the_paid_one(tmp_path: Path) -> None:
    """What lies under an image's name, whole, is not it: also where `conflicts/` can't take it, or the repair is killed."""
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    out = tmp_path / "out"
    assert here("run", tmp_path / "prompts.txt", "--sandbox", "-o", out, "-q").code == 0
    ours = (out / "images" / "00002-b.png").read_bytes()
    shutil.copy(out / "images" / "00001-a.png", out / "images" / "00002-b.png")
    (out / "conflicts").write_text("in the way")
    assert here("verify", out, "--repair").code in (73, 74)
    for _ in range(2):
        here("run", tmp_path / "prompts.txt", "--sandbox", "-o", out, "-q")
        assert here("verify", out, "--json").object["changed"] == ["images/00002-b.png"]
    (out / "conflicts").unlink()
    assert here("verify", out, "--repair").code == 0
    assert (out / "images" / "00002-b.png").read_bytes() == ours


def test_rows_that_ask_for_the_same_may_share_one_image(tmp_path: Path) -> None:
    """`--dedupe reuse` pays once and links the image for each; `error` refuses; `allow` pays for each."""
    manifest = tmp_path / "prompts.txt"
    manifest.write_text("a cat\na dog\na cat\na cat\n")
    assert here("run", manifest, "--sandbox", "-o", tmp_path / "no", "--dedupe", "error").code == 65
    assert not (tmp_path / "no").exists()
    out = tmp_path / "out"
    assert here("run", manifest, "--sandbox", "-o", out, "--dedupe", "reuse", "-q").code == 0
    assert len((out / "sandbox" / "charges.jsonl").read_text().splitlines()) == 2
    cats = [out / "images" / f"0000{index}-a-cat.png" for index in (1, 3, 4)]
    assert len({path.stat().st_ino for path in cats}) == 1
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["credits"] for row in rows] == ["13", "13", "0", "0"]
    assert here("verify", out).code == 0
