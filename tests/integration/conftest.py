"""What whole runs share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.whole_runs import scratch


@pytest.fixture
def out() -> Iterator[Path]:
    """Give a folder for a batch, in memory where that can be."""
    with scratch() as folder:
        yield folder / "out"
