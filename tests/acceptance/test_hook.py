"""`--on-finish`: once per ended run, with the summary on its standard input, and no say in how the run ended."""

import json
from pathlib import Path

import pytest

from .command import KEY, SUMMARY_KEYS, command
from .peer import serving

HOOK = "cat >> told.jsonl; echo >> told.jsonl; echo from the hook; test -z $TT_API_KEY"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "two.csv").write_text("prompt\na\nb\n")
    return tmp_path


def _told(folder: Path) -> list[tuple[int, int]]:
    objects = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    assert all(list(summary) == SUMMARY_KEYS for summary in objects)
    return [(summary["exit"], summary["jobs"]["done"]) for summary in objects]


def test_it_is_told_once_of_each_run(folder: Path) -> None:
    """Done, stopped by its budget, refused for a bad row: the same object as `--json`, and the key is not for it."""
    with serving() as peer:
        for options, code in ((("--budget", "2", "--max-price", "2"), 5), ((), 0)):
            ended = peer.run("two.csv", "-o", "out", "-c", "1", "--on-finish", HOOK, *options, cwd=folder)
            assert ended.code == code, ended.err
            assert "--on-finish" not in ended.err
    (folder / "two.csv").write_text("prompt,model\na,nonsense\n")
    bad = command("run", "two.csv", "--sandbox", "-o", "bad", "--on-finish", HOOK, cwd=folder, TT_API_KEY=KEY)
    assert bad.code == 65
    assert _told(folder) == [(5, 1), (0, 2), (65, 0)]


def test_what_it_prints_is_kept_out_of_the_one_object(folder: Path) -> None:
    """With `--json`, standard output holds that and nothing else."""
    ended = command("run", "two.csv", "--sandbox", "--json", "--on-finish", HOOK, cwd=folder)
    assert ended.summary["exit"] == 0
    assert "from the hook" in ended.err


def test_its_failure_is_told_and_changes_nothing(folder: Path) -> None:
    """The run's own code stands; run.log has it too."""
    ended = command("run", "two.csv", "--sandbox", "-q", "-o", "out", "--on-finish", "exit 9", cwd=folder)
    assert ended.code == 0
    assert "--on-finish ended with 9" in ended.err
    assert '"hook_failed"' in (folder / "out" / "run.log").read_text()
