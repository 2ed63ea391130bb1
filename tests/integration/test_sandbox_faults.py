"""Each fault, as its caller sees it and as it stands in the charge log."""

import asyncio
import io
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from PIL import Image

from banana_batch.sandbox.config import SandboxConfig, parse_fault
from banana_batch.sandbox.faults import IMAGE_URL_MARK, Canned, Fault, FaultKind
from banana_batch.sandbox.server import Sandbox

CONFIG = SandboxConfig(slow_image_s=0.16)


@dataclass
class Seen:
    """What came back; `status` 0: no answer at all."""

    status: int
    body: bytes = b""
    headers: Any = None


async def call(sandbox: Sandbox, prompt: str = "a cat", timeout_s: float = 5.0) -> Seen:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    body = {"prompt": prompt, "model": "gemini-3-pro-image-preview"}
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            async with session.post(
                f"{sandbox.base_url}/gemini/image/generate", json=body, headers={"TT-API-KEY": "any"}
            ) as response:
                return Seen(response.status, await response.read(), response.headers)
        except (aiohttp.ClientError, TimeoutError):
            return Seen(0)


async def bought(sandbox: Sandbox, fault: Fault) -> str:
    sandbox.canned.append(fault)
    seen = await call(sandbox)
    assert seen.status == 200
    *_, charge = sandbox.charges()
    return f"{sandbox.base_url}/image/{charge.image}.png"


@pytest.mark.parametrize(
    ("kind", "status", "part", "charged"),
    [
        (FaultKind.TOO_MANY, 429, b'"status":"FAILED"', False),
        (FaultKind.TOO_MANY_RETRY_AFTER, 429, b'"status":"FAILED"', False),
        (FaultKind.QUEUE_FULL, 499, b"Queue exhausted", False),
        (FaultKind.SERVER_ERROR, 500, b'"status":"FAILED"', False),
        (FaultKind.UNAVAILABLE, 503, b'"status":"FAILED"', False),
        (FaultKind.BAD_GATEWAY, 502, b"<html>", False),
        (FaultKind.GATEWAY_TIMEOUT, 504, b"timed out", True),
        (FaultKind.DROP_BEFORE_CHARGE, 0, b"", False),
        (FaultKind.DROP_AFTER_CHARGE, 0, b"", True),
        (FaultKind.TRUNCATED_JSON, 200, b'{"status":"SUCCESS"', True),
        (FaultKind.FAILED_200, 200, b'"data":null', False),
        (FaultKind.MISSING_URL, 200, b'"refer_images":null,"quota":13', True),
    ],
)
async def test_a_fault_is_what_its_name_says(kind: FaultKind, status: int, part: bytes, charged: bool) -> None:
    """Status, body and charge of each kind; a test may turn the charge round."""
    async with Sandbox(None, CONFIG) as sandbox:
        sandbox.canned.append(Fault(kind))
        seen = await call(sandbox)
        assert seen.status == status
        assert part in seen.body
        assert len(list(sandbox.charges())) == sandbox.stats.charged == int(charged)
        assert (seen.headers or {}).get("Retry-After") == ("2" if kind is FaultKind.TOO_MANY_RETRY_AFTER else None)
        sandbox.canned.append(Fault(kind, charged=not charged))
        assert (await call(sandbox)).status == status
        assert len(list(sandbox.charges())) == 1
        assert (await call(sandbox)).status == 200


async def test_a_hanging_call_lets_go_when_its_caller_leaves() -> None:
    """It is charged, says nothing, and its place in the queue is free again soon after the caller gave up."""
    async with Sandbox(None, CONFIG) as sandbox:
        sandbox.canned.append(Fault(FaultKind.HANG))
        assert (await call(sandbox, timeout_s=0.1)).status == 0
        assert sandbox.stats.charged == 1
        async with asyncio.timeout(3):
            while sandbox.stats.in_flight:
                await asyncio.sleep(0.01)


async def test_a_missing_picture_may_come_late() -> None:
    """image-404 is for ever, or for as many fetches as it says."""
    async with Sandbox(None, CONFIG) as sandbox, aiohttp.ClientSession() as session:
        late = await bought(sandbox, Fault(FaultKind.IMAGE_404, tries=2))
        never = await bought(sandbox, Fault(FaultKind.IMAGE_404))
        statuses = []
        for url in (late, late, late, never, never, never):
            async with session.get(url) as response:
                statuses.append(response.status)
        assert statuses == [404, 404, 200, 404, 404, 404]


async def test_a_cut_picture_ends_before_its_length() -> None:
    """The whole length is promised, half of it comes; the second fetch brings all."""
    async with Sandbox(None, CONFIG) as sandbox, aiohttp.ClientSession() as session:
        url = await bought(sandbox, Fault(FaultKind.IMAGE_CUT, tries=1))
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(url) as response:
                await response.read()
        async with session.get(url) as response:
            assert len(await response.read()) == response.content_length


async def test_a_slow_picture_is_whole_in_the_end() -> None:
    """It takes the seconds that were ordered and is a whole PNG."""
    async with Sandbox(None, CONFIG) as sandbox, aiohttp.ClientSession() as session:
        url = await bought(sandbox, Fault(FaultKind.IMAGE_SLOW))
        started_s = asyncio.get_running_loop().time()
        async with session.get(url) as response:
            data = await response.read()
        assert asyncio.get_running_loop().time() - started_s >= 0.15
        Image.open(io.BytesIO(data)).load()


async def test_a_mislabelled_picture_is_jpeg_under_a_png_name() -> None:
    """Name and content type say PNG, the bytes are JPEG."""
    async with Sandbox(None, CONFIG) as sandbox, aiohttp.ClientSession() as session:
        url = await bought(sandbox, Fault(FaultKind.IMAGE_MISLABELLED))
        async with session.get(url) as response:
            assert (url[-4:], response.content_type) == (".png", "image/png")
            assert (await response.read()).startswith(b"\xff\xd8\xff")


async def test_an_answer_can_be_made_by_hand() -> None:
    """Status, headers and body as ordered, with the url of a picture that was sold; or raw bytes on the wire."""
    async with Sandbox(None, CONFIG) as sandbox, aiohttp.ClientSession() as session:
        sandbox.canned.append(Canned(207, {"X-Odd": "yes"}, IMAGE_URL_MARK.encode(), charged=True))
        seen = await call(sandbox)
        assert (seen.status, seen.headers["X-Odd"]) == (207, "yes")
        async with session.get(seen.body.decode()) as response:
            assert response.status == 200
        sandbox.canned.append(Canned(wire=b"HTTP/1.1 2OO garbage\r\n\r\n"))
        assert (await call(sandbox)).status == 0
        sandbox.canned.append(Canned(wire=b"HTTP/1.1 418 No\r\nContent-Length: 2\r\n\r\nhi"))
        assert (await call(sandbox)).body == b"hi"
        assert sandbox.stats.charged == 1


async def test_the_same_seed_is_the_same_night() -> None:
    """In another order and at another concurrency each request meets what it met before; another seed differs."""
    shares = tuple(parse_fault(text) for text in ("429=0.2", "500=0.2", "missing-url=0.2"))
    prompts = [f"cat {number}" for number in range(40)]

    async def night(seed: int, order: list[str], at_once: bool) -> dict[str, tuple[int, int]]:
        async with Sandbox(None, SandboxConfig(seed=seed, faults=shares)) as sandbox:
            if at_once:
                seen = await asyncio.gather(*(call(sandbox, prompt) for prompt in order))
            else:
                seen = [await call(sandbox, prompt) for prompt in order]
        return {prompt: (one.status, len(one.body) // 50) for prompt, one in zip(order, seen, strict=True)}

    first = await night(1, prompts, at_once=False)
    assert await night(1, prompts[::-1], at_once=True) == first
    assert await night(2, prompts, at_once=True) != first
    assert {status for status, _ in first.values()} == {200, 429, 500}
