"""JSON Schemas of rows and job files, for editors that complete and check them; made from the pydantic models.

They are shipped beside this module as `row.schema.json` and `jobfile.schema.json`;
`python -m banana_batch.manifest.schema` writes them anew.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator

from banana_batch.settings import Settings, option_name

from .rows import CHOICES, RequestFields, Row

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path(__file__).parent


def row_schema() -> dict[str, Any]:
    """Return the schema of one row: a line of `.jsonl`, an element of `.json`, a table under `[[jobs]]`."""
    return {"$schema": _DIALECT, **Row.model_json_schema()}


def job_file_schema() -> dict[str, Any]:
    """Return the schema of a job file."""
    row, defaults = Row.model_json_schema(), RequestFields.model_json_schema()
    text_list = {"type": "array", "items": {"type": "string"}}
    return {
        "$schema": _DIALECT,
        "title": "Job file",
        "description": "One file that describes a night.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "run": _run_schema(),
            "defaults": {**defaults, "additionalProperties": False},
            "manifest": {
                "description": "Files with rows, relative to this one; patterns too",
                "anyOf": [{"type": "string"}, text_list],
            },
            "jobs": {"description": "Rows", "type": "array", "items": row},
            "matrix": _matrix_schema(row["properties"]),
        },
    }


def _run_schema() -> dict[str, Any]:
    schema = Settings.model_json_schema()
    for name, field in Settings.model_fields.items():
        if any(isinstance(part, BeforeValidator) for part in _metadata(field.annotation, field.metadata)):
            shape = schema["properties"][option_name(name)]
            kinds = shape.pop("anyOf", None) or [{"type": shape.pop("type")}]
            # Written as text too: "6h", "$5", "06:30".
            shape["anyOf"] = [kind for kind in kinds if kind.get("type") != "null"] + [{"type": "string"}]
    return {**schema, "title": "Options of run", "description": "As on the command line, with underscores"}


def _metadata(annotation: Any, found: list[Any]) -> list[Any]:
    inner = [part for each in getattr(annotation, "__args__", ()) for part in getattr(each, "__metadata__", ())]
    return [*found, *inner]


def _matrix_schema(fields: dict[str, Any]) -> dict[str, Any]:
    """Each list is an axis; so a choice may be a list of what it may be in a row."""
    properties = {
        name: {"anyOf": [shape, {"type": "array", "items": shape, "minItems": 1}]} if name in CHOICES else shape
        for name, shape in fields.items()
    }
    return {
        "type": "object",
        "description": "Every combination of the lists; prompt, id and filename are templates over the columns",
        "properties": properties,
        "additionalProperties": {"type": ["string", "number", "boolean", "array"]},
    }


def text(schema: dict[str, Any]) -> str:
    """Return a schema as its file has it."""
    return json.dumps(schema, indent=2, ensure_ascii=False, default=str) + "\n"


FILES = {"row.schema.json": row_schema, "jobfile.schema.json": job_file_schema}

if __name__ == "__main__":
    for name, make in FILES.items():
        (FOLDER / name).write_text(text(make()), encoding="utf-8")
