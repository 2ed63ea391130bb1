"""What a person at a terminal sees: on a pseudo-terminal, as the kernel gives it."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

from banana_batch.sandbox.config import Latency, SandboxConfig

from .command import ARGV, KEY, environment, results, until
from .peer import serving

ROWS = "prompt,model\n" + "".join(f"row {number},Nano Banana\n" for number in range(1, 21))
# Makes standard input the terminal that hangs the process up when it goes.
_OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
SLOW = SandboxConfig(plain_pictures=True, latency=Latency("fixed", 1.0))


def test_on_a_terminal_the_drain_tells_what_is_at_stake(tmp_path: Path) -> None:
    """Ctrl-C on a terminal: a line tells how many calls are on the wire and the credits at stake; 7 when they are in."""
    (tmp_path / "rows.csv").write_text(ROWS)
    ours, theirs = pty.openpty()
    with serving(SLOW) as peer:
        process = subprocess.Popen(
            [*ARGV, "run", "rows.csv", "-c", "3", "--base-url", peer.base_url], cwd=tmp_path,
            env=environment(tmp_path, TT_API_KEY=KEY, TERM="xterm", COLUMNS="200"),
            stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = bytearray()
        os.set_blocking(ours, False)
        try:
            until(lambda: len(peer.charges) == 3)
            process.send_signal(signal.SIGINT)
            until(lambda: _read(ours, shown) and process.poll() is not None)
        finally:
            process.kill()
            process.wait(60)
            os.close(ours)
        assert process.returncode == 7
        assert len(peer.charges) == 3
    text = shown.decode(errors="replace")
    assert re.search(r"3 calls on the wire.*150 credits \(\$1\.50\) at stake", text), text
    assert "Traceback" not in text
    assert "3/20" in text, "the bar is drawn"


def test_a_closed_window_cuts_nothing_off(tmp_path: Path) -> None:
    """The terminal goes away: what is on the wire is let end and stored, as after Ctrl-C; nothing more is sent."""
    (tmp_path / "rows.csv").write_text(ROWS)
    ours, theirs = pty.openpty()
    with serving(SLOW) as peer:
        process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, *ARGV, "run", "rows.csv", "-c", "3", "--base-url", peer.base_url],
            cwd=tmp_path, env=environment(tmp_path, TT_API_KEY=KEY, TERM="xterm"),
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        try:
            until(lambda: len(peer.charges) == 3)
            os.close(ours)
            process.send_signal(signal.SIGHUP)  # the shell's, beside the kernel's
            assert process.wait(60) == 7
        finally:
            process.kill()
            process.wait(60)
        assert len(peer.charges) == 3
    assert [row["state"] for row in results(tmp_path / "outputs" / "rows")].count("done") == 3


def test_nohup_is_obeyed(tmp_path: Path) -> None:
    """Who started it with SIGHUP ignored wants it to go on."""
    (tmp_path / "rows.csv").write_text(ROWS)
    with serving(SandboxConfig(plain_pictures=True, latency=Latency("fixed", 0.3))) as peer:
        process = subprocess.Popen(
            ["nohup", *ARGV, "run", "rows.csv", "-q", "-c", "8", "--base-url", peer.base_url], cwd=tmp_path,
            env=environment(tmp_path, TT_API_KEY=KEY), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: len(peer.charges) >= 1)
            process.send_signal(signal.SIGHUP)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(60)
        assert len(peer.charges) == 20


def _read(descriptor: int, into: bytearray) -> bool:
    try:
        while data := os.read(descriptor, 1 << 16):
            into += data
    except OSError:
        pass  # nothing there, or the other side is gone
    return True
