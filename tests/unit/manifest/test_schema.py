"""What editors check manifests by is what the program takes."""

import json

import pytest

from banana_batch.job import Job
from banana_batch.manifest import schema
from banana_batch.manifest.rows import FIELDS
from banana_batch.settings import Settings, option_name


@pytest.mark.parametrize("name", schema.FILES)
def test_the_shipped_schemas_are_up_to_date(name: str) -> None:
    """`python -m banana_batch.manifest.schema` writes them."""
    assert (schema.FOLDER / name).read_text(encoding="utf-8") == schema.text(schema.FILES[name]())


def test_a_row_is_described_field_by_field() -> None:
    """Rows and jobs made in code have the same fields."""
    properties = schema.row_schema()["properties"]
    assert set(properties) == set(FIELDS) == set(Job.model_fields) - {"meta"}
    assert all("description" in shape for shape in properties.values())


def test_a_job_file_knows_every_option() -> None:
    """Names as in `[run]`; amounts, durations and times may be written as text."""
    run = schema.job_file_schema()["properties"]["run"]
    assert set(run["properties"]) == {option_name(name) for name in Settings.model_fields}
    assert run["additionalProperties"] is False
    for name in ("budget", "stop_by", "timeout", "give_up_after"):
        assert {"type": "string"} in run["properties"][name]["anyOf"]
    assert json.loads(schema.text(run))
