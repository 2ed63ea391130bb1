"""The memory that some code takes, in a process of its own."""

import subprocess
import sys

# A process begins with the peak of the one that started it: the tests' own must not hide what is measured.
_SMALL = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"
_PEAK = "\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def printed_and_peak(code: str, *arguments: object) -> tuple[list[int], int]:
    """Run code with arguments; return the numbers that it printed, and its peak in bytes."""
    command = [sys.executable, "-c", _SMALL, code + _PEAK, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, check=True, text=True)
    *printed, peak = map(int, ran.stdout.split())
    return printed, peak * (1 if sys.platform == "darwin" else 1024)
