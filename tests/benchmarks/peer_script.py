"""The script that people paste: gather, a semaphore, aiohttp. Keeps nothing durable, cannot go on after a stop.

python -m tests.benchmarks.peer_script MANIFEST FOLDER CONCURRENCY URL
"""

import asyncio
import json
import sys
from pathlib import Path

import aiohttp


async def main(manifest: str, folder: str, concurrency: str, url: str) -> None:
    """Generate and download everything."""
    turns = asyncio.Semaphore(int(concurrency))
    bodies = [json.loads(line) for line in Path(manifest).read_text().splitlines()]

    async def one(session: aiohttp.ClientSession, number: int, body: dict[str, str]) -> object:
        async with turns:
            async with session.post(url, json=body, headers={"TT-API-KEY": "k"}) as response:
                answer = await response.json()
            async with session.get(answer["data"]["image_url"]) as response:
                picture = await response.read()
            (Path(folder) / f"{number}.png").write_bytes(picture)
            return answer

    # Its default limit of 100 connections alone would cost 63 % at 256 calls in flight: the script as it should be.
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        answers = await asyncio.gather(*[one(session, number, body) for number, body in enumerate(bodies)])
    (Path(folder) / "results.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
