"""How a command starts: nothing is imported that it does not need, and the process is set up for what comes."""

import subprocess
import sys

import pytest

from .command import script

_SCRIPT = """
import sys
from banana_batch.cli import app
app.main(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
"""
_SENDS = {
    "aiohttp",
    "asyncio",
    "uvloop",
    "ssl",
    "banana_batch.batch",
    "banana_batch.engine.pool",
    "banana_batch.exchange",
}
_OF_A_RUN = _SENDS | {
    "aiofiles", "banana_batch.cli.apart", "banana_batch.settings", "pydantic", "PIL", "tqdm",
}  # fmt: skip


@pytest.mark.parametrize("command", ["status", "ledger"])
def test_looking_imports_nothing_of_a_run(command: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`status` and `ledger` load no HTTP client, no pictures, no progress bar, no settings model and what it is made with."""
    folder = tmp_path_factory.mktemp("batch")
    made = subprocess.run(
        [sys.executable, "-m", "banana_batch", "run", "-", "--format", "txt", "--sandbox", "-q", "-o", folder / "out"],
        input=b"a cat\n", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    looked = script(_SCRIPT, command, folder / "out")
    looked.check_returncode()
    assert not _OF_A_RUN & set(looked.stderr.split())


_WIDE = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
from banana_batch.cli import running
running._set_limits()
soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(soft == hard or soft == running.DESCRIPTORS, resource.getrlimit(resource.RLIMIT_CORE))
"""

_COLLECTED = """
import gc, sys
from banana_batch import __main__ as command
leave = command._leave
def told(code):
    print(gc.isenabled(), gc.get_freeze_count() > 10_000, file=sys.stderr)
    leave(code)
command._leave = told
sys.argv[1:] = ["status", "--help"]
command.main()
"""


def test_a_wide_run_has_descriptors_for_its_calls() -> None:
    """A soft limit of open files is no limit of `-c`: it is raised as far as the system lets it."""
    told = script(_WIDE)
    told.check_returncode()
    assert told.stdout == "True (0, 0)\n"


def test_garbage_is_collected_and_modules_are_not_looked_at_again() -> None:
    """The collector stands still only while modules are loaded, and leaves them alone afterwards."""
    told = script(_COLLECTED)
    told.check_returncode()
    assert told.stderr == "True True\n"


_TWO = """
import sys
from banana_batch.cli import apart
if sys.argv[1] == "reader":
    from banana_batch.cli import app, run
else:
    from banana_batch.cli import running
print(*sorted(sys.modules), file=sys.stderr)
"""
_READS = {"pydantic", "typer", "banana_batch.settings", "banana_batch.planning", "banana_batch.manifest"}


@pytest.mark.parametrize(("process", "not_loaded", "loaded"), [("reader", _SENDS, _READS), ("run", _READS, _SENDS)])
def test_a_run_s_two_processes_share_the_work(process: str, not_loaded: set[str], loaded: set[str]) -> None:
    """What reads loads nothing that could send; what sends waits for nothing that only reads."""
    told = script(_TWO, process)
    told.check_returncode()
    modules = set(told.stderr.split())
    assert not not_loaded & modules
    assert loaded <= modules
