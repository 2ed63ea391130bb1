"""The sandbox on a virtual clock: a night passes in a moment, with the real client and the real server."""

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import async_solipsism
import pytest

from banana_batch.sandbox.charges import read_charges
from banana_batch.sandbox.config import Latency, SandboxConfig
from banana_batch.sandbox.server import Sandbox
from tests.torture.virtual import Inline
from tests.unit.pacing.simulated import simulate


async def _night(folder: Path) -> tuple[float, list[int]]:
    loop = asyncio.get_running_loop()
    config = SandboxConfig(latency=Latency("fixed", 3600.0), rate_limit=20)
    body: dict[str, Any] = {"prompt": "a cat", "model": "gemini-2.5-flash-image"}
    statuses = []
    async with (
        Sandbox(folder, config, 8787, executor=Inline(), now=lambda: datetime(2026, 1, 1, tzinfo=UTC)) as sandbox,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
    ):
        url = f"{sandbox.base_url}/gemini/image/generate"
        for _ in range(3):
            async with session.post(url, json=body, headers={"TT-API-KEY": "any"}) as response:
                statuses.append(response.status)
                picture = (await response.json())["data"]["image_url"]
            async with session.get(picture) as response:
                await response.read()
                statuses.append(response.status)
        async with sandbox.outage("refuse"):
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(picture)
            await asyncio.sleep(1800)
        async with session.get(picture) as response:
            statuses.append(response.status)
    return loop.time(), statuses


def test_a_night_passes_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hours of latency and half an hour of outage take the virtual clock's time and none of ours."""
    connect = async_solipsism.aiohappyeyeballs_start_connection
    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", connect)
    started_s = time.monotonic()
    virtual_s, statuses = simulate(partial(_night, tmp_path))
    assert time.monotonic() - started_s < 5
    assert virtual_s >= 3 * 3600 + 1800
    assert statuses == [200] * 7
    assert [charge.time for charge in read_charges(tmp_path)] == ["2026-01-01T00:00:00.000Z"] * 3
