"""A night for the system's scheduler: what is printed can be installed as it is."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .command import here

NIGHT = '[run]\nbudget = "$20"\nstop_by = "06:30"\n\n[[jobs]]\nprompt = "a quiet harbour"\n'


def _night(folder: Path, text: str = NIGHT) -> Path:
    path = folder / "over night.toml"
    path.write_text(text)
    return path


def _units(printed: str) -> dict[str, str]:
    parts = re.split(r"^# /etc/systemd/system/(\S+)$", printed.partition("# To install")[0], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_units_are_such_as_systemd_takes(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing to say of them, with a space in the job file's name."""
    units = _units(here("schedule", _night(tmp_path), "--at", "22:00", "--for", "systemd").out)
    assert sorted(units) == ["banana-batch-over-night.service", "banana-batch-over-night.timer"]
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        paths = [str(tmp_path / name) for name in units]
        found = subprocess.run([analyze, "verify", *paths], capture_output=True, text=True, check=False, timeout=60)
        assert (found.returncode, found.stderr) == (0, "")


def test_a_stop_outlives_the_longest_call(tmp_path: Path) -> None:
    """systemd's 90 seconds would cut paid calls off: the unit waits for the drain; the key is a credential."""
    service = _units(here("schedule", _night(tmp_path), "--at", "22:00", "--for", "systemd").out)[
        "banana-batch-over-night.service"
    ]
    lines = service.splitlines()
    for line in (
        "Type=oneshot", "TimeoutStartSec=infinity", "TimeoutStopSec=690", "KillMode=mixed", "SuccessExitStatus=7",
        "UMask=0077", "NoNewPrivileges=yes", "ProtectSystem=strict", "LimitCORE=0",
        "LoadCredential=ttapi_key:/etc/banana/key", f"ReadWritePaths={tmp_path}", f"WorkingDirectory={tmp_path}",
    ):  # fmt: skip
        assert line in lines
    (start,) = [line for line in lines if line.startswith("ExecStart=/")]
    assert start.endswith(f'run "{tmp_path}/over night.toml" --json')


def test_the_service_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not root's, whose images nobody else could read; root's where root asks."""
    for uid, lines in ((1000, ["User=mary"]), (0, [])):
        monkeypatch.setenv("LOGNAME", "mary")
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        printed = here("schedule", _night(tmp_path), "--at", "22:00", "--for", "systemd").out
        assert [line for line in printed.splitlines() if line.startswith("User=")] == lines


def test_the_timer_starts_at_the_time_given(tmp_path: Path) -> None:
    """Each day at that time; a night missed while the machine was off is made up for."""
    timer = _units(here("schedule", _night(tmp_path), "--at", "7:05", "--for", "systemd").out)[
        "banana-batch-over-night.timer"
    ]
    assert "OnCalendar=*-*-* 07:05:00" in timer
    assert "Persistent=true" in timer


def test_the_cron_line_is_quiet_and_absolute(tmp_path: Path) -> None:
    """One line, absolute paths, `%` escaped, `-q`: cron mails only on trouble."""
    folder = tmp_path / "100% done"
    folder.mkdir()
    printed = here("schedule", _night(folder), "--at", "22:05", "--for", "cron").out
    (line,) = [line for line in printed.splitlines() if not line.startswith("#")]
    assert line.startswith("5 22 * * * /")
    assert line.endswith(f"run '{str(folder)!s}/over night.toml' -q".replace("%", r"\%"))


def test_what_the_job_file_names_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a log given relative to where it was tried: the same at night, and both may be written to."""
    (tmp_path / "nights").mkdir()
    night = _night(tmp_path / "nights", NIGHT.replace("[run]", '[run]\nout = "images"\nlog_file = "logs/night.log"'))
    (tmp_path / "here" / "logs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (cron,) = [
        line for line in here("schedule", night, "--at", "22:00", "--for", "cron").out.splitlines() if line[0] != "#"
    ]
    assert cron.endswith(f"night.toml' -o {tmp_path}/here/images -q")
    service = _units(here("schedule", night, "--at", "22:00", "--for", "systemd").out)[
        "banana-batch-over-night.service"
    ]
    assert f'night.toml" -o {tmp_path}/here/images --json\n' in service
    assert f"ReadWritePaths={tmp_path}/here {tmp_path}/here/logs\n" in service


def test_the_shell_of_today_is_not_the_night_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal ordered by a variable of this shell changes nothing of what the scheduler will start."""
    meant = here("schedule", _night(tmp_path), "--at", "22:00", "--for", "systemd").out
    monkeypatch.setenv("BANANA_SANDBOX", "1")
    monkeypatch.setenv("BANANA_OUT", "elsewhere")
    assert here("schedule", _night(tmp_path), "--at", "22:00", "--for", "systemd").out == meant


@pytest.mark.parametrize("at", ["24:00", "22", "noon", "22:60"])
def test_no_time_of_day_is_told(tmp_path: Path, at: str) -> None:
    """The message names what was found and what is allowed."""
    ended = here("schedule", _night(tmp_path), "--at", at, "--for", "cron")
    assert ended.code == 64
    assert at in ended.err
    assert "22:00" in ended.err


def test_a_bad_job_file_is_told_before_the_night(tmp_path: Path) -> None:
    """Now, not at 22:00."""
    bad = _night(tmp_path, NIGHT.replace("budget", "budgte"))
    assert here("schedule", bad, "--at", "22:00", "--for", "cron").code == 65
