"""What can be asked for can be found: in the help of every command, and in the README."""

import re
from pathlib import Path

import pytest

from .command import PACKAGE, command, here

FIGURES = ("run", "plan", "status", "ledger", "download", "verify")
COMMANDS = (*FIGURES, "resolve", "redo", "export", "schedule", "sandbox")

# The table of `run`'s options, as promised.
OPTIONS = [
    "-o",
    "--out",
    "-c",
    "--concurrency",
    "--budget",
    "--rpm",
    "--limit",
    "--stop-by",
    "--max-duration",
    "--model",
    "--aspect-ratio",
    "--image-size",
    "--thinking-level",
    "--google-search",
    "--image-search",
    "--sandbox",
    "-n",
    "--dry-run",
    "-y",
    "--yes",
    "--json",
    "-q",
    "-v",
    "--no-progress",
    "--log-file",
    "--in-doubt",
    "--run-budget",
    "--max-price",
    "--retries",
    "--timeout",
    "--grace",
    "--give-up-after",
    "--download-wait",
    "--on-change",
    "--filename",
    "--base-url",
    "--proxy",
    "--allow-host",
    "--key-file",
    "--on-finish",
    "--format",
    "--prompt",
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture(scope="module")
def told() -> str:
    """The help of `run`, on a wide terminal."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", "200")
        patched.setenv("TERM", "dumb")
        return here("run", "--help").out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    """`--help` shows a line that can be typed, and `--json` where figures are printed."""
    ended = here(name, "--help")
    assert ended.code == 0, ended.err
    assert f"Example: banana-batch {name} " in re.sub(r"\s+", " ", ended.out)
    if name in FIGURES:
        assert "--json" in ended.out


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_in_the_help_of_run(option: str, told: str) -> None:
    """A promised option is one that `run` takes and tells of."""
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told)


def test_no_option_takes_the_key(told: str) -> None:
    """Command lines are public: there is no option to put the key on one."""
    assert not re.search(r"(?<![\w-])--(api-)?key(?![\w-])", told)


def test_the_often_used_options_come_first(told: str) -> None:
    """What most people need stands above what few need."""
    assert told.index("--concurrency") < told.index("--in-doubt") < told.index("--base-url")


def test_help_of_the_command_as_installed(tmp_path: Path) -> None:
    """In a narrow terminal too, without colours, on standard output."""
    ended = command("run", "--help", cwd=tmp_path, COLUMNS="80")
    assert (ended.code, ended.err) == (0, "")
    assert "Usage: banana-batch run" in ended.out
    assert "\x1b" not in ended.out


def test_a_readme_that_tells_of_options_tells_of_all() -> None:
    """Once the README has a list of options, none is missing from it."""
    readme = (PACKAGE.parent / "README.md").read_text()
    if "--concurrency" in readme:
        assert [option for option in OPTIONS if option not in readme] == []
        assert [name for name in COMMANDS if f"`{name}" not in readme] == []
