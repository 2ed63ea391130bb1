"""Rows that a batch knows already: named otherwise, changed, shared."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from banana_batch.errors import Exit, ManifestError
from tests.acceptance.command import command, here
from tests.integration.answers_peer import answer, failed
from tests.integration.whole_runs import Arrived, Gateway, attempts, gateway, run_batch
from tests.unit.images.samples import png


class Strict:
    """Refuses the first call, and keeps each request."""

    def __init__(self, *refusals: bytes | None) -> None:
        self.refusals = list(refusals)
        self.requests: list[dict[str, Any]] = []

    def __call__(self, peer: Gateway, arrived: Arrived) -> bytes | None:
        self.requests.append(arrived.request)
        return self.refusals.pop(0) if self.refusals else peer.sold()


@pytest.mark.parametrize("between", ["402", "doubt", "redo failed", "redo done"])
@pytest.mark.parametrize("new", ["references/cat.png", "./refs/cat.png"])
async def test_a_reference_is_sent_whatever_it_is_called(out: Path, between: str, new: str) -> None:
    """The same file, moved or spelled otherwise, and sent again: its content leaves, never a bare name."""
    first = {"402": answer(402, failed("empty")), "doubt": None, "redo failed": answer(400, failed("no"))}.get(between)
    strict = Strict(*([] if between == "redo done" else [first]))
    old = out.parent / "refs" / "cat.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(png())
    async with gateway(strict) as peer:
        await run_batch(out, peer.url, [], rows=[{"id": "x", "prompt": "p", "refer_images": ["refs/cat.png"]}])
        if new.startswith("references"):
            old.parent.rename(out.parent / "references")
        words = {"redo failed": ["--failed"], "redo done": ["x"]}.get(between)
        if words:
            assert here("redo", out, *words).code == 0
        rows = [{"id": "x", "prompt": "p", "refer_images": [new]}]
        left = await run_batch(out, peer.url, [], rows=rows, in_doubt="resend")
    assert (left.exit, len(strict.requests)) == (Exit.DONE, 2)
    assert [request["refer_images"][0][:22] for request in strict.requests] == ["data:image/png;base64,"] * 2


SAME = [{"id": "x", "prompt": "cat"}, {"id": "y", "prompt": "cat"}]


async def test_a_shared_row_that_changes_is_not_called_done(out: Path) -> None:
    """y has x's image; asked for something else, the change is told, and bought where that is accepted."""
    async with gateway() as peer:
        await run_batch(out, peer.url, [], rows=SAME, dedupe="reuse")
        changed = [SAME[0], {"id": "y", "prompt": "dog"}]
        with pytest.raises(ManifestError, match="1 row changed"):
            await run_batch(out, peer.url, [], rows=changed, dedupe="reuse")
        left = await run_batch(out, peer.url, [], rows=changed, dedupe="reuse", on_change="accept")
    assert (left.exit, peer.posts, len(attempts(out))) == (Exit.DONE, ["cat", "dog"], 2)


async def test_a_shared_image_is_repaired_too(out: Path) -> None:
    """Its file deleted: it is fetched again under its own name, and nothing is paid."""
    async with gateway() as peer:
        await run_batch(out, peer.url, [], rows=SAME, dedupe="reuse")
        (shared,) = (out / "images").glob("00002-*")
        shared.unlink()
        repaired = await asyncio.to_thread(command, "verify", out, "--repair", cwd=out.parent)
        assert (repaired.code, shared.exists()) == (0, True), repaired.err
    assert peer.posts == ["cat"]
