"""The front door: what is named, what it comes to, and whether it is still the same."""

import gzip
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from banana_batch.errors import Exit, InputMissing, ManifestError, UsageError
from banana_batch.job import Job
from banana_batch.manifest import open_manifests, plan_jobs
from banana_batch.manifest.sources import find_sources, refuse_gainsaid
from banana_batch.settings import Settings
from tests.unit.manifest.planning import plan_files
from tests.unit.peak import printed_and_peak


def _fingerprint(folder: Path, *names: str, after: bool = True, **settings: Any) -> bytes | None:
    if after:
        return plan_files(list(names), folder, **settings).manifests.fingerprint()
    return open_manifests(names, Settings(**settings), folder, BytesIO()).fingerprint()


def test_files_and_patterns_are_read_in_order(tmp_path: Path) -> None:
    """Those of a pattern by name; a name that exists is no pattern."""
    for name in ("b1.txt", "a2.txt", "a1.txt", "[x].txt"):
        (tmp_path / name).write_text(name)
    assert plan_files(["b1.txt", "a*.txt", "[x].txt"], tmp_path).prompts == ["b1.txt", "a1.txt", "a2.txt", "[x].txt"]


@pytest.mark.parametrize(
    ("names", "format", "code"),
    [
        ([], None, Exit.USAGE),
        (["none.csv"], None, Exit.NO_INPUT),
        (["none*.csv"], None, Exit.NO_INPUT),
        (["a\x00.csv"], None, Exit.NO_INPUT),
        (["folder"], None, Exit.NO_INPUT),
        (["folder/*"], None, Exit.NO_INPUT),
        (["-"], None, Exit.USAGE),
        (["-"], "toml", Exit.USAGE),
        (["a.dat"], None, Exit.USAGE),
        (["a"], None, Exit.USAGE),
        (["a.json.gz"], None, Exit.USAGE),
        (["a.txt", "./a.txt"], None, Exit.USAGE),
        (["a.txt", "*.txt"], None, Exit.USAGE),
    ],
)
def test_what_cannot_be_read_is_told_before_anything_is(
    tmp_path: Path, names: list[str], format: str | None, code: Exit
) -> None:
    """64 for the command line, 66 for what is missing; a manifest named twice would be paid for twice."""
    (tmp_path / "folder").mkdir()
    for name in ("a.txt", "a.dat", "a", "a.json.gz"):
        (tmp_path / name).write_text("x")
    with pytest.raises((UsageError, InputMissing)) as refused:
        plan_files(names, tmp_path, format=format)
    assert refused.value.exit is code


def test_the_format_says_what_a_name_does_not(tmp_path: Path) -> None:
    """--format is for names without a known extension."""
    (tmp_path / "prompts").write_text("prompt\na\n")
    (tmp_path / "b.TXT").write_text("b\n")
    assert plan_files(["prompts", "b.TXT"], tmp_path, format="csv").prompts == ["a", "b"]


def test_the_output_folder_is_named_after_the_manifest(tmp_path: Path) -> None:
    """Beside it; needed explicitly with several manifests or standard input."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my.list.csv.gz").write_bytes(gzip.compress(b"prompt\na\n"))
    (tmp_path / "b.txt").write_text("b\n")

    def out(*names: str, sandbox: bool = False) -> Path | None:
        said = "txt" if "-" in names else None
        return plan_files(list(names), tmp_path, stdin=b"x", format=said).manifests.default_out(sandbox)

    assert out("sub/my.list.csv.gz") == tmp_path / "sub" / "outputs" / "my.list"
    assert out("b.txt", sandbox=True) == tmp_path / "outputs" / "b-sandbox"
    assert out("-") is None
    assert out("b.txt", "sub/my.list.csv.gz") is None


def test_a_format_that_a_name_gainsays_is_refused(tmp_path: Path) -> None:
    """It is for names that do not say it; where none needs it, one of the two is a mistake."""
    for name in ("a.csv", "b.ndjson", "noname"):
        (tmp_path / name).write_text('{"prompt": "a"}\n')
    (tmp_path / "c.toml").write_text('prompt = "a"\n')
    for names, said in (
        (["a.csv"], "csv"),
        (["b.ndjson"], "jsonl"),
        (["a.csv", "noname"], "txt"),
        (["c.toml"], "csv"),
    ):
        assert find_sources(names, tmp_path, said)
        refuse_gainsaid(find_sources(names, tmp_path, said), said)
    with pytest.raises(UsageError, match=r"a\.csv: by its name it is csv, and --format says txt"):
        refuse_gainsaid(find_sources(["a.csv"], tmp_path, "txt"), "txt")


def test_each_empty_manifest_is_told(tmp_path: Path) -> None:
    """An empty one among several is a mistake too."""
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "b.txt").write_text("")
    assert [problem.file for problem in plan_files(["a.txt", "b.txt"], tmp_path).problems] == ["b.txt"]


def test_the_fingerprint_changes_with_all_that_planning_depends_on(tmp_path: Path) -> None:
    """The same: nothing has to be read row by row again."""
    (tmp_path / "a.csv").write_text("prompt\na\n")
    (tmp_path / "b.toml").write_text('manifest = "a.csv"\n')
    same = _fingerprint(tmp_path, "a.csv")
    assert same == _fingerprint(tmp_path, "a.csv", after=False) == _fingerprint(tmp_path, "a.csv", concurrency=3)
    others = [
        _fingerprint(tmp_path, "b.toml"),
        _fingerprint(tmp_path, "a.csv", image_size="2K"),
        _fingerprint(tmp_path, "a.csv", filename="{slug}"),
        _fingerprint(tmp_path, "a.csv", prompt="x"),
    ]
    (tmp_path / "a.csv").write_text("prompt\nb\n")
    others += [_fingerprint(tmp_path, "a.csv"), _fingerprint(tmp_path, "b.toml")]
    (tmp_path / "b.toml").write_text('manifest = "a.csv"\n# changed\n')
    others.append(_fingerprint(tmp_path, "b.toml", after=False))
    assert len({same, *others}) == 8


def test_there_is_no_fingerprint_where_bytes_do_not_tell_all(tmp_path: Path) -> None:
    """Standard input is gone; a reference may change beside the manifest."""
    assert plan_files(["-"], tmp_path, stdin=b"a\n", format="txt").manifests.fingerprint() is None
    (tmp_path / "r.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "a.csv").write_text("prompt,refer_images\na,r.png\n")
    assert _fingerprint(tmp_path, "a.csv") is None


def test_the_fingerprint_is_of_the_bytes_that_were_planned(tmp_path: Path) -> None:
    """A manifest that is edited while it is read must not pass for the edited one later."""
    path = tmp_path / "a.txt"
    path.write_text("old\n")
    old = plan_files(["a.txt"], tmp_path).manifests
    path.write_text("new\n")
    assert old.fingerprint() != _fingerprint(tmp_path, "a.txt")


def test_bad_jobs_made_in_code_are_told_at_the_end_all_at_once() -> None:
    """The good ones stream before; the caller has sent nothing yet."""
    jobs = plan_jobs([Job(prompt="a"), Job(prompt=" "), Job(prompt="b", id="x~")], Settings())
    assert next(jobs).line == 1
    with pytest.raises(ManifestError) as refused:
        list(jobs)
    assert [str(problem) for problem in refused.value.problems] == [
        "jobs:2: prompt: only spaces → any text with a character that is not space",
        "jobs:3: id: x~ → a text without ~, which marks copies (x~2)",
    ]
    with pytest.raises(ManifestError):
        list(plan_jobs([], Settings()))


def test_a_bad_setting_is_told_before_anything_is_read(tmp_path: Path) -> None:
    """An unknown --model is a usage error, not a million bad rows."""
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(UsageError, match="--model"):
        plan_files(["a.txt"], tmp_path, model="gemini-9")


def test_a_manifest_that_vanishes_is_told(tmp_path: Path) -> None:
    """Found, and gone when it is read or hashed: 66."""
    (tmp_path / "a.txt").write_text("a\n")
    manifests = open_manifests(["a.txt"], Settings(), tmp_path, BytesIO())
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputMissing, match=r"a\.txt: No such file"):
        list(manifests.jobs([], []))
    with pytest.raises(InputMissing, match=r"a\.txt: No such file"):
        manifests.fingerprint()


def test_a_file_of_many_layouts_and_combinations_is_planned_at_bounded_memory(tmp_path: Path) -> None:
    """What is remembered is forgotten in time; the rows come out right all the same."""
    rows = [{"prompt": "p", f"k{number}": 1} for number in range(5_000)]
    rows += [{"prompt": "p", "model": f"m{number}"} for number in range(5_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    planned = plan_files(["a.jsonl"], tmp_path, allow_unknown_model=True)
    assert planned.problems == []
    assert [job.line for job in planned.jobs] == list(range(1, 10_001))
    assert planned.requests[-1]["model"] == "m4999"


_MEASURE = """
import sys
from io import BytesIO
from pathlib import Path
from banana_batch.manifest import open_manifests
from banana_batch.settings import Settings
problems = []
count = sum(1 for _ in open_manifests([sys.argv[1]], Settings(), Path("/"), BytesIO()).jobs(problems, []))
print(count, len(problems))
"""


def test_memory_is_flat_in_the_number_of_rows(tmp_path: Path) -> None:
    """Rows stream: thirty times the rows, the same memory."""
    used = []
    for count in (1_000, 30_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": f"{'a long prompt ' * 20} {n}", "n": n}) for n in range(count)))
        printed, peak = printed_and_peak(_MEASURE, path)
        assert printed == [count, 0]
        used.append(peak)
    assert used[1] - used[0] < 4 << 20
