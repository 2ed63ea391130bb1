"""The manifests of jobs/ are there to be run."""

from pathlib import Path
from typing import Any

import pytest

from banana_batch.manifest import read_job_file
from banana_batch.settings import resolve
from tests.unit.manifest.planning import plan_files

JOBS = Path(__file__).parents[3] / "jobs"
COUNTS = {
    "demo.csv": 12, "list.txt": 5, "sheet.toml": 6, "matrix.toml": 24, "references.toml": 4, "parti-excerpt.tsv": 60,
    "overnight.toml": 74,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_every_manifest_of_the_gallery_plans_cleanly(name: str, count: int) -> None:
    """No problem, no warning, no two names alike, and the options of a job file are real ones."""
    options: dict[str, Any] = {}
    if name.endswith(".toml"):
        run = resolve({}, {}, dict(read_job_file(JOBS / name).run))
        options = {"filename": run.filename}
    planned = plan_files([name], JOBS, **options)
    assert (planned.problems, planned.warnings) == ([], [])
    assert len(planned.jobs) == count
    stems = [job.stem.replace("\x01", str(place)) for place, job in enumerate(planned.jobs)]
    assert len(set(stems)) == count


def test_each_says_in_its_first_lines_what_it_shows() -> None:
    """Where the format has comments."""
    for path in JOBS.glob("*.toml"):
        first, second = path.read_text().splitlines()[:2]
        assert first.startswith("#:schema ")
        assert (path.parent / first.split()[1]).is_file()
        assert second.startswith("# ")
    assert (JOBS / "list.txt").read_text().startswith("# ")


def test_the_excerpt_has_prompts_with_quotation_marks_and_its_licence() -> None:
    """Sixty rows of PartiPrompts, as they are."""
    planned = plan_files(["parti-excerpt.tsv"], JOBS)
    assert any('"' in prompt for prompt in planned.prompts)
    assert "Apache License" in (JOBS / "parti-excerpt.LICENSE").read_text()
