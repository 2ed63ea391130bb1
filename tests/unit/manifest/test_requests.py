"""Identity: what makes two jobs the same purchase, pinned for ever."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from banana_batch.job import Job
from banana_batch.manifest import plan_jobs
from banana_batch.settings import Settings
from tests.unit.manifest.planning import Plan, plan_files

PNG = b"\x89PNG\r\n\x1a\n" + b"a reference"

# Were one of these to change, an upgrade would buy every row of every batch without ids anew.
VECTORS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a cute cat"}, "fc3107d1828712e08069517a34849910"),
    ({"prompt": " ein Fuchs\n“über” 狐 \u0000 \u2028 </script>"}, "07dc80bdd314545924c8886c6ccbdecb"),
    ({"prompt": "a", "model": "Nano Banana"}, "911110df0e0eee596003a6e7049c0e71"),
    (
        {"prompt": "a", "model": "Nano Banana 2", "aspect_ratio": "1:8", "image_size": "4K"},
        "3ec47da63c61f268801176f1702b11f2",
    ),
    (
        {"prompt": "a", "google_search": True, "image_search": "TRUE", "thinking_level": "High"},
        "615c1e2c2433e9c2264d1e9290d8cf86",
    ),
    ({"prompt": "a", "refer_images": ["https://example.com/1.png", "own.png"]}, "3e2623a3dbc872794b1fb00f323e63cc"),
    (
        {"prompt": "a", "extra": {"zeta": 1, "alpha": {"b": [1.5, None, "é"], "a": True}}},
        "e008b7ec1abfe23f7bf420b47b264947",
    ),
]


@pytest.mark.parametrize(("row", "key"), VECTORS)
def test_keys_are_pinned(plan: Plan, tmp_path: Path, row: dict[str, Any], key: str) -> None:
    """The canonical request never changes within its version."""
    (tmp_path / "own.png").write_bytes(PNG)
    assert plan("a.jsonl", json.dumps(row)).jobs[0].key.hex() == key


def test_the_key_is_the_hash_of_the_documented_text(plan: Plan) -> None:
    """Canonical: version, then the wire body with the spec's defaults, keys sorted, compact, UTF-8."""
    text = (
        'banana_batch request 1\n{"aspect_ratio":"1:1","google_search":false,"image_search":false,"image_size":"1K",'
        '"model":"gemini-3-pro-image-preview","prompt":"ü\\n"}'
    )
    assert plan("a.jsonl", '{"prompt": "ü\\n"}').jobs[0].key == hashlib.sha256(text.encode()).digest()[:16]


@pytest.mark.parametrize(
    "row",
    [
        {"model": "gemini-3-pro-image-preview"},
        {"model": "nano banana PRO"},
        {"aspect_ratio": "1:1", "image_size": "1K"},
        {"google_search": False, "image_search": "false"},
        {"refer_images": [], "extra": {}, "thinking_level": None},
        {"id": "x", "filename": "y", "copies": 1, "note": "z"},
    ],
)
def test_a_default_spelled_out_or_an_alias_is_the_same_purchase(plan: Plan, row: dict[str, Any]) -> None:
    """Nothing but a changed request makes a known job new."""
    plain = plan("a.jsonl", '{"prompt": "a"}').jobs[0].key
    assert plan("b.jsonl", json.dumps({"prompt": "a", **row})).jobs[0].key == plain


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a "},
        {"model": "Nano Banana 2"},
        {"aspect_ratio": "16:9"},
        {"image_size": "2K"},
        {"google_search": True},
        {"image_search": True},
        {"thinking_level": "Minimal"},
        {"refer_images": ["https://example.com/1.png"]},
        {"extra": {"seed": 1}},
    ],
)
def test_every_field_of_the_request_makes_it_another(plan: Plan, row: dict[str, Any]) -> None:
    """What changes the image changes the key."""
    plain = plan("a.jsonl", '{"prompt": "a"}').jobs[0].key
    assert plan("b.jsonl", json.dumps({"prompt": "a", **row})).jobs[0].key != plain


def test_a_default_is_the_same_as_the_row_saying_so(plan: Plan) -> None:
    """Where a value comes from is no part of the request."""
    said = plan("a.jsonl", '{"prompt": "a", "image_size": "2K", "google_search": true}')
    default = plan("b.jsonl", '{"prompt": "a"}', image_size="2K", google_search=True)
    assert said.jobs[0].key == default.jobs[0].key
    assert said.jobs[0].request == default.jobs[0].request


def test_a_reference_counts_by_content_wherever_it_lies(tmp_path: Path) -> None:
    """Moved or renamed: the same purchase; changed: another."""
    for folder, content in (("one", PNG), ("two", PNG), ("three", PNG + b"!")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.png").write_bytes(content)
        (tmp_path / folder / "a.csv").write_text(f"prompt,refer_images\na,{folder}.png\n")
    one, two, three = (plan_files([f"{folder}/a.csv"], tmp_path).jobs[0] for folder in ("one", "two", "three"))
    assert one.key == two.key != three.key
    assert json.loads(one.request)["refer_images"] == ["one.png"]
    digest = hashlib.sha256(PNG).hexdigest()
    path = str(tmp_path / "one" / "one.png")
    assert json.loads(one.references or "") == {"one.png": {"path": path, "sha256": digest, "mime": "image/png"}}


def test_the_wire_body_is_compact_with_prompt_and_model_first(plan: Plan) -> None:
    """The exact bytes that are sent."""
    row = {"extra": {"seed": 1}, "image_size": "1K", "prompt": "é \u2028", "aspect_ratio": "4:5"}
    expected = (
        '{"prompt":"é \u2028","model":"gemini-3-pro-image-preview","aspect_ratio":"4:5","image_size":"1K","seed":1}'
    )
    assert plan("a.jsonl", json.dumps(row)).jobs[0].request == expected


def test_jobs_made_in_code_are_the_same_purchases(plan: Plan) -> None:
    """One path: a Job and a row that say the same have the same key, request and name."""
    row: dict[str, Any] = {"prompt": "a b", "model": "Nano Banana 2", "id": "x", "copies": 2, "aspect_ratio": "4:5"}
    made = list(plan_jobs([Job(**row, meta={"note": 1, "prompt": "mine"})], Settings()))
    read = plan("a.jsonl", json.dumps({**row, "note": 1})).jobs
    assert [(job.id, job.key, job.request, job.stem) for job in made] == [
        (job.id, job.key, job.request, job.stem) for job in read
    ]
    assert json.loads(made[0].meta or "") == {"note": 1, "prompt": "mine"}
    assert (made[0].file, made[0].line) == ("jobs", 1)
