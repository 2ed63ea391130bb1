"""One TOML file that describes a night."""

import json
import time
from io import BytesIO
from pathlib import Path

import pytest

from banana_batch.errors import InputMissing, ManifestError, UsageError
from banana_batch.manifest import open_manifests, read_job_file, run_settings
from banana_batch.manifest.loader import RunTable
from banana_batch.settings import Settings
from tests.unit.manifest.planning import Plan, plan_files

NIGHT = """\
# a night
manifest = ["sheet.csv", "more/*.txt"]

[run]
concurrency = 6
budget = "$5"

[defaults]
model = "Nano Banana 2"
prompt = "a {product} in {color}"
image_size = "2K"

[[jobs]]
id = "cover"
prompt = "a harbour"
image_size = "4K"
copies = 2

[[jobs]]
product = "pot"
color = "green"
made = 2026-01-02

[matrix]
prompt = "a {animal} in {style}"
id = "{animal}/{style}"
filename = "{style}/{animal}-{index}"
animal = ["fox", "owl"]
style = ["ink", "oil", "gouache"]
"""


@pytest.fixture
def night(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    (tmp_path / "sheet.csv").write_text("product,color\nmug,red\n")
    (tmp_path / "more" / "b.txt").write_text("second\n")
    (tmp_path / "more" / "a.txt").write_text("first\n")
    path = tmp_path / "night.toml"
    path.write_text(NIGHT)
    return path


def test_one_file_describes_a_night(night: Path, tmp_path: Path) -> None:
    """Its manifests, then its rows, then its matrix, all with its defaults; paths are relative to it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    planned = plan_files([str(night)], elsewhere)
    assert planned.problems == []
    assert planned.prompts == [
        "a mug in red", "first", "second", "a harbour", "a harbour", "a pot in green",
        "a fox in ink", "a fox in oil", "a fox in gouache", "a owl in ink", "a owl in oil", "a owl in gouache",
    ]  # fmt: skip
    assert {request["model"] for request in planned.requests} == {"gemini-3.1-flash-image-preview"}
    assert [request["image_size"] for request in planned.requests[2:5]] == ["2K", "4K", "4K"]
    assert [job.id for job in planned.jobs[3:8]] == ["cover", "cover~2", None, "fox/ink", "fox/oil"]
    assert planned.jobs[5].meta == '{"product":"pot","color":"green","made":"2026-01-02"}'
    assert planned.jobs[6].stem == "ink/fox-\x01"
    assert [job.line for job in planned.jobs[3:7]] == [13, 13, 19, 24]
    assert planned.jobs[0].file.endswith("sheet.csv")
    assert planned.manifests.default_out(False) == tmp_path / "outputs" / "night"


def test_its_options_can_be_read_before_there_are_settings(night: Path, tmp_path: Path) -> None:
    """`[run]` is merged below command line and environment by the settings model itself."""
    assert run_settings([str(night)], tmp_path).values == {"concurrency": 6, "budget": "$5"}
    assert dict(read_job_file(night).run) == {"concurrency": 6, "budget": "$5"}


def test_names_may_be_written_as_on_the_command_line(tmp_path: Path) -> None:
    """`give-up-after` is `give_up_after`, with its line; one of the two is meant where both are there."""
    path = tmp_path / "a.toml"
    path.write_text('[run]\n"give-up-after" = "5m"\n\n[defaults]\naspect-ratio = "1:1"\n[[jobs]]\nprompt = "a"\n')
    assert run_settings(["a.toml"], tmp_path) == RunTable({"give_up_after": "5m"}, {"give_up_after": ("a.toml", 2)})
    assert plan_files(["a.toml"], tmp_path).requests[0]["aspect_ratio"] == "1:1"
    path.write_text('[run]\ndry_run = true\ndry-run = false\n[[jobs]]\nprompt = "a"\n')
    with pytest.raises(ManifestError, match=r"a\.toml:2: run\.dry-run: given twice"):
        run_settings(["a.toml"], tmp_path)


def test_a_key_of_run_that_means_nothing_is_told_with_its_line(tmp_path: Path) -> None:
    """And with the one that is likely meant."""
    (tmp_path / "a.toml").write_text('[run]\nrpm = 3\nconcurency = 4\n[[jobs]]\nprompt = "a"\n')
    with pytest.raises(ManifestError, match=r"a\.toml:3: run\.concurency: no such key.*did you mean concurrency\?"):
        run_settings(["a.toml"], tmp_path)


def test_job_files_that_disagree_are_refused(night: Path, tmp_path: Path) -> None:
    """Which budget holds must not depend on the order of the files."""
    (tmp_path / "other.toml").write_text('[run]\nbudget = "$6"\n[[jobs]]\nprompt = "a"\n')
    with pytest.raises(UsageError, match="budget"):
        run_settings(["night.toml", "other.toml"], tmp_path)


def test_settings_win_over_its_defaults_and_rows_over_both(night: Path, tmp_path: Path) -> None:
    """Row > command line > environment > [defaults] > spec."""
    planned = plan_files(["night.toml"], tmp_path, image_size="1K", prompt="one {product}")
    assert planned.prompts[0] == "one mug"
    assert [request["image_size"] for request in planned.requests[2:5]] == ["1K", "4K", "4K"]


def test_each_job_files_defaults_hold_for_its_own_rows_only(tmp_path: Path) -> None:
    """Two nights in one call do not mix."""
    (tmp_path / "a.toml").write_text('[defaults]\nimage_size = "2K"\n[[jobs]]\nprompt = "a"\n')
    (tmp_path / "b.txt").write_text("b\n")
    planned = plan_files(["a.toml", "b.txt"], tmp_path)
    assert [request.get("image_size") for request in planned.requests] == ["2K", None]


def test_default_references_and_extra_fields_hold_for_rows_that_say_nothing(tmp_path: Path) -> None:
    """References are relative to the job file; extra fields are merged, the row's on top."""
    (tmp_path / "style.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.csv").write_text('prompt,refer_images,extra\na,,\nb,https://e.com/x,"{""seed"": 2}"\n')
    (tmp_path / "n.toml").write_text(
        'manifest="sub/a.csv"\n[defaults]\nrefer_images=["style.png"]\nextra={seed=1,n=1}\n'
    )
    planned = plan_files(["n.toml"], tmp_path)
    assert [request["refer_images"] for request in planned.requests] == [["style.png"], ["https://e.com/x"]]
    assert [(request["seed"], request["n"]) for request in planned.requests] == [(1, 1), (2, 1)]
    assert str(tmp_path / "style.png") in (planned.jobs[0].references or "")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("jbos = 1", "1: jbos: no such key: jbos → run, defaults, manifest, jobs or matrix (did you mean jobs?)"),
        ("\n[default]\nmodel='x'\n[[jobs]]\nprompt='a'", "2: default: no such key: default → run, defaults,"),
        ("[defaults]\n\nmodle='x'\n[[jobs]]\nprompt='a'", "3: defaults.modle: no such key: modle → "),
        ("[defaults]\nimage_size='2k'\n[[jobs]]\nprompt='a'", "1: image_size: 2k → 1K, 2K or 4K (did you mean 2K?)"),
        ("[defaults]\nprompt='{'\n[[jobs]]\nprompt='a'", "2: defaults.prompt: { → { alone"),
        ("[defaults]\nprompt=3\n[[jobs]]\nprompt='a'", "2: defaults.prompt: 3 → a text"),
        ("defaults=3\n[[jobs]]\nprompt='a'", "1: defaults: 3 → a table: [defaults]"),
        ("manifest = 3", "1: manifest: 3 → a list of paths"),
        ("[jobs]\nprompt='a'", "1: jobs: "),
        ("[run]\nbudget=1", " no jobs → at least one of manifest, [[jobs]] and [matrix]"),
        ("a = ", "1: not TOML: "),
        ('a = "é', "1: not TOML: "),
        ("a = 1\nb = [1,\n", "3: not TOML: "),
        ("[matrix]\nprompt='{a}'\na=[]", "3: matrix.a: [] → a list with at least one value"),
        ("[matrix]\nprompt=['a']", "2: matrix.prompt: "),
        ("[matrix]\nprompt='a'\n[matrix.x]\nb=1", '1: matrix.x: {"b": 1} → a value, or a list of values'),
        ("[matrix]\nprompt='a {'", "1: matrix: a bad template → { alone"),
        ("[matrix]\nprompt='a {x}'\nx=[1]\nfilename='{index:03d}'", "1: matrix: a bad template → {index} without"),
        ("[defaults]\nmodel='none'\n[[jobs]]\nprompt='a'", "1: model: none → "),
        ("manifest='x.toml'", " manifest: x.toml → a file with rows"),
    ],
)
def test_what_a_job_file_says_wrong_is_told_with_its_line(plan: Plan, tmp_path: Path, content: str, told: str) -> None:
    """A misspelt key must not go unnoticed."""
    (tmp_path / "x.toml").write_text("")
    with pytest.raises(ManifestError) as refused:
        plan("a.toml", content)
    assert str(refused.value.problems[0]).removeprefix("a.toml:").startswith(told)


def test_a_job_file_that_is_no_text_or_not_there_is_told(tmp_path: Path) -> None:
    """No traceback for bytes, 66 for nothing."""
    (tmp_path / "a.toml").write_bytes(b"a = '\xff'\n")
    with pytest.raises(ManifestError) as refused:
        read_job_file(tmp_path / "a.toml")
    assert "iconv" in refused.value.problems[0].allowed
    with pytest.raises(InputMissing):
        read_job_file(tmp_path / "none.toml")


def test_a_matrix_is_counted_and_begun_without_being_built(plan: Plan, tmp_path: Path) -> None:
    """A slip of ten lists must not fill the memory before anyone can say no."""
    axes = "\n".join(f"a{number} = {list(range(100))}" for number in range(8))
    (tmp_path / "a.toml").write_text(
        f"[matrix]\nprompt = '{{a1}} {{a7}}'\ncopies = 3\n{axes}\n[[jobs]]\nprompt='x'\ncopies=4\n"
    )
    started = time.monotonic()
    manifests = open_manifests(["a.toml"], Settings(), tmp_path, BytesIO())
    assert manifests.count_expansion() == 3 * 100**8 + 4
    jobs = manifests.jobs([], [])
    assert [json.loads(next(jobs).request)["prompt"] for _ in range(8)][4:] == ["0 0", "0 0", "0 0", "0 1"]
    assert time.monotonic() - started < 2


def test_one_mistake_in_a_matrix_is_told_once(plan: Plan) -> None:
    """All its rows share a line."""
    content = "[matrix]\nprompt='{a} {b}'\na=['x','y']\nmodel=['Nano Banana','Nano Banana 2']\naspect_ratio=['16:9']\n"
    planned = plan("a.toml", content)
    assert sorted(problem.field for problem in planned.problems) == ["aspect_ratio", "prompt"]
    assert planned.jobs == []


def test_numbers_in_a_matrix_and_its_constants_become_columns(plan: Plan) -> None:
    """Lists are axes, the rest holds for all rows; the last list runs fastest."""
    content = "[matrix]\nprompt='{n} {m}'\nn=[1, 2.5]\nimage_size=['1K','2K']\nm='x'\n"
    planned = plan("a.toml", content)
    assert planned.prompts == ["1 x", "1 x", "2.5 x", "2.5 x"]
    assert [request["image_size"] for request in planned.requests] == ["1K", "2K", "1K", "2K"]
    assert planned.jobs[0].meta == '{"n":1,"m":"x"}'


def test_an_id_that_cannot_be_made_is_told(plan: Plan) -> None:
    """A template for ids is held to the rules of ids, and to the columns there are."""
    assert [problem.field for problem in plan("a.toml", "[matrix]\nprompt='p'\nid='{b}'\na=['x']\n").problems] == ["id"]
    assert plan("b.toml", "[matrix]\nprompt='p'\nid='{a}'\na=['x~']\n").told == [
        "1: id: x~ → a text without ~, which marks copies (x~2)"
    ]


@pytest.mark.parametrize("content", ["a = " + "[" * 100_000, "a = " + "9" * 5_000, "a = '" + "x" * (17 << 20) + "'"])
def test_a_job_file_that_breaks_parsers_is_refused(plan: Plan, content: str) -> None:
    """Too deep, too long a number, too large."""
    with pytest.raises(ManifestError) as refused:
        plan("a.toml", content)
    assert len(str(refused.value.problems[0])) < 250
