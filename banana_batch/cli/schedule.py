"""`schedule`: a night for the system's own scheduler, ready to install. It installs nothing itself."""

import getpass
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from banana_batch.errors import Exit, UsageError
from banana_batch.finding import working_folder
from banana_batch.ordering import Order, settle_order
from banana_batch.text import printable, slug

from . import outcome

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
# After the drain's own patience: results, summary and hook are written too.
_SLACK_S = 60
_KEY_PATH = "/etc/banana/key"


def schedule(
    jobfile: Annotated[Path, typer.Argument(metavar="JOBFILE", help="Job file, or any manifest")],
    at: Annotated[str, typer.Option(metavar="HH:MM", help="When to start each day, local time")],
    target: Annotated[Literal["systemd", "cron"], typer.Option("--for", help="systemd or cron")],
) -> int:
    """Print a systemd service and timer, or a cron line, that runs a job file every night.

    Example: banana-batch schedule jobs/overnight.toml --at 22:00 --for systemd
    """
    match = _TIME.fullmatch(at.strip())
    if match is None:
        raise UsageError(f"--at {at!r} → a time of day such as 22:00")
    with open(os.devnull, "rb") as nothing:
        # The scheduler starts it with an environment of its own.
        order = settle_order([str(jobfile)], {}, {}, working_folder(), nothing)
    path = jobfile.absolute()
    for place in (path, order.out):
        # A line end in a name would be a line of the unit, and with it a command of its own.
        if printable(str(place), 10_000) != str(place):
            raise UsageError(f"{printable(str(place))}: a path with control characters can't be scheduled", "rename it")
    if target == "systemd":
        outcome.say(_units(path, order, f"{int(match[1]):02d}:{match[2]}"))
    else:
        outcome.say(_cron_line(path, order, int(match[1]), int(match[2])))
    return Exit.DONE


def _command() -> list[str]:
    installed = Path(sys.argv[0]).absolute()
    if installed.name == "banana-batch" and installed.is_file():
        return [str(installed)]
    found = shutil.which("banana-batch")
    return [found] if found else [sys.executable, "-m", "banana_batch"]


def _run(path: Path, order: Order) -> list[str]:
    # A folder that the job file names is meant from here; where the scheduler starts it, it would be another.
    out = [] if order.settings.out is None else ["-o", str(order.out)]
    return [*_command(), "run", str(path), *out]


def _units(path: Path, order: Order, at: str) -> str:
    name = f"banana-batch-{slug(path.stem) or 'night'}"
    needs_key = not order.settings.sandbox and order.settings.key_file is None
    service = [
        f"# /etc/systemd/system/{name}.service",
        "[Unit]",
        f"Description=banana-batch: {_unit_text(path.name)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=oneshot",
        "ExecStart=" + " ".join(map(_unit_word, [*_run(path, order), "--json"])),
        f"WorkingDirectory={_unit_text(str(path.parent))}",
        *([f"LoadCredential=ttapi_key:{_KEY_PATH}"] if needs_key else []),
        *([f"User={_unit_text(getpass.getuser())}"] if os.geteuid() else []),
        "TimeoutStartSec=infinity",
        f"TimeoutStopSec={round(order.settings.of_run.grace_s) + _SLACK_S}",
        "KillMode=mixed",
        "SuccessExitStatus=7",
        "UMask=0077",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        f"ReadWritePaths={' '.join(_written(order))}",
        "LimitCORE=0",
    ]
    timer = [
        f"# /etc/systemd/system/{name}.timer",
        "[Unit]",
        f"Description=banana-batch every night: {_unit_text(path.name)}",
        "",
        "[Timer]",
        f"OnCalendar=*-*-* {at}:00",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    install = [
        "# To install: save the two parts above under the names in their first lines, then",
        *([f"#   sudo install -D -m 600 key.txt {_KEY_PATH}     (the API key, alone in a file)"] if needs_key else []),
        f"#   sudo systemctl daemon-reload && sudo systemctl enable --now {name}.timer",
        f"# To look: systemctl list-timers {name}.timer; journalctl -u {name}",
    ]
    return "\n".join([*service, "", *timer, "", *install])


def _written(order: Order) -> list[str]:
    """Return the folders that a run writes to."""
    log = order.settings.log_file
    folders = [order.out.parent, *([] if log is None else [(working_folder() / log).parent])]
    return list(dict.fromkeys(_unit_word(str(_standing(folder))) for folder in folders))


def _cron_line(path: Path, order: Order, hour: int, minute: int) -> str:
    command = shlex.join([*_run(path, order), "-q"]).replace("%", r"\%")
    lines = [
        "# Install with crontab -e. Silent on success, so cron mails only on trouble. No outer lock is needed.",
        f"{minute} {hour} * * * {command}",
    ]
    if not order.settings.sandbox and order.settings.key_file is None:
        lines.insert(
            1, '# cron starts with an empty environment: put key_file = "/path/to/key" (mode 0600) into [run].'
        )
    return "\n".join(lines)


def _standing(folder: Path) -> Path:
    """Return the nearest folder that exists: systemd binds none that does not."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _unit_text(text: str) -> str:
    return text.replace("%", "%%")


def _unit_word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\;]", word) else escaped
