"""The account of the night: on the terminal, in summary.md, as JSON."""

import json
import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

from banana_batch.errors import REASONS, Exit
from banana_batch.models import Kind, Totals
from banana_batch.report import tables
from banana_batch.report.account import (
    Account,
    FailureLine,
    JobLine,
    KindLine,
    LedgerLine,
    ledger_summary,
    run_summary,
)
from banana_batch.report.advice import next_steps
from banana_batch.report.markdown import escaped, markdown_text, write_summary
from banana_batch.report.moments import rfc3339, seconds_text, span_text
from banana_batch.report.summary import BatchStatus, ledger_text, status_text, terminal_text
from banana_batch.report.tally import Outage
from banana_batch.text import with_option

M = 1_000_000
NOON_US = 1_763_812_800 * M
PRO = Kind("gemini-3-pro-image-preview", "1K")
FLASH = Kind("gemini-3.1-flash-image-preview", "4K")
HOSTILE = "<script>alert(1)</script> ![x](http://evil/y.png) | `x` \x1b[31m\r\n# www.evil.com \u202e" + "long " * 100

CLEAN = Account(
    exit=Exit.DONE,
    out="outputs/demo",
    started_us=NOON_US,
    ended_us=NOON_US + 12 * M,
    elapsed_s=12.3,
    jobs={"done": 10},
    totals=Totals(spent=20 * M),
    run_totals=Totals(spent=20 * M),
)
NIGHT = replace(
    CLEAN,
    exit=Exit.BUDGET,
    out="outputs/my cats",
    elapsed_s=30_000,
    jobs={"done": 1600, "failed": 20, "in_doubt": 2, "paid": 1, "lost": 1, "pending": 10, "dropped": 1},
    totals=Totals(spent=3204 * M, at_risk=4 * M, wasted=2 * M),
    budget_micro=3210 * M,
    expected_micro=20 * M + 1,
    run_command=("banana-batch", "run", "cats.tsv", "-o", "outputs/my cats", "--budget", "2"),
    throttled_s=720,
    warnings=3,
    failures=[FailureLine("refused_400", 18, HOSTILE), *(FailureLine(f"other_{n}", 1) for n in range(6))],
    kinds=[KindLine(PRO, 1500, 3000 * M, 0, 0, 12.1, 40.2), KindLine(FLASH, 100, 204 * M, 4 * M, 2 * M, 62, 150.2)],
    outages=[Outage(NOON_US, HOSTILE, 3720.0, 8), *(Outage(NOON_US, "cut") for _ in range(6))],
    slowest=[JobLine(12, HOSTILE, FLASH, 310.2, 4 * M)],
    dearest=[JobLine(13, "cat", PRO, None, None)],
)


def test_a_clean_run_is_told_in_a_few_lines() -> None:
    """What was made, what it cost, where it lies; nothing to do next."""
    text = terminal_text(CLEAN)
    assert text.startswith("Done: 10 images; this run took 12 s\n  10 done\n")
    assert "$0.20" in text
    assert "outputs/demo/images/" in text
    assert "Next" not in text
    assert len(text.splitlines()) < 16


def test_the_account_fits_80_columns_and_shows_no_raw_text() -> None:
    """All but the commands, which are never cut; no escape, no bidi mark (S9)."""
    text = terminal_text(NIGHT)
    commands = {step.command for step in next_steps(NIGHT)}
    assert max(tables.width(line) for line in text.splitlines() if line.strip() not in commands) <= 80
    assert not [char for char in text if char in "\x1b\r\u202e"]
    assert "1,600 of 1,635 images; this run took 8 h 20 min" in text
    assert "budget left" in text
    assert "… and 2 further kinds" in text
    assert "… and 2 further outages" in text
    assert "Throttled by the endpoint for 12 min" in text


def test_columns_stand_under_each_other() -> None:
    """Wide characters count two columns, combining ones none."""
    lines = tables.plain(["name", "n"], [["猫猫", "1"], ["e\u0301", "10"]], "<>")
    assert [tables.width(line) for line in lines] == [8, 8, 8]
    assert tables.fitted("猫猫猫", 5) == "猫猫…"


RUN = ("banana-batch", "run", "m.csv", "-o", "o")


@pytest.mark.parametrize(
    ("exit", "jobs", "commands"),
    [
        (Exit.DONE, {"done": 3, "dropped": 1}, []),
        (Exit.FAILED, {"done": 1, "failed": 1, "lost": 1}, ["redo o --failed", "redo o --lost"]),
        (Exit.IN_DOUBT, {"done": 1, "in_doubt": 1}, ["resolve o"]),
        (Exit.BUDGET, {"pending": 1}, ["run m.csv -o o --budget 28"]),
        (Exit.NOT_FETCHED, {"paid": 1}, ["download o"]),
        (Exit.STOPPED, {"pending": 1, "paid": 1}, ["download o", "run m.csv -o o"]),
        (Exit.OUT_OF_CREDITS, {"pending": 1}, ["", "run m.csv -o o"]),
        (Exit.UNAVAILABLE, {"pending": 1, "in_doubt": 2}, ["", "run m.csv -o o", "resolve o"]),
        (Exit.KEY, {"pending": 1}, ["", "run m.csv -o o"]),
        (Exit.DISK, {"paid": 1}, ["download o", ""]),
        (Exit.INTERRUPTED, {"pending": 1, "in_doubt": 1}, ["run m.csv -o o", "resolve o"]),
    ],
)
def test_each_ending_says_what_to_do_next(exit: Exit, jobs: dict[str, int], commands: list[str]) -> None:
    """As commands that can be pasted; a bigger budget is one that is enough."""
    budget = 20 * M if exit is Exit.BUDGET else None
    account = replace(
        CLEAN, exit=exit, out="o", jobs=jobs, run_command=RUN, expected_micro=8 * M - 1, budget_micro=budget
    )
    steps = next_steps(account)
    assert [step.command.removeprefix("banana-batch ") for step in steps] == commands
    assert all(step.why for step in steps)


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        (["--budget", "20"], "--budget 28"),
        (["--budget=20", "-c", "4"], "-c 4 --budget 28"),
        (["--run-budget", "20", "--budget", "99"], "--run-budget 20 --budget 99"),
    ],
)
def test_the_budget_that_is_advised_is_the_one_that_ended_the_run(said: list[str], advised: str) -> None:
    """It stands in the place of the old one; where this run's own budget was used up, the batch's is left alone."""
    own = 20 * M if "--run-budget" in said else None
    account = replace(
        CLEAN,
        exit=Exit.BUDGET,
        jobs={"pending": 1},
        run_command=("banana-batch", "run", "m.csv", *said),
        expected_micro=8 * M,
        budget_micro=99 * M if own else 20 * M,
        run_budget_micro=own,
    )
    assert [step.command for step in next_steps(account)] == [f"banana-batch run m.csv {advised}"]


def test_where_no_command_is_known_the_manifest_is_pointed_to() -> None:
    """`download` never sends: running it again would not go on with what waits."""
    (step,) = next_steps(replace(CLEAN, exit=Exit.STOPPED, jobs={"pending": 5}))
    assert (step.command, "5 jobs" in step.why, "manifest" in step.why) == ("", True, True)


def test_an_overspent_budget_is_told_as_such() -> None:
    """By how much, in the account and in `status`: never as nothing left."""
    over = replace(CLEAN, budget_micro=15 * M)
    assert "over budget" in terminal_text(over)
    assert "budget left" not in terminal_text(over)
    status = BatchStatus("o", over.jobs, over.totals, over.budget_micro)
    assert "15 credits ($0.15), overspent by 5" in status_text(status)


def test_an_option_is_set_anew() -> None:
    """What was said of it before goes, in either spelling; what follows `--` is no option."""
    words = ["run", "--limit", "9", "--limit=8", "m.csv", "--", "--limit"]
    assert with_option(words, "--limit", "5") == ["run", "m.csv", "--limit", "5", "--", "--limit"]


def test_an_unknown_price_leaves_the_budget_to_the_user_and_folders_are_quoted() -> None:
    """Nothing is made up, and a shell reads the folder as one word."""
    account = replace(NIGHT, expected_micro=None, out="a b; rm -rf $HOME")
    commands = [step.command for step in next_steps(account)]
    assert any(command.endswith("--budget CREDITS") for command in commands)
    assert shlex.split(commands[0]) == ["banana-batch", "download", "a b; rm -rf $HOME"]


def test_markdown_shows_hostile_text_as_text(tmp_path: Path) -> None:
    """No HTML, no image, no link, no further table cell, no heading comes of it (S9)."""
    write_summary(tmp_path, NIGHT)
    text = (tmp_path / "summary.md").read_text()
    assert text == markdown_text(NIGHT)
    for raw in ("<script", "![x]", "http://evil", "www.evil", "\x1b", "\r", "\u202e"):
        assert raw not in text
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 8
    assert escaped("a|b`<&") == r"a\|b\`&lt;&amp;"


def test_markdown_of_a_clean_run_says_that_nothing_is_left() -> None:
    """And has no empty sections."""
    text = markdown_text(CLEAN)
    assert "Nothing: all is done." in text
    assert "## Failures" not in text
    assert "## The endpoint" not in text


def test_the_json_summary_is_the_contracts() -> None:
    """Exactly these keys, all eight states, amounts as decimal strings."""
    found = run_summary(
        exit=0, jobs={"done": 10}, totals=Totals(spent=20 * M), budget_micro=None, elapsed_s=12.3, out="/o"
    )
    assert json.dumps(found) == json.dumps(
        {
            "exit": 0,
            "reason": "done",
            "jobs": {
                "pending": 0, "sending": 0, "paid": 0, "done": 10, "failed": 0, "in_doubt": 0, "lost": 0, "dropped": 0,
            },
            "credits": {"spent": "20", "at_risk": "0", "wasted": "0", "reserved": "0", "budget": None},
            "elapsed_s": 12.3,
            "out": "/o",
            "running": False,
        }
    )  # fmt: skip
    live = run_summary(exit=None, jobs={}, totals=Totals(), budget_micro=M, elapsed_s=None, out=None, running=True)
    assert (live["exit"], live["reason"], live["elapsed_s"], live["out"]) == (None, None, None, None)


@pytest.mark.parametrize("exit", list(Exit))
def test_every_exit_code_has_an_account(exit: Exit) -> None:
    """And a reason."""
    account = replace(CLEAN, exit=exit)
    assert terminal_text(account)
    assert markdown_text(account)
    found = run_summary(exit=exit, jobs={}, totals=Totals(), budget_micro=0, elapsed_s=0.0, out=Path("/o"))
    assert found["reason"] == REASONS[exit]


def test_status_tells_counts_credits_and_who_holds_the_batch() -> None:
    """In 80 columns."""
    status = BatchStatus(
        "outputs/demo", NIGHT.jobs, replace(NIGHT.totals, reserved=2 * M), 3210 * M, "pid 4711 on host", "budget", 12.5, 300
    )  # fmt: skip
    text = status_text(status)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("running (pid 4711 on host)", "20 failed", "2 of it wasted", "0 left", "12.5 images a minute, 5 min"):
        assert part in text
    ended = status_text(replace(status, holder=None, last="in_doubt", rate_per_min=None, budget_micro=None))
    assert "not running; the last run ended: in doubt" in ended
    assert "rate" not in ended


def test_the_ledger_sums_up_in_credits_and_dollars() -> None:
    """A row a group, then all; the JSON has the contract's keys."""
    lines = [LedgerLine("2026-11-22", 3, 6 * M, 2 * M, 0), LedgerLine("2026-11-23", 1, M // 2, 0, M // 2)]
    totals = Totals(spent=6_500_000, at_risk=2 * M, wasted=M // 2)
    text = ledger_text(totals, lines, "day")
    assert [line.split() for line in text.splitlines()][-2:] == [
        ["all", "4", "6.5", "2", "0.5"],
        ["$0.065", "$0.02", "$0.005"],
    ]
    found = ledger_summary(totals, lines)
    assert list(found) == ["spent", "at_risk", "wasted", "rows"]
    assert found["rows"] == [
        {"key": "2026-11-22", "attempts": 3, "spent": "6", "at_risk": "2", "wasted": "0"},
        {"key": "2026-11-23", "attempts": 1, "spent": "0.5", "at_risk": "0", "wasted": "0.5"},
    ]


def test_times_are_exact_for_machines_and_short_for_people() -> None:
    """Microseconds are kept; a span names the second date only where it is needed."""
    assert rfc3339(NOON_US + 1) == "2025-11-22T12:00:00.000001Z"
    assert span_text(NOON_US, NOON_US + 3600 * M).count("2025-") == 1
    assert span_text(NOON_US, NOON_US + 86_400 * M).count("2025-") == 2
    assert [seconds_text(value) for value in (None, 0.84, 9.96, 150)] == ["-", "0.8 s", "10 s", "2 min 30 s"]
