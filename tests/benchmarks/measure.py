"""Running one command and saying what it took: wall, CPU and memory of its process, and how much others disturbed it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

LONGEST_S = 900.0
BUSY_SHARE = 0.15  # of the machine, taken by others: more, and a figure says nothing
_LOOK_S = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")
_FORKED_ONLY = 0x40  # Linux' PF_FORKNOEXEC: a process between its fork and the start of its program


@dataclass(slots=True)
class Taken:
    """What one run of a command took.

    Attributes:
        foreign: Share of the machine that other processes took meanwhile; 0 where the system does not tell.
        rss: Resident memory over time, of all its processes, as (seconds since the start, bytes).
    """

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    exit: int
    foreign: float
    output: str = ""
    rss: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True)
class Server:
    """The endpoint in its own process."""

    process: "subprocess.Popen[str]"
    port: int

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, float]:
        """Return its counts."""
        with urlopen(f"{self.base_url}/stats", timeout=10) as answer:  # our own loopback server
            found: dict[str, float] = json.load(answer)
        return found


@contextlib.contextmanager
def endpoint(*options: str) -> Iterator[Server]:
    """Run the endpoint for as long as the context lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.endpoint", *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield Server(process, int(process.stdout.readline()))
    finally:
        process.communicate(timeout=30)


def taken(command: Sequence[str], server: Server | None = None, *, until_first_call: bool = False) -> Taken:
    """Run a command to its end and measure it.

    Args:
        server: Its CPU time is not counted as a disturbance.
        until_first_call: End it at its first paid call; `wall_s` is the time until then.
    """
    with tempfile.TemporaryFile("w+") as output:
        busy_s, whole_s, served_s = *machine_s(), _cpu_of(server)
        began_s, began_wall_s = time.monotonic(), time.time()
        environ = {**os.environ, "TT_API_KEY": "0f8fad5b-d9cb-469f-a165-70867728950e"}
        # Bytecode is kept, as after an installation: else each start would compile a hundred modules.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environ, stdin=subprocess.DEVNULL)
        rss: list[tuple[float, int]] = []
        watch = threading.Thread(target=_watch, args=(process.pid, began_s, rss), daemon=True)
        watch.start()
        first = _wait_for_first_call(process, server) if until_first_call and server else None
        killer = threading.Timer(LONGEST_S, process.kill)
        killer.start()
        _, status, used = os.wait4(process.pid, 0)
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = (first - began_wall_s) if first else time.monotonic() - began_s
        busy_after_s, whole_after_s = machine_s()
        ours_s = used.ru_utime + used.ru_stime + _cpu_of(server) - served_s
        foreign = max(0.0, busy_after_s - busy_s - ours_s) / max(whole_after_s - whole_s, 1e-9)
        output.seek(0)
        # The kernel's figure is exact, and of one process alone.
        peak = max(used.ru_maxrss * (1 if sys.platform == "darwin" else 1024), *(size for _, size in rss), 0)
        return Taken(
            wall_s, used.ru_utime + used.ru_stime, peak, process.returncode, foreign, output.read(), rss
        )  # fmt: skip


def busy_share(for_s: float = 1.0) -> float:
    """Return the share of the machine that is in use now; 0 where the system does not tell."""
    busy_s, whole_s = machine_s()
    time.sleep(for_s)
    busy_after_s, whole_after_s = machine_s()
    return (busy_after_s - busy_s) / max(whole_after_s - whole_s, 1e-9)


def machine_s() -> tuple[float, float]:
    """Return the seconds that all processors were in use, and all seconds, since the machine started."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(value) / _TICKS for value in file.readline().split()[1:9]]
    except OSError:
        return 0.0, time.monotonic()
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _cpu_of(server: Server | None) -> float:
    if server is None:
        return 0.0
    try:
        found = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(found[11]) + int(found[12])) / _TICKS


def _watch(pid: int, began_s: float, rss: list[tuple[float, int]]) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, IndexError):  # it ended
        while pages := _pages(pid):
            for child in _children(pid):
                with contextlib.suppress(OSError, IndexError):
                    pages += _pages(child)
            rss.append((time.monotonic() - began_s, pages * page))
            time.sleep(_LOOK_S)


def _pages(pid: int) -> int:
    flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
    if flags & _FORKED_ONLY:
        return 0  # its memory is still its parent's, and counted there
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def _children(pid: int) -> Iterator[int]:
    """Yield the processes that a command has started: they count as its own."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            yield from map(int, (task / "children").read_text().split())


def _wait_for_first_call(process: "subprocess.Popen[bytes]", server: Server) -> float | None:
    ends_s = time.monotonic() + LONGEST_S
    while time.monotonic() < ends_s and process.poll() is None:
        first = server.stats()["first"]
        if first:
            process.kill()
            return first
        time.sleep(0.02)
    return None
