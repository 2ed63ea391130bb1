"""Write a manifest and plan it."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.manifest.planning import Plan, Planned, plan_files


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Write `content` as `name` into a folder of the test's own, and plan it with the given settings."""

    def planned(name: str, content: str | bytes, **settings: Any) -> Planned:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return plan_files([name], tmp_path, **settings)

    return planned
