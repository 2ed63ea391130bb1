"""Reference images of this machine are looked at before any credit is spent."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from banana_batch.manifest import references
from tests.unit.manifest.planning import Planned, plan_files

HEADS = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/webp": b"RIFF\x10\x00\x00\x00WEBP",
    "image/heic": b"\x00\x00\x00\x18ftypheic",
    "image/heif": b"\x00\x00\x00\x18ftypmif1",
}


def _plan(folder: Path, *rows: dict[str, Any]) -> Planned:
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"prompt": "p", **row}) for row in rows))
    return plan_files(["a.jsonl"], folder)


@pytest.mark.parametrize(("mime", "head"), HEADS.items())
def test_the_bytes_decide_the_type(tmp_path: Path, mime: str, head: bytes) -> None:
    """Not the name."""
    (tmp_path / "x.txt").write_bytes(head + b"rest")
    (job,) = _plan(tmp_path, {"refer_images": ["x.txt"]}).jobs
    assert json.loads(job.references or "")["x.txt"]["mime"] == mime


def test_what_is_no_usable_image_is_told(tmp_path: Path) -> None:
    """Missing, a folder, a pipe, no image, too large, a scheme that can't be read, a path that can't be."""
    (tmp_path / "text.png").write_bytes(b"GIF89a no")
    (tmp_path / "large.png").write_bytes(HEADS["image/png"] + bytes(7 << 20))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = ["none.png", "text.png", "large.png", "folder.png", "pipe.png", "file:///etc/passwd", "a\x00b", "x" * 5000]
    planned = _plan(tmp_path, *({"refer_images": [name]} for name in names))
    assert planned.jobs == []
    assert [problem.line for problem in planned.problems] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {problem.field for problem in planned.problems} == {"refer_images"}
    assert "(No such file or directory)" in planned.problems[0].found
    assert planned.problems[2].allowed == "at most 7 MiB"


def test_at_most_14_and_3_for_the_old_models(tmp_path: Path) -> None:
    """The maker's limits, known before anything is paid for."""
    url = "https://example.com/a.png"
    rows: list[dict[str, Any]] = [
        {"refer_images": [url] * 14},
        {"refer_images": [url] * 15},
        {"refer_images": [url] * 3, "model": "Nano Banana"},
        {"refer_images": [url] * 4, "model": "Nano Banana"},
    ]
    planned = _plan(tmp_path, *rows)
    assert [job.line for job in planned.jobs] == [1, 3]
    assert [problem.found for problem in planned.problems] == ["15 images", "4 images"]


def test_urls_go_as_they_are(tmp_path: Path) -> None:
    """Nothing is fetched; data urls are the endpoint's business too."""
    urls = ["https://example.com/ä?x=1|2", "HTTP://example.com/b", "data:image/png;base64,AAAA"]
    (job,) = _plan(tmp_path, {"refer_images": urls}).jobs
    assert json.loads(job.request)["refer_images"] == urls
    assert job.references is None


def test_a_cell_holds_a_json_array_or_a_list_with_bars(tmp_path: Path) -> None:
    """In CSV and TSV."""
    (tmp_path / "b.png").write_bytes(HEADS["image/png"])
    (tmp_path / "a.tsv").write_text(
        'prompt\trefer_images\np\thttps://e.com/a | b.png\np\t["https://e.com/a", "b.png"]\n'
    )
    planned = plan_files(["a.tsv"], tmp_path)
    assert [request["refer_images"] for request in planned.requests] == [["https://e.com/a", "b.png"]] * 2
    assert len({job.key for job in planned.jobs}) == 1


def test_a_file_that_many_rows_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once more after it changed."""
    (tmp_path / "b.png").write_bytes(HEADS["image/png"])
    references._looked_at.cache_clear()
    rows: list[dict[str, Any]] = [{"refer_images": ["b.png"], "id": str(number)} for number in range(500)]
    first = _plan(tmp_path, *rows)
    assert references._looked_at.cache_info().misses == 1
    (tmp_path / "b.png").write_bytes(HEADS["image/png"] + b"changed")
    assert _plan(tmp_path, *rows).jobs[0].key != first.jobs[0].key
    assert references._looked_at.cache_info().misses == 2
