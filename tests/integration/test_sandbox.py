"""The sandbox over real sockets."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace
from PIL import Image

from banana_batch.errors import SettingsError
from banana_batch.models import Kind
from banana_batch.money import MICRO
from banana_batch.sandbox.charges import read_charges
from banana_batch.sandbox.config import Latency, SandboxConfig
from banana_batch.sandbox.faults import Canned, Fault, FaultKind
from banana_batch.sandbox.server import HOST, Sandbox, choose_port

PRO = "gemini-3-pro-image-preview"
QUICK = SandboxConfig(plain_pictures=True)
KEY = {"TT-API-KEY": "any"}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def buy(
    session: aiohttp.ClientSession, sandbox: Sandbox, prompt: str = "a cat", **fields: Any
) -> tuple[int, Any]:
    body = {"prompt": prompt, "model": PRO} | fields
    async with session.post(f"{sandbox.base_url}/gemini/image/generate", json=body, headers=KEY) as response:
        return response.status, await response.json()


async def fetch(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with session.get(url) as response:
        return response.status, await response.read()


async def test_an_image_is_sold_as_documented(session: aiohttp.ClientSession) -> None:
    """The answer has the documented fields; the picture behind the url is a whole PNG of the documented size."""
    async with Sandbox(None, SandboxConfig()) as sandbox:
        status, answer = await buy(session, sandbox, refer_images=["https://cdn.ttapi.io/1.png"], aspect_ratio="16:9")
        assert (status, answer["status"], answer["message"]) == (200, "SUCCESS", "success")
        url = answer["data"].pop("image_url")
        assert answer["data"] == {"prompt": "a cat", "refer_images": ["https://cdn.ttapi.io/1.png"], "quota": 13}
        assert url.startswith(f"http://127.0.0.1:{sandbox.port}/image/")
        async with session.get(url) as response:
            assert response.content_type == "image/png"
            data = await response.read()
        image = Image.open(io.BytesIO(data))
        image.load()
        assert (image.format, image.size) == ("PNG", (1376, 768))
        assert (await fetch(session, url))[1] == data
        async with session.head(url) as response:
            assert int(response.headers["Content-Length"]) == len(data)


async def test_refusals_cost_nothing_and_say_so_as_documented(session: aiohttp.ClientSession) -> None:
    """No key is the documented 401 without `data`; bad values, paths and methods get the FAILED envelope."""
    async with Sandbox(None, QUICK) as sandbox:
        url = f"{sandbox.base_url}/gemini/image/generate"
        for headers in ({}, {"TT-API-KEY": " "}):
            async with session.post(url, json={"prompt": "a", "model": PRO}, headers=headers) as response:
                assert response.status == 401
                assert await response.json() == {
                    "status": "FAILED",
                    "message": "Wrong TT-API-KEY or email is not activated.",
                }
        status, answer = await buy(session, sandbox, image_size="2k")
        assert (status, answer["status"], answer["data"]) == (400, "FAILED", None)
        assert "image_size" in answer["message"]
        for method, path, expected in (("GET", "/gemini/image/generate", 405), ("POST", "/gemini", 404), ("GET", "/image/x.png", 404), ("GET", "/_stats", 404)):  # fmt: skip
            async with session.request(method, sandbox.base_url + path) as response:
                assert response.status == expected
        assert list(sandbox.charges()) == []
        assert (sandbox.stats.calls, sandbox.stats.refused, sandbox.stats.charged) == (4, 4, 0)


async def test_a_decimal_price_is_a_decimal_number(session: aiohttp.ClientSession) -> None:
    """2.5 credits come as the JSON number 2.5, exactly."""
    prices = dict.fromkeys(QUICK.prices, 2500000)
    async with Sandbox(None, replace(QUICK, prices=prices)) as sandbox:
        body = json.dumps({"prompt": "a", "model": PRO}).encode()
        async with session.post(f"{sandbox.base_url}/gemini/image/generate", data=body, headers=KEY) as response:
            assert b'"quota":2.5}' in await response.read()


async def test_references_of_many_megabytes_are_taken(session: aiohttp.ClientSession) -> None:
    """Fourteen data URLs far above aiohttp's own limit make an order, and the answer stays small."""
    async with Sandbox(None, QUICK) as sandbox:
        references = ["data:image/png;base64," + "A" * 1_000_000] * 14
        body = io.BytesIO(json.dumps({"prompt": "a", "model": PRO, "refer_images": references}).encode())
        async with session.post(f"{sandbox.base_url}/gemini/image/generate", data=body, headers=KEY) as response:
            assert response.status == 200
            assert len(await response.read()) < 2000


async def test_a_charge_is_logged_before_its_latency(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """While the call is still in flight, its line is in the log: who is killed now was charged."""
    async with Sandbox(tmp_path, replace(QUICK, latency=Latency("fixed", 30.0))) as sandbox:
        call = asyncio.create_task(buy(session, sandbox))
        while not sandbox.stats.charged:
            await asyncio.sleep(0.001)
        assert [charge.prompt for charge in read_charges(tmp_path)] == ["a cat"]
        assert not call.done()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert sandbox.stats.in_flight == 1  # the endpoint goes on, as the vendor's does


async def test_urls_outlive_the_process(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """The next life on the same port and folder serves the very bytes that the last one sold, faults included."""
    async with Sandbox(tmp_path, SandboxConfig()) as sandbox:
        port = sandbox.port
        url = (await buy(session, sandbox))[1]["data"]["image_url"]
        before = await fetch(session, url)
        sandbox.canned.append(Fault(FaultKind.IMAGE_404))
        missing = (await buy(session, sandbox))[1]["data"]["image_url"]
    async with Sandbox(tmp_path, SandboxConfig(), port) as sandbox:
        assert await fetch(session, url) == before
        assert (await fetch(session, missing))[0] == 404
        assert (await buy(session, sandbox))[0] == 200
        assert [charge.number for charge in sandbox.charges()] == [1, 2, 3]


async def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """A port that another program holds ends the start with its number and what to do, and lets the log go."""
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} of the sandbox is taken") as caught:
            await Sandbox(tmp_path, QUICK, port).start()
        assert caught.value.hint is not None
        assert f":{port}" in caught.value.hint
    async with Sandbox(tmp_path, QUICK, port):
        pass


async def test_a_chosen_port_can_be_come_back_to(session: aiohttp.ClientSession) -> None:
    """It lies below the ports that systems hand out, and is free again at once after connections were open."""
    port = choose_port()
    assert 20_000 <= port < 32_000
    for _ in range(2):
        async with Sandbox(None, QUICK, port) as sandbox:
            assert (await buy(session, sandbox))[0] == 200


async def test_stop_waits_for_nobody(session: aiohttp.ClientSession) -> None:
    """Calls in flight, hanging ones and those whose caller left are ended within a moment."""
    sandbox = Sandbox(None, replace(QUICK, latency=Latency("fixed", 60.0)))
    await sandbox.start()
    sandbox.canned.extend([None, Fault(FaultKind.HANG), None])
    calls = [asyncio.create_task(buy(session, sandbox)) for _ in range(3)]
    while sandbox.stats.charged < 3:
        await asyncio.sleep(0.001)
    calls[2].cancel()
    async with asyncio.timeout(3):
        await sandbox.stop()
        await sandbox.stop()
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, BaseException) for one in ended)
    assert sandbox.stats.in_flight == 0


async def test_limits_hold_at_any_concurrency(session: aiohttp.ClientSession) -> None:
    """Of 20 calls at once, a queue of 6 takes 6 and refuses 14 with 499; a balance for 3 images sells 3."""
    config = replace(QUICK, queue_limit=6, latency=Latency("fixed", 0.05))
    async with Sandbox(None, config) as sandbox:
        statuses = [status for status, _ in await asyncio.gather(*(buy(session, sandbox) for _ in range(20)))]
        assert (statuses.count(200), statuses.count(499)) == (6, 14)
        assert sandbox.stats.max_in_flight == 6
    config = replace(QUICK, balance=3 * QUICK.prices[Kind(PRO)])
    async with Sandbox(None, config) as sandbox:
        statuses = [status for status, _ in await asyncio.gather(*(buy(session, sandbox) for _ in range(9)))]
        assert (statuses.count(200), statuses.count(402)) == (3, 6)
        assert sum(charge.credits for charge in sandbox.charges()) == 39 * MICRO


async def test_a_refusing_outage_ends(session: aiohttp.ClientSession) -> None:
    """While it lasts connections are refused, kept ones too; a call in flight ends well; afterwards all is as before."""
    async with Sandbox(None, replace(QUICK, latency=Latency("fixed", 0.1))) as sandbox:
        idle, writer = await asyncio.open_connection(HOST, sandbox.port)
        on_the_wire = asyncio.create_task(buy(session, sandbox))
        while not sandbox.stats.in_flight:
            await asyncio.sleep(0.001)
        async with sandbox.outage("refuse"):
            assert await idle.read() == b""
            with pytest.raises(aiohttp.ClientConnectorError):
                await buy(session, sandbox)
            assert (await on_the_wire)[0] == 200
        assert (await buy(session, sandbox))[0] == 200
        assert sandbox.stats.charged == 2
        writer.close()
        await writer.wait_closed()


async def test_a_dropping_outage_takes_and_cuts(session: aiohttp.ClientSession) -> None:
    """While it lasts every request's connection is cut, uncharged, and those in flight are cut with it."""
    async with Sandbox(None, replace(QUICK, latency=Latency("fixed", 0.1))) as sandbox:
        on_the_wire = asyncio.create_task(buy(session, sandbox))
        while not sandbox.stats.charged:
            await asyncio.sleep(0.001)
        async with sandbox.outage("drop"):
            with pytest.raises(aiohttp.ClientConnectionError):
                await on_the_wire
            with pytest.raises(aiohttp.ClientConnectionError):
                await buy(session, sandbox)
        assert (await buy(session, sandbox))[0] == 200
        assert sandbox.stats.charged == 2


async def test_a_body_that_never_ends_harms_nobody(session: aiohttp.ClientSession) -> None:
    """A caller that leaves in the middle of its request is not charged, and nothing is logged as a bug."""
    async with Sandbox(None, QUICK) as sandbox:
        reader, writer = await asyncio.open_connection(HOST, sandbox.port)
        writer.write(b"POST /gemini/image/generate HTTP/1.1\r\nHost: x\r\nTT-API-KEY: k\r\nContent-Length: 99\r\n\r\n{")
        await writer.drain()
        while not sandbox.stats.calls:
            await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()
        while not sandbox.stats.refused:
            await asyncio.sleep(0.001)
        assert (await buy(session, sandbox))[0] == 200
        assert (sandbox.stats.charged, dict(sandbox.stats.statuses)) == (1, {200: 1})
        assert await reader.read() == b""


async def test_counts_by_prompt_can_be_switched_off(session: aiohttp.ClientSession) -> None:
    """What was asked for how often is counted, unless a million rows are to leave no trace in memory."""
    for counted in (True, False):
        async with Sandbox(None, replace(QUICK, count_requests=counted)) as sandbox:
            for prompt in ("a", "b", "a"):
                await buy(session, sandbox, prompt)
            assert sandbox.stats.per_prompt == ({"a": 2, "b": 1} if counted else {})


async def test_a_script_sees_each_call_and_decides(session: aiohttp.ClientSession) -> None:
    """It gets the order, its occurrence and the headers; what it returns is what the call meets."""
    seen: list[tuple[int, str, int, str]] = []

    def script(call: Any) -> Fault | None:
        seen.append((call.number, call.order.prompt, call.occurrence, call.headers["TT-API-KEY"]))
        return Fault(FaultKind.SERVER_ERROR) if call.occurrence == 0 else None

    keys: list[bool] = []

    def images(name: str, headers: Any) -> Canned | None:
        keys.append("TT-API-KEY" in headers)
        return Canned(302, {"Location": "http://127.0.0.1:9/"}) if len(keys) == 1 else None

    async with Sandbox(None, QUICK) as sandbox:
        sandbox.follow(script, images)
        assert [(await buy(session, sandbox))[0] for _ in range(2)] == [500, 200]
        assert seen == [(1, "a cat", 0, "any"), (2, "a cat", 1, "any")]
        (charge,) = sandbox.charges()
        url = f"{sandbox.base_url}/image/{charge.image}.png"
        async with session.get(url, allow_redirects=False) as response:
            assert response.status == 302
        assert (await fetch(session, url))[0] == 200
        assert keys == [False, False]
