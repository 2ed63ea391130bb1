"""The commands of a page, run as a reader would type them.

Rule 1: the lines of each ```console block that start with `$ ` are run, in order, by one shell's rules, in a copy of
        the project's `jobs/` folder's parent; `\\` at the end of a line goes on.
Rule 2: nothing leaves this machine: what would go to the real endpoint goes to a sandbox here, and an address that
        is not on loopback is refused before anything is run.
Rule 3: a command ends with 0, unless the line says otherwise: `# exits 65`.
Rule 4: `make TARGET` is looked up in the Makefile (the targets have tests of their own); `git clone` and `cd` are for
        the reader's machine. `banana-batch sandbox`, which serves until it is ended, is started and left running.
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .command import BOUND_S, JOBS, KEY, PACKAGE, environment
from .peer import serving

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXITS = re.compile(r"#\s*exits (\d+)\s*$")
_ADDRESS = re.compile(r"https?://([^/\s'\"]+)")
_READERS = ("git clone ", "cd ")


def commands_of(page: str) -> list[str]:
    """Return the commands of a page, lines that go on joined."""
    found: list[str] = []
    for block in _BLOCK.findall(page):
        lines = iter(block.splitlines())
        for line in lines:
            if line.startswith("$ "):
                whole = line[2:]
                while whole.endswith("\\"):
                    whole = f"{whole[:-1].rstrip()} {next(lines).removeprefix('> ').strip()}"
                found.append(whole.strip())
    return found


def failures(page: str, folder: Path) -> list[str]:
    """Run a page's commands in `folder`; return those that did not end as the page says, each with its words."""
    shutil.copytree(JOBS, folder / "jobs", ignore=shutil.ignore_patterns("outputs"))
    with ExitStack() as stack:
        peer = stack.enter_context(serving())
        variables = environment(folder, TT_API_KEY=KEY, BANANA_BASE_URL=peer.base_url)
        return [told for line in commands_of(page) if (told := _failure(line, folder, variables, stack))]


def _failure(line: str, folder: Path, variables: dict[str, str], stack: ExitStack) -> str | None:
    exits = _EXITS.search(line)
    wanted = int(exits[1]) if exits else 0
    typed = line[: exits.start()].strip() if exits else line
    if typed.startswith(_READERS):
        return None
    if typed.startswith("make "):
        target = typed.split()[1]
        known = re.search(rf"^{re.escape(target)}:", (PACKAGE.parent / "Makefile").read_text(), re.MULTILINE)
        return None if known else f"{line}: no such target"
    away = [host for host in _ADDRESS.findall(typed) if not host.startswith(("127.0.0.1", "localhost"))]
    if away and not typed.startswith("curl"):
        return f"{line}: goes to {away[0]}"
    if away:
        return None
    if re.match(r"banana-batch sandbox\b(?!.*--help)", typed):
        return stack.enter_context(_served(typed.removesuffix("&"), folder, variables))
    done = subprocess.run(
        ["/bin/sh", "-c", typed], cwd=folder, env=variables, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        timeout=BOUND_S,
    )  # fmt: skip
    if done.returncode == wanted:
        return None
    return f"{line}: ended with {done.returncode}: {done.stderr.decode()[-500:]}"


@contextmanager
def _served(typed: str, folder: Path, variables: dict[str, str]) -> Iterator[str | None]:
    log = folder / ".sandbox.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {typed}"],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        ready: Callable[[], bool] = lambda: b"http://" in log.read_bytes() or process.poll() is not None  # noqa: E731
        ends_s = time.monotonic() + BOUND_S
        while not ready() and time.monotonic() < ends_s:
            time.sleep(0.02)
        yield None if process.poll() is None else f"{typed}: {log.read_text()}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(BOUND_S)
