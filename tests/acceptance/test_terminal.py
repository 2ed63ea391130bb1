"""What a person at a terminal sees: on a pseudo-terminal, as the kernel gives it."""

import os
import pty
import re
import signal
import subprocess
from pathlib import Path

from banana_batch.sandbox.config import Latency, SandboxConfig

from .command import ARGV, KEY, environment, until
from .peer import serving

ROWS = "prompt,model\n" + "".join(f"row {number},Nano Banana\n" for number in range(1, 21))
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


def _read(descriptor: int, into: bytearray) -> bool:
    try:
        while data := os.read(descriptor, 1 << 16):
            into += data
    except OSError:
        pass  # nothing there, or the other side is gone
    return True
