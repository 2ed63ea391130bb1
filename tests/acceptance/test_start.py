"""Looking at a batch is answered at once: nothing is imported for it that only a run needs."""

import subprocess
import sys

import pytest

_SCRIPT = """
import sys
from banana_batch.cli import app
app.main(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
"""
_OF_A_RUN = {"aiohttp", "aiofiles", "PIL", "tqdm", "pydantic_settings", "banana_batch.batch", "banana_batch.settings"}


@pytest.mark.parametrize("command", ["status", "ledger"])
def test_looking_imports_nothing_of_a_run(command: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`status` and `ledger` load no HTTP client, no pictures, no progress bar, no settings model."""
    folder = tmp_path_factory.mktemp("batch")
    made = subprocess.run(
        [sys.executable, "-m", "banana_batch", "run", "-", "--format", "txt", "--sandbox", "-q", "-o", folder / "out"],
        input=b"a cat\n", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    looked = subprocess.run(
        [sys.executable, "-c", _SCRIPT, command, folder / "out"], capture_output=True, text=True, timeout=60, check=True
    )
    assert not _OF_A_RUN & set(looked.stderr.split())
