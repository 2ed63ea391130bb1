"""What came of a manifest, for the tests of this room."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from banana_batch.errors import Problem
from banana_batch.manifest import Manifests, open_manifests
from banana_batch.models import PlannedJob
from banana_batch.settings import Settings


@dataclass
class Planned:
    """All that came of a manifest."""

    manifests: Manifests
    jobs: list[PlannedJob]
    problems: list[Problem]
    warnings: list[Problem]

    @property
    def told(self) -> list[str]:
        """The problems without the file's name."""
        return [str(problem).split(":", 1)[1] for problem in self.problems]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The wire bodies."""
        return [json.loads(job.request) for job in self.jobs]

    @property
    def prompts(self) -> list[str]:
        """The prompts as they are sent."""
        return [request["prompt"] for request in self.requests]


Plan = Callable[..., Planned]


def plan_files(names: list[str], folder: Path, stdin: bytes = b"", **settings: Any) -> Planned:
    """Plan manifests of a folder."""
    manifests = open_manifests(names, Settings(**settings), folder, BytesIO(stdin))
    problems: list[Problem] = []
    warnings: list[Problem] = []
    jobs = list(manifests.jobs(problems, warnings))
    return Planned(manifests, jobs, problems, warnings)
