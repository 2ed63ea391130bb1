"""Local references: read once, bounded in memory, shared between rows."""

import asyncio
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from banana_batch.endpoint import references
from banana_batch.endpoint.references import ReferenceChanged, References


def _file(path: Path, content: bytes) -> dict[str, str]:
    path.write_bytes(content)
    return {"path": str(path), "sha256": hashlib.sha256(content).hexdigest(), "mime": "image/png"}


def _row(*names: str) -> str:
    return json.dumps({"prompt": "p", "refer_images": names})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which files are read."""
    seen: list[str] = []
    real = references._read

    def read(path: str, digest: str, mime: str) -> bytes:
        seen.append(Path(path).name)
        return real(path, digest, mime)

    monkeypatch.setattr(references, "_read", read)
    return seen


async def test_rows_that_share_a_file_read_it_once(tmp_path: Path, reads: list[str]) -> None:
    """Twenty rows at once and one later: one read, and one copy of the bytes for all."""
    files = json.dumps({"a": _file(tmp_path / "a.png", b"a" * 1000)})
    with ThreadPoolExecutor(2) as executor:
        kept = References(executor)
        bodies = await asyncio.gather(*(kept.compose(_row("a"), files) for _ in range(20)))
        bodies.append(await kept.compose(_row("a"), files))
    assert reads == ["a.png"]
    assert len({id(body[1]) for body in bodies}) == 1
    assert len({b"".join(body) for body in bodies}) == 1


async def test_the_cache_is_bounded(tmp_path: Path, reads: list[str]) -> None:
    """The file that was not used for longest goes first."""
    content = {name: json.dumps({name: _file(tmp_path / f"{name}.png", name.encode() * 300)}) for name in "abc"}
    with ThreadPoolExecutor(1) as executor:
        kept = References(executor, cache_bytes=900)
        for name in "abacab":
            await kept.compose(_row(name), content[name])
    assert reads == ["a.png", "b.png", "c.png", "b.png"]
    assert kept._held <= 900


async def test_several_references_keep_their_places(tmp_path: Path) -> None:
    """Order, repetition and urls in between stay as the row gave them."""
    files = {"a": _file(tmp_path / "a.png", b"A"), "b": _file(tmp_path / "b.png", b"B")}
    with ThreadPoolExecutor(1) as executor:
        parts = await References(executor).compose(_row("b", "https://u.example/", "a", "b"), json.dumps(files))
    sent = json.loads(b"".join(parts))
    url = "data:image/png;base64,"
    assert sent == {"prompt": "p", "refer_images": [url + "Qg==", "https://u.example/", url + "QQ==", url + "Qg=="]}


async def test_a_cancelled_reader_takes_nothing_from_the_others(tmp_path: Path, reads: list[str]) -> None:
    """One row gives up while two wait for the same file: the other still gets it."""
    files = json.dumps({"a": _file(tmp_path / "a.png", b"a")})
    with ThreadPoolExecutor(1) as executor:
        kept = References(executor)
        first, second = (asyncio.create_task(kept.compose(_row("a"), files)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert b"data:image/png" in b"".join(await second)
    assert first.cancelled()
    assert reads == ["a.png"]


async def test_a_failed_read_is_not_remembered(tmp_path: Path) -> None:
    """Once the file is back, so is the reference."""
    path = tmp_path / "a.png"
    files = json.dumps({"a": _file(path, b"a")})
    path.rename(tmp_path / "gone")
    with ThreadPoolExecutor(1) as executor:
        kept = References(executor)
        with pytest.raises(ReferenceChanged, match="No such file"):
            await kept.compose(_row("a"), files)
        (tmp_path / "gone").rename(path)
        assert await kept.compose(_row("a"), files)
